//! What linking looks like: an HTTP service that streams from one shared engine.
//!
//! ```text
//! cargo run --release --example embed_in_service
//!
//! curl -N localhost:8080/generate -d '{"messages": [{"role": "user", "content": "Hi"}]}'
//! curl -N localhost:8080/generate -d '{"prompt": "Once upon a time", "max_tokens": 40, "n": 2}'
//! curl localhost:8080/health
//! ```
//!
//! The body of `POST /generate` is an object as `support/json_request.rs` describes it. The answer
//! is a stream of server-sent events:
//!
//! ```text
//! event: text       data: {"sample": 0, "text": "Hello"}
//! event: finished   data: {"sample": 0, "finish_reason": "stop", "usage": {...}}
//! event: error      data: {"error": "..."}             and then nothing more
//! ```
//!
//! What the engine refuses becomes a status: 400 for a request that makes no sense, 429 while the
//! queue is full, 503 when the engine is ending or has ended. A client that disconnects gives its
//! request up: its stream is dropped, and dropping a stream aborts. Ctrl-C takes no new requests
//! and waits for those that run.

#[path = "support/json_request.rs"]
mod json_request;
#[path = "support/start.rs"]
mod start;

use std::convert::Infallible;
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::process::ExitCode;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use clap::Parser;
use futures_util::Stream;
use futures_util::stream::StreamExt;
use json_request::{JsonRequest, JsonRequestError};
use serde_json::{Value, json};
use start::Outcome;
use understory::Namespace;
use understory::prelude::*;
use understory::request::Finished;

/// Serves a language model over HTTP, to show how a service embeds the engine.
///
/// `POST /generate` answers with server-sent events, `GET /health` tells whether the engine is
/// alive and what it has done. Ctrl-C takes no new requests and waits for those that run.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    #[command(flatten)]
    engine: start::EngineArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let engine = arguments.engine.start()?;
    // The engine has threads of its own; the runtime's only move bytes.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(arguments.listen).await?;
        eprintln!("listening on http://{}", listener.local_addr()?);
        axum::serve(listener, router(engine.clone())).with_graceful_shutdown(interrupt()).await
    })?;
    Ok(engine.shutdown(Shutdown::Drain)?)
}

async fn interrupt() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        // Without a way to be told, the service ends as any process does.
        eprintln!("cannot listen for Ctrl-C: {error}");
        std::future::pending::<()>().await;
    }
}

/// The service. An engine is a handle: each request gets a clone of it.
fn router(engine: Engine) -> Router {
    Router::new()
        .route("/generate", post(generate))
        .route("/health", get(health))
        .with_state(engine)
}

async fn generate(
    State(engine): State<Engine>,
    body: String,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused> {
    let JsonRequest { prompt, sampling, namespace } =
        JsonRequest::parse(&body, &engine.recommended_sampling())?;
    let request = Request::new(prompt).sampling(sampling).namespace(number(namespace.as_deref()));
    // Tokenizing a long prompt takes a while, which the runtime's threads don't have.
    let submitted = tokio::task::spawn_blocking(move || engine.submit(request)).await;
    let generation = submitted.map_err(|_| Refused::Interrupted)??;
    let events = generation.filter_map(|event| async { sent_event(event).map(Ok) });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn health(State(engine): State<Engine>) -> Response {
    if let Some(dead) = engine.dead() {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, &dead);
    }
    let snapshot = engine.snapshot();
    Json(json!({
        "running": snapshot.scheduler.running,
        "queued": snapshot.queued,
        "cache_hit_rate": snapshot.cache_hit_rate(),
    }))
    .into_response()
}

/// What a client is told of an event, if anything.
fn sent_event(event: Result<GenerationEvent, GenerationError>) -> Option<Event> {
    let (name, data) = match event {
        Ok(GenerationEvent::Text { sample, text, .. }) => {
            ("text", json!({"sample": sample, "text": text}))
        }
        Ok(GenerationEvent::Finished(finished)) => ("finished", described(&finished)),
        Ok(_) => return None,
        Err(error) => ("error", json!({"error": error.to_string()})),
    };
    Some(Event::default().event(name).data(data.to_string()))
}

fn described(finished: &Finished) -> Value {
    let usage = finished.usage;
    json!({
        "sample": finished.sample,
        "finish_reason": finished.reason.as_str(),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        },
    })
}

