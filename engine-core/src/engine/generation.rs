//! The reading end of a request.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;

use super::command::{Command, Submission};
use super::handle::Inner;
use super::shared::Shared;
use crate::error::{EngineDead, GenerationError, SubmitError};
use crate::request::{
    Embedding, Finished, GenerationEvent, Output, Reader, Request, TokenLogprobs,
};
use crate::schedule::{RequestId, SequenceId};

/// A request that is being answered: a stream of what happens to its samples, which ends when all
/// of them have ended.
///
/// Read it on a thread ([`recv`](Self::recv), or as an iterator) or in an async task (it is a
/// [`Stream`]; no particular runtime is needed). What was generated and not read is kept, so a
/// slow reader holds nobody up. Dropping it gives the request up.
#[derive(Debug)]
pub struct Generation {
    handle: AbortHandle,
    prompt_tokens: u32,
    reader: Reader,
    /// Weak, so that a stream doesn't keep an engine alive that nobody can call.
    engine: Weak<Inner>,
}

/// Gives a request up, from any thread and whoever reads it.
#[derive(Clone, Debug)]
pub struct AbortHandle {
    id: RequestId,
    samples: u32,
    shared: Arc<Shared>,
}

impl AbortHandle {
    /// Gives the request up. Its samples end with
    /// [`FinishReason::Abort`](crate::request::FinishReason::Abort) unless they end otherwise
    /// before that is seen; nothing happens where all have ended.
    pub fn abort(&self) {
        let (request, samples) = (self.id, self.samples);
        // If nobody receives it, the engine has ended, and so have the samples.
        let _ = self.shared.commands.post(Command::Abort { request, samples });
    }
}

impl Generation {
    pub(super) fn new(
        id: RequestId,
        submissions: &[Submission],
        reader: Reader,
        engine: &Arc<Inner>,
    ) -> Self {
        let prompt = submissions.first().map_or(0, |first| first.arrival.prompt.len());
        let shared = Arc::clone(&engine.shared);
        Self {
            handle: AbortHandle { id, samples: submissions.len() as u32, shared },
            prompt_tokens: u32::try_from(prompt).unwrap_or(u32::MAX),
            reader,
            engine: Arc::downgrade(engine),
        }
    }

    /// Number of samples, and so of [`GenerationEvent::Finished`] or errors to come in all.
    pub fn samples(&self) -> u32 {
        self.handle.samples
    }

    /// Tokens of the prompt as it was submitted. A branch begins with its parent's as well, which
    /// [`GenerationEvent::Admitted`] counts.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// What happens next; `None` when all samples have ended. Blocks until something happens.
    pub fn recv(&mut self) -> Option<Result<GenerationEvent, GenerationError>> {
        match self.reader.recv(None) {
            Poll::Ready(item) => item,
            // Without a deadline the reader is never pending.
            Poll::Pending => None,
        }
    }

    /// As [`recv`](Self::recv), but pending if nothing happens in so long a time.
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Poll<Option<Result<GenerationEvent, GenerationError>>> {
        self.reader.recv(Instant::now().checked_add(timeout))
    }

    /// As [`recv`](Self::recv), but pending if nothing has happened yet. Never blocks.
    pub fn try_recv(&mut self) -> Poll<Option<Result<GenerationEvent, GenerationError>>> {
        self.reader.try_recv()
    }

    /// Waits for all samples.
    ///
    /// # Errors
    ///
    /// The first error of any of them; the others are given up then.
    pub fn wait(mut self) -> Result<Vec<Output>, GenerationError> {
        let mut drafts: Vec<Draft> = (0..self.samples()).map(|_| Draft::default()).collect();
        while let Some(event) = self.recv() {
            let event = event?;
            if let Some(draft) = drafts.get_mut(event.sample() as usize) {
                draft.add(event);
            }
        }
        drafts.into_iter().zip(0..).map(|(draft, sample)| draft.output(sample)).collect()
    }

    /// Waits for the vector of an embedding request.
    pub(super) fn wait_for_embedding(mut self) -> Result<Embedding, GenerationError> {
        let mut draft = Draft::default();
        while let Some(event) = self.recv() {
            draft.add(event?);
        }
        draft.embedding()
    }

    /// As [`wait_for_embedding`](Self::wait_for_embedding), in a task.
    pub(super) async fn embedding(self) -> Result<Embedding, GenerationError> {
        let mut draft = Draft::default();
        while let Some(event) = poll_fn(|context| self.reader.poll(context)).await {
            draft.add(event?);
        }
        draft.embedding()
    }

    /// Gives the request up, as [`AbortHandle::abort`] does.
    pub fn abort(&self) {
        if !self.reader.has_ended() {
            self.handle.abort();
        }
    }

    /// What gives the request up from elsewhere. It keeps nothing alive.
    pub fn abort_handle(&self) -> AbortHandle {
        self.handle.clone()
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
        let samples = self.samples();
        if sample >= samples {
            return Err(SubmitError::NoSuchSample { sample, samples });
        }
        let engine = self.engine.upgrade().ok_or(SubmitError::ShuttingDown)?;
        engine.fork(SequenceId { request: self.handle.id, index: sample }, branch)
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
    prompt_logprobs: Vec<TokenLogprobs>,
    vector: Vec<f32>,
    finished: Option<Finished>,
}

impl Draft {
    fn add(&mut self, event: GenerationEvent) {
        match event {
            GenerationEvent::Admitted { .. } => {}
            GenerationEvent::Prompt { mut logprobs, .. } => {
                self.prompt_logprobs.append(&mut logprobs);
            }
            GenerationEvent::Token { token, logprobs, at, .. } => {
                self.tokens.push(token);
                self.token_times.push(at);
                self.logprobs.extend(logprobs.map(|logprobs| *logprobs));
            }
            GenerationEvent::Text { text, .. } => self.text.push_str(&text),
            GenerationEvent::Embedding { vector, .. } => self.vector = vector,
            GenerationEvent::Finished(finished) => self.finished = Some(finished),
        }
    }

    fn output(self, sample: u32) -> Result<Output, GenerationError> {
        let Self { text, tokens, token_times, logprobs, prompt_logprobs, finished, .. } = self;
        let finished = finished.ok_or_else(|| EngineDead::new("a sample never finished"))?;
        let Finished { reason, matched, usage, .. } = finished;
        Ok(Output {
            sample,
            text,
            tokens,
            token_times,
            logprobs,
            prompt_logprobs,
            reason,
            matched,
            usage,
        })
    }

    /// An embedding that was given up has no vector.
    fn embedding(self) -> Result<Embedding, GenerationError> {
        let finished = self.finished.filter(|_| !self.vector.is_empty());
        let Finished { usage, .. } = finished.ok_or(GenerationError::GivenUp { sample: 0 })?;
        Ok(Embedding { vector: self.vector, usage })
    }
}
