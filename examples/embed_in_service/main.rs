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
//! request up: its stream is dropped, and dropping a stream aborts. Ctrl-C or SIGTERM takes no new
//! requests and waits for those that run; a second one ends at once. `serve.rs` has what a service
//! needs besides: time limits, and answers to clients that only listen.

#[path = "../support/json_request.rs"]
mod json_request;
mod serve;
#[path = "../support/signals.rs"]
mod signals;
#[path = "../support/start.rs"]
mod start;

use std::convert::Infallible;
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use axum::Router;
use axum::body::Body;
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
use serve::{BodyError, Limits};
use start::Outcome;
use tokio::net::TcpListener;
use understory::Namespace;
use understory::prelude::*;
use understory::request::Finished;

/// Serves a language model over HTTP, to show how a service embeds the engine.
///
/// `POST /generate` answers with server-sent events, `GET /health` tells whether the engine is
/// alive and what it has done. Ctrl-C or SIGTERM takes no new requests and waits for those that
/// run; a second one ends at once.
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
    let stop = signals::first_signal()?;
    // The engine has threads of its own; the runtime's only move bytes.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(arguments.listen).await?;
        eprintln!("listening on http://{}", listener.local_addr()?);
        let limits = Limits::default();
        serve::serve(listener, router(engine.clone(), limits), limits, stop).await;
        io::Result::Ok(())
    })?;
    Ok(engine.shutdown(Shutdown::Drain)?)
}

/// What each request needs. An engine is a handle: each gets a clone of it.
#[derive(Clone)]
struct Service {
    engine: Engine,
    limits: Limits,
}

fn router(engine: Engine, limits: Limits) -> Router {
    Router::new()
        .route("/generate", post(generate))
        .route("/health", get(health))
        .with_state(Service { engine, limits })
}

async fn generate(
    State(Service { engine, limits }): State<Service>,
    body: Body,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused> {
    let body = serve::read(body, limits).await?;
    let fields = JsonRequest::fields(str::from_utf8(&body).map_err(|_| Refused::Encoding)?)?;
    let mut request = JsonRequest::from_fields(fields, &engine.recommended_sampling())?;
    if let Some(field) = request.unknown.pop() {
        return Err(Refused::UnknownField { field });
    }
    let namespace = number(request.namespace.as_deref());
    // Tokenizing a long prompt takes a while, which the runtime's threads don't have.
    let generation = engine.submit_async(request.into_request(namespace)).await?;
    let events = generation.filter_map(|event| async { sent_event(event).map(Ok) });
    // Writing is how it is noticed that a client is gone, also one that waits for its turn.
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(limits.silence)))
}

async fn health(State(Service { engine, .. }): State<Service>) -> Response {
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
        Err(error) => ("error", json!({"error": one_line(&error)})),
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
    Body(#[from] BodyError),
    #[error("the request is not UTF-8 text")]
    Encoding,
    #[error(transparent)]
    Request(#[from] JsonRequestError),
    #[error("there is no field {field:?}")]
    UnknownField { field: String },
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Submit(SubmitError::QueueFull { .. }) => StatusCode::TOO_MANY_REQUESTS,
            Self::Submit(SubmitError::ShuttingDown | SubmitError::Dead(_)) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Body(error) => error.status(),
            Self::Encoding | Self::Request(_) | Self::UnknownField { .. } | Self::Submit(_) => {
                StatusCode::BAD_REQUEST
            }
        };
        refusal(status, &self)
    }
}

fn refusal(status: StatusCode, error: &dyn Error) -> Response {
    (status, Json(json!({"error": one_line(error)}))).into_response()
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