/// A namespace's number. Here clients name theirs; a real service would take it from who is
/// logged in, and number its tenants, so that no two can meet.
fn number(name: Option<&str>) -> Namespace {
    let Some(name) = name else { return Namespace::default() };
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    Namespace::tenant(hasher.finish())
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Request(#[from] JsonRequestError),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("the service is ending")]
    Interrupted,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Submit(SubmitError::QueueFull { .. }) => StatusCode::TOO_MANY_REQUESTS,
            Self::Submit(SubmitError::ShuttingDown | SubmitError::Dead(_)) | Self::Interrupted => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Request(_) | Self::Submit(_) => StatusCode::BAD_REQUEST,
        };
        refusal(status, &self)
    }
}

fn refusal(status: StatusCode, error: &dyn Error) -> Response {
    (status, Json(json!({"error": error.to_string()}))).into_response()
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use axum::body::{Body, to_bytes};
    use axum::http;
    use tower::ServiceExt;

    use super::*;

    fn engine(max_queued_requests: usize) -> Engine {
        let backend = BackendChoice::Cpu { threads: Some(1) };
        let backend = backend.open(&FetchOptions::default(), &mut ()).unwrap();
        let mut options = EngineOptions::default();
        options.kv_memory = KvMemory::Tokens(4096);
        options.max_queued_requests = max_queued_requests;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama-tied");
        Engine::builder().options(options).load(path, backend.as_ref(), &mut ()).unwrap()
    }

    async fn send(engine: &Engine, body: Value) -> Response {
        let request = http::Request::post("/generate").body(Body::from(body.to_string())).unwrap();
        router(engine.clone()).oneshot(request).await.unwrap()
    }

    async fn text(response: Response) -> String {
        String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().into()).unwrap()
    }

    #[tokio::test]
    async fn an_answer_is_streamed_and_ends_with_its_usage() {
        let engine = engine(8);
        let body = json!({"prompt": "a b c", "max_tokens": 12, "ignore_eos": true, "n": 2});
        let response = send(&engine, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        let text = text(response).await;
        assert!(text.contains("event: text\ndata: {\"sample\":0,\"text\":"), "{text}");
        assert_eq!(text.matches("event: finished\n").count(), 2, "{text}");
        assert_eq!(text.matches("\"completion_tokens\":12").count(), 2, "{text}");
        assert_eq!(text.matches("\"finish_reason\":\"length\"").count(), 2, "{text}");
    }

    #[tokio::test]
    async fn what_the_engine_refuses_becomes_a_status() {
        let engine = engine(1);
        for bad in [
            json!({"prompt": "a", "unheard_of": 1}),
            json!({"prompt": "a", "temperature": -1}),
            json!({"token_ids": []}),
            json!([]),
        ] {
            let response = send(&engine, bad.clone()).await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{bad}");
            assert!(text(response).await.contains("\"error\""));
        }
        // Two samples are more than the queue holds, whatever else is in it.
        let response = send(&engine, json!({"prompt": "a", "n": 2})).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);

        engine.shutdown(Shutdown::Now).unwrap();
        let response = send(&engine, json!({"prompt": "a"})).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn a_client_that_disconnects_gives_its_request_up() {
        let engine = engine(128);
        let body = json!({"prompt": "a", "max_tokens": 500, "ignore_eos": true, "n": 64});
        let response = send(&engine, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        drop(response);
        // Far longer than it takes: whether it ends is what is tested, not when.
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            let snapshot = engine.snapshot();
            if snapshot.queued == 0 && snapshot.scheduler.running == 0 {
                let generated = snapshot.scheduler.generated_tokens;
                assert!(generated < 64 * 400, "{generated} tokens were generated for nobody");
                break;
            }
            assert!(Instant::now() < patience, "the request still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn health_tells_what_the_engine_does() {
        let engine = engine(8);
        let request = http::Request::get("/health").body(Body::empty()).unwrap();
        let response = router(engine.clone()).oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let value: Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(value["running"], 0);
    }

    #[test]
    fn namespaces_with_different_names_have_different_numbers() {
        assert_eq!(number(Some("a")), number(Some("a")));
        assert_ne!(number(Some("a")), number(Some("b")));
        assert_eq!(number(None), Namespace::default());
    }
}
