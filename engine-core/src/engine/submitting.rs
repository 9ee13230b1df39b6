//! Submitting without work on the caller's thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::generation::Generation;
use super::handle::Inner;
use super::oneshot::{Question, oneshot};
use crate::error::SubmitError;
use crate::fence::Fenced;
use crate::request::Request;

/// A request on its way into the engine: a future of its [`Generation`], from
/// [`Engine::submit_async`](super::Engine::submit_async).
#[derive(Debug)]
#[must_use = "dropping it gives the request up"]
pub struct Submitting {
    state: State,
}

#[derive(Debug)]
enum State {
    Refused(Option<SubmitError>),
    Pending(Question<Result<Generation, SubmitError>>),
}

impl Submitting {
    pub(super) fn start(engine: &Arc<Inner>, request: Request) -> Self {
        let entered =
            engine.check_open().and_then(|()| engine.enter(std::slice::from_ref(&request)));
        let places = match entered {
            Ok(places) => places,
            Err(error) => return Self { state: State::Refused(Some(error)) },
        };
        let (answer, question) = oneshot();
        // Nobody keeps an engine alive that has no handle left.
        let engine_is = Arc::downgrade(engine);
        let mut request = Fenced::new(request);
        engine.tokenizers.post(Box::new(move || {
            let Some(request) = request.take() else { return };
            answer.give(match engine_is.upgrade() {
                Some(engine) => engine.check_open().and_then(|()| engine.submit(request, places)),
                None => Err(SubmitError::ShuttingDown),
            });
        }));
        Self { state: State::Pending(question) }
    }
}

impl Future for Submitting {
    type Output = Result<Generation, SubmitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Refused(error) => {
                Poll::Ready(Err(error.take().unwrap_or(SubmitError::ShuttingDown)))
            }
            State::Pending(question) => Pin::new(question)
                .poll(context)
                // Unanswered: the engine ended before anybody looked at it.
                .map(|answer| answer.unwrap_or(Err(SubmitError::ShuttingDown))),
        }
    }
}
