//! Routes that change something, and those that only count tokens.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{caller, json_of};
use super::body;
use super::state::Server;
use crate::intake::{self, Caller, Context};
use crate::protocol::{Refused, read};

#[derive(Debug, Default, Deserialize)]
pub(super) struct FlushQuery {
    /// Seconds to wait until no request runs.
    timeout: Option<f64>,
}

/// Forgets all cached prefixes, once no request runs.
pub(super) async fn flush(
    State(server): State<Server>,
    Query(query): Query<FlushQuery>,
) -> Response {
    const LONGEST: f64 = 600.0;
    let patience = query.timeout.filter(|seconds| seconds.is_finite()).unwrap_or_default();
    let patience = Duration::from_secs_f64(patience.clamp(0.0, LONGEST));
    let begin = Instant::now();
    loop {
        let snapshot = server.engine().snapshot();
        if snapshot.queued == 0 && snapshot.scheduler.running + snapshot.scheduler.waiting == 0 {
            break;
        }
        if begin.elapsed() >= patience {
            let message = "requests are running; the cache was not flushed";
            return Refused::invalid(None, message).into_response();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    match server.engine().clear_cache() {
        Ok(()) => (StatusCode::OK, "Cache flushed.\n").into_response(),
        Err(error) => intake::refused(&error, "timeout").into_response(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AbortRequest {
    rid: Option<String>,
    abort_all: Option<bool>,
}

/// Gives requests up, wherever they are read.
pub(super) async fn abort(State(server): State<Server>, request: Request<Body>) -> Response {
    let aborted = async {
        let abort: AbortRequest = read(&bytes(&server, request).await?)?;
        let rid = abort.rid.as_deref().filter(|rid| !rid.is_empty());
        if abort.abort_all == Some(true) {
            server.running().abort(None);
        } else if rid.is_some() {
            server.running().abort(rid);
        }
        Ok::<_, Refused>(())
    };
    match aborted.await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(refused) => refused.into_response(),
    }
}

pub(super) async fn tokenize(State(server): State<Server>, request: Request<Body>) -> Response {
    counted(server, request, intake::tokenize).await
}

/// Anthropic's count of a conversation's tokens.
pub(super) async fn count(State(server): State<Server>, request: Request<Body>) -> Response {
    counted(server, request, intake::count).await
}

type Count = fn(&Context, &[u8], &Caller) -> Result<Value, Refused>;

async fn counted(server: Server, request: Request<Body>, count: Count) -> Response {
    let caller = caller(&request);
    let own = server.clone();
    let counted = async {
        let bytes = bytes(&server, request).await?;
        server.off_runtime(move || count(own.context(), &bytes, &caller)).await?
    };
    counted.await.map_or_else(IntoResponse::into_response, |value| json_of(&value))
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    tokens: Vec<u32>,
    #[serde(default)]
    skip_special_tokens: Option<bool>,
}

pub(super) async fn detokenize(State(server): State<Server>, request: Request<Body>) -> Response {
    let own = server.clone();
    let detokenized = async {
        let bytes = bytes(&server, request).await?;
        let work = move || {
            let DetokenizeRequest { tokens, skip_special_tokens } = read(&bytes)?;
            let vocabulary = own.engine().model().vocab_size;
            if let Some(token) = tokens.iter().find(|&&token| token >= vocabulary) {
                let message = format!("tokens: {token} is not in the vocabulary of {vocabulary}");
                return Err(Refused::invalid(Some("tokens"), message));
            }
            let skip = skip_special_tokens.unwrap_or_default();
            Ok(own.context().tokenizer.decode(&tokens, skip))
        };
        server.off_runtime(work).await?
    };
    match detokenized.await {
        // SGLang's name and vLLM's.
        Ok(text) => json_of(&json!({"text": text, "prompt": text})),
        Err(refused) => refused.into_response(),
    }
}

async fn bytes(server: &Server, request: Request<Body>) -> Result<bytes::Bytes, Refused> {
    let limits = server.limits();
    body::read(request.into_body(), limits.body_bytes, limits.body_patience).await
}
