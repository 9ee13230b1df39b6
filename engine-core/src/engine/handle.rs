//! The handle that callers hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::builder::EngineBuilder;
use super::command::Command;
use super::generation::Generation;
use super::intake::Intake;
use super::limits::EngineLimits;
use super::meters::EngineSnapshot;
use super::shared::Shared;
use super::threads::Threads;
use crate::error::{EngineDead, GenerateError, SubmitError};
use crate::request::{Output, Request, SamplingParams};
use crate::schedule::{RequestId, SequenceId};
use crate::text::{ChatTemplate, Tokenizer};

/// A running model. Clones are handles of the same engine; it can be called from any thread.
///
/// Dropping the last handle ends the engine as [`Shutdown::Now`] does: streams that are still
/// being read end with [`FinishReason::Abort`](crate::request::FinishReason::Abort).
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// How an engine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Take no new requests, finish those that were taken.
    Drain,
    /// Give up all requests. Their streams end with
    /// [`FinishReason::Abort`](crate::request::FinishReason::Abort).
    Now,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) intake: Intake,
    limits: EngineLimits,
    next_request: AtomicU64,
    threads: Mutex<Option<Threads>>,
}

impl Engine {
    /// Begins to set up an engine.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::new()
    }

    pub(super) fn new(
        shared: Arc<Shared>,
        intake: Intake,
        limits: EngineLimits,
        threads: Threads,
    ) -> Self {
        let next_request = AtomicU64::new(0);
        let threads = Mutex::new(Some(threads));
        Self { inner: Arc::new(Inner { shared, intake, limits, next_request, threads }) }
    }

    /// Takes a request. Text is tokenized on the calling thread; nothing blocks.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]: everything that is wrong with a request is found here, before it changes
    /// anything.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        self.inner.check_open()?;
        let id = self.inner.new_id();
        let (samples, reader) = self.inner.intake.admit(id, request, &self.inner.shared.queue)?;
        let generation = Generation::new(id, samples.len() as u32, reader, &self.inner);
        self.inner.send(Command::Submit(samples))?;
        Ok(generation)
    }

    /// Takes a request and waits for all of its samples.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit) and [`Generation::wait`].
    pub fn generate(&self, request: Request) -> Result<Vec<Output>, GenerateError> {
        Ok(self.submit(request)?.wait()?)
    }

    /// What the engine can hold, and what is odd about it.
    pub fn limits(&self) -> &EngineLimits {
        &self.inner.limits
    }

    /// What it has done so far and does now, as of the last step.
    pub fn snapshot(&self) -> EngineSnapshot {
        let shared = &self.inner.shared;
        // Before the rest: what stops being queued while this runs is then counted as running.
        let queued = shared.queue.len();
        EngineSnapshot { queued, ..*shared.snapshot.lock() }
    }

    /// Takes the changes of the prefix cache since the last call: pages stored, removed, cleared,
    /// with chained hashes, for a router that places requests by cached prefix. Empty unless
    /// [`EngineOptions::cache_events`](super::EngineOptions::cache_events) is set. A gap in the
    /// sequence numbers says that some were lost because nobody took them in time.
    pub fn take_cache_events(&self) -> Vec<radix_cache::Event> {
        self.inner.shared.cache_events.lock().drain(..).collect()
    }

    /// The tokenizer, if it has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.inner.intake.tokenizer.as_ref()
    }

    /// The chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.intake.chat_template.as_ref()
    }

    /// The sampling that the model's files recommend: the default, where they say nothing.
    pub fn recommended_sampling(&self) -> SamplingParams {
        self.inner.intake.recommended.clone()
    }

    /// What ended the engine, if it has died.
    pub fn dead(&self) -> Option<EngineDead> {
        self.inner.shared.dead.get().cloned()
    }

    /// Ends the engine, for all handles, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// [`EngineDead`] if it died instead, now or before.
    pub fn shutdown(&self, how: Shutdown) -> Result<(), EngineDead> {
        self.inner.shutdown(how);
        self.dead().map_or(Ok(()), Err)
    }
}

impl Inner {
    pub(super) fn new_id(&self) -> RequestId {
        RequestId(self.next_request.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn check_open(&self) -> Result<(), SubmitError> {
        match self.shared.dead.get() {
            Some(dead) => Err(dead.clone().into()),
            None if self.shared.is_closing.load(Ordering::Acquire) => {
                Err(SubmitError::ShuttingDown)
            }
            None => Ok(()),
        }
    }

    /// Branches of a running sample.
    pub(super) fn fork(
        &self,
        parent: SequenceId,
        branch: Request,
    ) -> Result<(RequestId, u32, crate::request::Reader), SubmitError> {
        self.check_open()?;
        let id = self.new_id();
        let (branches, reader) = self.intake.admit_branch(id, branch, &self.shared.queue)?;
        let samples = branches.len() as u32;
        self.send(Command::Fork { parent, branches })?;
        Ok((id, samples, reader))
    }

    fn send(&self, command: Command) -> Result<(), SubmitError> {
        self.shared.commands.post(command).map_err(|_| {
            let dead = self.shared.dead.get().cloned();
            dead.map_or(SubmitError::ShuttingDown, SubmitError::Dead)
        })
    }

    fn shutdown(&self, how: Shutdown) {
        self.shared.is_closing.store(true, Ordering::Release);
        let command = match how {
            Shutdown::Drain => Command::Drain,
            Shutdown::Now => Command::AbortAll,
        };
        // If nobody receives it, the engine has ended already.
        let _ = self.shared.commands.post(command);
        match self.threads.lock().take() {
            Some(threads) => threads.join(&self.shared),
            // Another handle is waiting, or has waited, for the threads.
            None => self.shared.wait_until_ended(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.threads.get_mut().is_some() {
            self.shutdown(Shutdown::Now);
        }
    }
}
