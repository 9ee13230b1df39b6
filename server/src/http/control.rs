//! Routes that change something, and those that only count tokens.

use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{caller, json_of};
use super::body;
use super::guard::Identity;
use super::state::Server;
use crate::intake::{self, Caller, Context};
use crate::protocol::{Refused, read};

#[derive(Debug, Default, Deserialize)]
pub(super) struct FlushQuery {
    /// Seconds to wait until no request runs.
    timeout: Option<String>,
}

/// Forgets all cached prefixes, once no request runs.
pub(super) async fn flush(
    State(server): State<Server>,
    identity: Extension<Identity>,
    query: Result<Query<FlushQuery>, QueryRejection>,
) -> Response {
    match flushed(&server, &identity, query).await {
        Ok(()) => (StatusCode::OK, "Cache flushed.\n").into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn flushed(
    server: &Server,
    identity: &Identity,
    query: Result<Query<FlushQuery>, QueryRejection>,
) -> Result<(), Refused> {
    if identity.tenant.is_some() {
        let message = "the cache is every tenant's: flushing it needs a key without a tenant";
        return Err(Refused::invalid(None, message).code("permission_denied").status(403));
    }
    let patience = patience(query)?;
    let begin = Instant::now();
    loop {
        let snapshot = server.engine().snapshot();
        if snapshot.queued == 0 && snapshot.scheduler.running + snapshot.scheduler.waiting == 0 {
            break;
        }
        if begin.elapsed() >= patience {
            let message = "requests are running; the cache was not flushed";
            return Err(Refused::invalid(None, message));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.engine().clear_cache().map_err(|error| intake::refused(&error, "timeout"))
}

/// How long a flush waits for requests that run.
fn patience(query: Result<Query<FlushQuery>, QueryRejection>) -> Result<Duration, Refused> {
    const LONGEST: f64 = 600.0;
    /// Counts are those of the last step: a request that has just been answered may be among them.
    const SHORTEST: f64 = 0.1;
    let wrong = || Refused::invalid(Some("timeout"), "timeout must be a number of seconds");
    let Query(query) = query.map_err(|_| wrong())?;
    let seconds = match query.timeout.as_deref() {
        None | Some("") => 0.0,
        Some(text) => text.parse::<f64>().map_err(|_| wrong())?,
    };
    if seconds.is_nan() || seconds < 0.0 {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(seconds.clamp(SHORTEST, LONGEST)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AbortRequest {
    rid: Option<String>,
    abort_all: Option<bool>,
}

/// Gives requests up, wherever they are read. A tenant's key reaches the tenant's own alone.
pub(super) async fn abort(State(server): State<Server>, request: Request<Body>) -> Response {
    let aborted = async {
        let tenant = caller(&request).tenant;
        let tenant = tenant.as_deref();
        let abort: AbortRequest = read(&bytes(&server, request).await?)?;
        let rid = abort.rid.as_deref().filter(|rid| !rid.is_empty());
        if abort.abort_all == Some(true) {
            server.running().abort(None, tenant);
        } else if rid.is_some() {
            server.running().abort(rid, tenant);
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

async fn bytes(server: &Server, request: Request<Body>) -> Result<body::Read, Refused> {
    body::read(request.into_body(), server.limits(), server.bodies()).await
}
