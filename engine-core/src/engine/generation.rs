//! The reading end of a request.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_core::Stream;

use super::command::Command;
use super::handle::Inner;
use super::shared::Shared;
use crate::error::{EngineDead, GenerationError, SubmitError};
use crate::request::{Finished, GenerationEvent, Output, Reader, Request, TokenLogprobs};
use crate::schedule::{RequestId, SequenceId};

/// A request that is being answered: a stream of what happens to its samples, which ends when all
/// of them have ended.
///
/// Read it on a thread ([`recv`](Self::recv), or as an iterator) or in an async task (it is a
/// [`Stream`]; no particular runtime is needed). What was generated and not read is kept, so a
/// slow reader holds nobody up. Dropping it gives the request up.
#[derive(Debug)]
pub struct Generation {
    id: RequestId,
    samples: u32,
    reader: Reader,
    shared: Arc<Shared>,
    /// Weak, so that a stream doesn't keep an engine alive that nobody can call.
    engine: Weak<Inner>,
}

impl Generation {
    pub(super) fn new(id: RequestId, samples: u32, reader: Reader, engine: &Arc<Inner>) -> Self {
        let shared = Arc::clone(&engine.shared);
        Self { id, samples, reader, shared, engine: Arc::downgrade(engine) }
    }

    /// Number of samples, and so of [`GenerationEvent::Finished`] or errors to come in all.
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// What happens next; `None` when all samples have ended. Blocks until something happens.
    pub fn recv(&mut self) -> Option<Result<GenerationEvent, GenerationError>> {
        self.reader.recv()
    }

    /// Waits for all samples.
    ///
    /// # Errors
    ///
    /// The first error of any of them; the others are given up then.
    pub fn wait(mut self) -> Result<Vec<Output>, GenerationError> {
        let mut drafts: Vec<Draft> = (0..self.samples).map(|_| Draft::default()).collect();
        while let Some(event) = self.recv() {
            let event = event?;
            let (GenerationEvent::Token { sample, .. }
            | GenerationEvent::Text { sample, .. }
            | GenerationEvent::Finished(Finished { sample, .. })) = event;
            if let Some(draft) = drafts.get_mut(sample as usize) {
                draft.add(event);
            }
        }
        let outputs = drafts.into_iter().map(|draft| {
            draft.output().ok_or_else(|| EngineDead::new("a sample never finished").into())
        });
        outputs.collect()
    }

    /// Gives the request up. Its samples end with
    /// [`FinishReason::Abort`](crate::request::FinishReason::Abort) unless they end otherwise before that is seen.
    pub fn abort(&self) {
        if !self.reader.has_ended() {
            let (request, samples) = (self.id, self.samples);
            // If nobody receives it, the engine has ended, and so have the samples.
            let _ = self.shared.commands.post(Command::Abort { request, samples });
        }
    }

    /// Continues a sample that is still running along another branch: a new request, whose
    /// samples begin with the tokens that `sample` has when this is seen, followed by the
    /// branch's prompt, which may be empty tokens. The branch shares the parent's KV and
    /// namespace and computes nothing that the parent has computed.
    ///
    /// # Errors
    ///
    /// As [`Engine::submit`](super::Engine::submit). Whether the sample was still running is only
    /// known on the engine's thread: if not, the branch's stream ends with
    /// [`GenerationError::Refused`].
    pub fn fork(&self, sample: u32, branch: Request) -> Result<Self, SubmitError> {
        if sample >= self.samples {
            return Err(SubmitError::NoSuchSample { sample, samples: self.samples });
        }
        let engine = self.engine.upgrade().ok_or(SubmitError::ShuttingDown)?;
        let parent = SequenceId { request: self.id, index: sample };
        let (id, samples, reader) = engine.fork(parent, branch)?;
        Ok(Self::new(id, samples, reader, &engine))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.abort();
    }
}

impl Stream for Generation {
    type Item = Result<GenerationEvent, GenerationError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.reader.poll(context)
    }
}

/// Iterates over a generation, blocking.
#[derive(Debug)]
pub struct Events(Generation);

impl Iterator for Events {
    type Item = Result<GenerationEvent, GenerationError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.recv()
    }
}

impl IntoIterator for Generation {
    type Item = Result<GenerationEvent, GenerationError>;
    type IntoIter = Events;

    fn into_iter(self) -> Events {
        Events(self)
    }
}

/// A sample on its way to an [`Output`].
#[derive(Default)]
struct Draft {
    text: String,
    tokens: Vec<u32>,
    token_times: Vec<Instant>,
    logprobs: Vec<TokenLogprobs>,
    finished: Option<Finished>,
}

impl Draft {
    fn add(&mut self, event: GenerationEvent) {
        match event {
            GenerationEvent::Token { token, logprobs, at, .. } => {
                self.tokens.push(token);
                self.token_times.push(at);
                self.logprobs.extend(logprobs.map(|logprobs| *logprobs));
            }
            GenerationEvent::Text { text, .. } => self.text.push_str(&text),
            GenerationEvent::Finished(finished) => self.finished = Some(finished),
        }
    }

    fn output(self) -> Option<Output> {
        let Self { text, tokens, token_times, logprobs, finished } = self;
        let Finished { sample, reason, usage } = finished?;
        Some(Output { sample, text, tokens, token_times, logprobs, reason, usage })
    }
}
