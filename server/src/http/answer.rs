//! From a request to an answer: read, submit, tell.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Sleep, sleep, timeout};
use understory::error::SubmitError;

use super::events::Events;
use super::guard::Identity;
use super::peer::{Peer, left};
use super::state::Server;
use super::{body, running};
use crate::emit::{Emit, Frames};
use crate::intake::{self, Caller, Context, Plan};
use crate::protocol::Refused;

/// Reads a body into what is to be done.
pub(crate) type Intake = fn(&Context, &[u8], &Caller) -> Result<Plan, Refused>;

/// Answers a request that generates. `prompt` is the parameter with the prompt.
pub(crate) async fn generate(
    server: Server,
    request: Request<Body>,
    intake: Intake,
    prompt: &'static str,
) -> Response {
    let version = request.version();
    let peer = request.extensions().get::<Peer>().cloned();
    let answer = answer(&server, request, intake, prompt);
    tokio::select! {
        answered = answer => answered.unwrap_or_else(IntoResponse::into_response),
        () = left(peer.as_ref(), version) => gone(),
    }
}

/// The answer for a client that does not hear it: nginx's status for that.
pub(crate) fn gone() -> Response {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST).into_response()
}

async fn answer(
    server: &Server,
    request: Request<Body>,
    intake: Intake,
    prompt: &'static str,
) -> Result<Response, Refused> {
    let caller = caller(&request);
    let bytes = body::read(request.into_body(), server.limits(), server.bodies()).await?;
    let (plan, mut events) = submit(server, bytes, caller, intake, prompt).await?;
    let Plan { mut emit, stream, .. } = plan;
    let mut frames = Frames::default();
    if !stream {
        while let Some((prompt, event)) = events.next().await {
            let event = event.map_err(|error| intake::ended(&error))?;
            emit.event(prompt, event, &mut frames);
        }
        return emit.failed().map_or_else(|| Ok(json(emit.whole())), Err);
    }
    // The head waits for the first piece of the answer, so that what goes wrong until then has a status, and a client
    // that leaves during a long prefill is noticed: nothing has been written that would end the watch.
    let begins = async {
        while frames.is_empty() {
            let Some((prompt, event)) = events.next().await else { break };
            emit.event(prompt, event.map_err(|error| intake::ended(&error))?, &mut frames);
        }
        Ok::<_, Refused>(())
    };
    let keep_alive = server.sse_keep_alive();
    match keep_alive {
        None => begins.await?,
        Some(longest) => match timeout(longest, begins).await {
            Ok(begun) => begun?,
            Err(_) => frames.comment(),
        },
    }
    let body = EventBody { events: Some(events), emit, frames, keep_alive, silence: None };
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let buffering = HeaderName::from_static("x-accel-buffering");
    headers.insert(buffering, HeaderValue::from_static("no"));
    Ok(response)
}

/// Who asks, by what the guard found out.
pub(crate) fn caller(request: &Request<Body>) -> Caller {
    let identity = request.extensions().get::<Identity>().cloned().unwrap_or_default();
    Caller { rid: identity.rid, created: super::state::now(), tenant: identity.tenant }
}

/// Tokenizing takes a while, which the runtime's threads don't have.
async fn submit(
    server: &Server,
    bytes: body::Read,
    caller: Caller,
    intake: Intake,
    prompt: &'static str,
) -> Result<(Plan, Events), Refused> {
    let own = server.clone();
    let work = move || {
        let mut plan = intake(own.context(), &bytes, &caller)?;
        let requests = std::mem::take(&mut plan.requests);
        let observers: Vec<_> =
            requests.iter().map(|request| own.metrics().observer(request, plan.stream)).collect();
        let generations = own.context().engine.submit_all(requests);
        let generations = generations.map_err(|error| match &error {
            // The only one has no number.
            SubmitError::OneOfSeveral { error, .. } if observers.len() == 1 => {
                intake::refused(error, prompt)
            }
            error => intake::refused(error, prompt),
        })?;
        let entered: Vec<running::Entered> = plan
            .rids
            .iter()
            .zip(&generations)
            .map(|(rid, generation)| {
                own.running().enter(rid, caller.tenant.as_deref(), generation.abort_handle())
            })
            .collect();
        Ok((plan, Events::new(generations.into_iter().zip(observers), entered)))
    };
    server.off_runtime(work).await?
}

/// A body of events. Dropping it gives the request up.
struct EventBody {
    events: Option<Events>,
    emit: Box<dyn Emit>,
    frames: Frames,
    keep_alive: Option<std::time::Duration>,
    silence: Option<Pin<Box<Sleep>>>,
}

impl Stream for EventBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.frames.pop() {
                this.silence = None;
                return Poll::Ready(Some(Ok(frame)));
            }
            let Some(events) = &mut this.events else { return Poll::Ready(None) };
            match events.poll_next(context) {
                Poll::Ready(Some((prompt, Ok(event)))) => {
                    this.emit.event(prompt, event, &mut this.frames);
                }
                Poll::Ready(Some((_, Err(error)))) => {
                    this.emit.error(&intake::ended(&error), &mut this.frames);
                    this.events = None;
                }
                Poll::Ready(None) => {
                    this.emit.end(&mut this.frames);
                    this.events = None;
                }
                Poll::Pending => return this.poll_silence(context),
            }
        }
    }
}

impl EventBody {
    /// Breaks a long silence with a comment, where that was asked for.
    fn poll_silence(
        &mut self,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let Some(longest) = self.keep_alive else { return Poll::Pending };
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(longest)));
        if silence.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.silence = None;
        self.frames.comment();
        Poll::Ready(self.frames.pop().map(Ok))
    }
}

/// An answer of JSON.
pub(crate) fn json(body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A value as JSON.
pub(crate) fn json_of(value: &impl serde::Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => json(text),
        Err(error) => Refused::server(500, error.to_string()).into_response(),
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = json(self.body());
        let status = StatusCode::from_u16(self.status);
        *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if self.status == 429 {
            response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
        }
        // For protocols that show errors otherwise.
        response.extensions_mut().insert(self);
        response
    }
}
