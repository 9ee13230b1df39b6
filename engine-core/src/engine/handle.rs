//! The handle that callers hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::builder::EngineBuilder;
use super::command::{Command, QueuePlace, Submission};
use super::facts::ModelFacts;
use super::generation::Generation;
use super::intake::Intake;
use super::limits::EngineLimits;
use super::meters::EngineSnapshot;
use super::oneshot::oneshot;
use super::shared::Shared;
use super::submitting::Submitting;
use super::threads::{Threads, is_engine_thread};
use super::workers::Workers;
use crate::backend::Footprint;
use crate::error::{EngineDead, GenerateError, SubmitError};
use crate::request::{EmbedRequest, Embedding, Output, Request, SamplingParams};
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
    pub(super) limits: EngineLimits,
    pub(super) footprint: Option<Footprint>,
    pub(super) facts: ModelFacts,
    /// Tokenize for those who don't want to.
    pub(super) tokenizers: Workers,
    pub(super) next_request: AtomicU64,
    pub(super) threads: Mutex<Option<Threads>>,
}

impl Engine {
    /// Begins to set up an engine.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Takes a request. Renders and tokenizes its prompt on the calling thread, which takes time in
    /// proportion to its length; never waits, neither for room nor for a step.
    /// [`submit_async`](Self::submit_async) leaves that work to another thread.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]: everything that is wrong with a request is found here, before it changes
    /// anything.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        self.inner.check_open()?;
        let places = self.inner.enter(std::slice::from_ref(&request))?;
        self.inner.submit(request, places)
    }

    /// Takes several requests, or none of them: they join the queue together, in their order.
    /// Otherwise as [`submit`](Self::submit).
    ///
    /// # Errors
    ///
    /// [`SubmitError::QueueFull`] if the queue hasn't room for all, [`SubmitError::OneOfSeveral`]
    /// if something is wrong with one.
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<Generation>, SubmitError> {
        self.inner.check_open()?;
        let mut places = self.inner.enter(&requests)?;
        let mut generations = Vec::with_capacity(requests.len());
        let mut all = Vec::with_capacity(places.len());
        for (index, request) in requests.into_iter().enumerate() {
            let own = places.drain(..request.sampling.n as usize).collect();
            let taken = self.inner.prepare(request, own);
            let (generation, mut samples) = taken.map_err(|error| of_several(index, error))?;
            generations.push(generation);
            all.append(&mut samples);
        }
        self.inner.send(Command::Submit(all))?;
        Ok(generations)
    }

    /// Takes a request without work on the calling thread: its prompt is rendered and tokenized by
    /// a thread of the engine. The place in the queue is taken now. Dropping the future gives the
    /// request up. Needs no particular runtime.
    pub fn submit_async(&self, request: Request) -> Submitting {
        Submitting::start(&self.inner, request)
    }

    /// Takes a request and waits for all of its samples.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit) and [`Generation::wait`]; [`SubmitError::OwnThread`] when called
    /// by a constraint or a waker on a thread of the engine.
    pub fn generate(&self, request: Request) -> Result<Vec<Output>, GenerateError> {
        check_may_wait()?;
        Ok(self.submit(request)?.wait()?)
    }

    /// Computes the vector of a text and waits for it. Prefixes are shared with requests, through
    /// the cache and in the batch; no token is sampled.
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate).
    pub fn embed(&self, request: EmbedRequest) -> Result<Embedding, GenerateError> {
        check_may_wait()?;
        Ok(self.submit(request.into())?.wait_for_embedding()?)
    }

    /// As [`embed`](Self::embed), for an async task. Dropping the future gives the request up.
    pub fn embed_async(
        &self,
        request: EmbedRequest,
    ) -> impl Future<Output = Result<Embedding, GenerateError>> + Send + 'static {
        let submitting = self.submit_async(request.into());
        async move { Ok(submitting.await?.embedding().await?) }
    }

    /// What the engine can hold, and what is odd about it.
    pub fn limits(&self) -> &EngineLimits {
        &self.inner.limits
    }

    /// What the engine took of the device's memory, counted by the backend; `None` where the
    /// backend doesn't count. [`EngineBuilder::estimate`](super::EngineBuilder::estimate) tells
    /// beforehand.
    pub fn footprint(&self) -> Option<Footprint> {
        self.inner.footprint
    }

    /// What it runs.
    pub fn model(&self) -> &ModelFacts {
        &self.inner.facts
    }

    /// What it has done so far and does now, as of the last step.
    pub fn snapshot(&self) -> EngineSnapshot {
        let shared = &self.inner.shared;
        // Before the rest: what stops being queued while this runs is then counted as running.
        let queued = shared.queue.len();
        EngineSnapshot { queued, endings: shared.endings.get(), ..*shared.snapshot.lock() }
    }

    /// Forgets all cached prefixes that no running request uses, on the device and on the host.
    /// Requests that are submitted later find nothing of them.
    ///
    /// # Errors
    ///
    /// [`SubmitError::ShuttingDown`], [`SubmitError::Dead`].
    pub fn clear_cache(&self) -> Result<(), SubmitError> {
        self.inner.send(Command::ClearCache)
    }

    /// Takes the changes of the prefix cache since the last call: pages stored, removed, cleared,
    /// with chained hashes, for a router that places requests by cached prefix. Empty unless
    /// [`EngineOptions::cache_events`](super::EngineOptions::cache_events) is set. A gap in the
    /// sequence numbers says that some were lost because nobody took them in time.
    pub fn take_cache_events(&self) -> Vec<radix_cache::Event> {
        self.inner.shared.cache_events.lock().drain(..).collect()
    }

    /// As [`take_cache_events`](Self::take_cache_events), but waits until there is one, `timeout`
    /// has passed or the engine has ended.
    pub fn wait_for_cache_events(&self, timeout: Duration) -> Vec<radix_cache::Event> {
        let deadline = Instant::now().checked_add(timeout);
        let shared = &self.inner.shared;
        let mut events = shared.cache_events.lock();
        while events.is_empty() && !shared.has_ended() && !is_engine_thread() {
            match deadline {
                None => shared.cache_changed.wait(&mut events),
                Some(deadline) => {
                    if shared.cache_changed.wait_until(&mut events, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        events.drain(..).collect()
    }

    /// The whole prefix cache as events, parents first, for somebody who starts to follow it. They
    /// carry the sequence number of the change that comes next. Empty unless
    /// [`EngineOptions::cache_events`](super::EngineOptions::cache_events) is set. Waits for the
    /// step that is running.
    ///
    /// # Errors
    ///
    /// [`SubmitError::ShuttingDown`], [`SubmitError::Dead`], and [`SubmitError::OwnThread`].
    pub fn dump_cache_events(&self) -> Result<Vec<radix_cache::Event>, SubmitError> {
        check_may_wait()?;
        let (answer, question) = oneshot();
        self.inner.send(Command::DumpCache(answer))?;
        question.wait().ok_or_else(|| self.inner.why_closed())
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

    /// Ends the engine, for all handles, and waits until it has ended. Called by a constraint or a
    /// waker on a thread of an engine, it doesn't wait.
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
    pub(super) fn check_open(&self) -> Result<(), SubmitError> {
        let is_closing = self.shared.is_closing.load(Ordering::Acquire);
        if is_closing || self.shared.dead.get().is_some() { Err(self.why_closed()) } else { Ok(()) }
    }

    /// Checks what is quickly checked, and takes a place in the queue for each sample.
    pub(super) fn enter(&self, requests: &[Request]) -> Result<Vec<QueuePlace>, SubmitError> {
        for (index, request) in requests.iter().enumerate() {
            let checked = self.intake.check(request);
            let error = |error| if requests.len() > 1 { of_several(index, error) } else { error };
            checked.map_err(error)?;
        }
        let samples = requests.iter().map(|request| request.sampling.n as usize).sum();
        let limit = self.shared.queue.limit();
        self.shared.queue.enter(samples).ok_or(SubmitError::QueueFull { limit })
    }

    /// Takes a request that has its places.
    pub(super) fn submit(
        self: &Arc<Self>,
        request: Request,
        places: Vec<QueuePlace>,
    ) -> Result<Generation, SubmitError> {
        let (generation, samples) = self.prepare(request, places)?;
        self.send(Command::Submit(samples))?;
        Ok(generation)
    }

    fn prepare(
        self: &Arc<Self>,
        request: Request,
        places: Vec<QueuePlace>,
    ) -> Result<(Generation, Vec<Submission>), SubmitError> {
        let id = self.new_id();
        let (samples, reader) = self.intake.admit(id, request, places)?;
        Ok((Generation::new(id, &samples, reader, self), samples))
    }

    /// Branches of a running sample.
    pub(super) fn fork(
        self: &Arc<Self>,
        parent: SequenceId,
        branch: Request,
    ) -> Result<Generation, SubmitError> {
        self.check_open()?;
        let places = self.enter(std::slice::from_ref(&branch))?;
        let id = self.new_id();
        let (branches, reader) = self.intake.admit_branch(id, branch, places)?;
        let generation = Generation::new(id, &branches, reader, self);
        self.send(Command::Fork { parent, branches })?;
        Ok(generation)
    }

    fn new_id(&self) -> RequestId {
        RequestId(self.next_request.fetch_add(1, Ordering::Relaxed))
    }

    fn send(&self, command: Command) -> Result<(), SubmitError> {
        self.shared.commands.post(command).map_err(|_| self.why_closed())
    }

    fn why_closed(&self) -> SubmitError {
        self.shared.dead.get().cloned().map_or(SubmitError::ShuttingDown, SubmitError::Dead)
    }

    fn shutdown(&self, how: Shutdown) {
        self.shared.is_closing.store(true, Ordering::Release);
        let command = match how {
            Shutdown::Drain => Command::Drain,
            Shutdown::Now => Command::AbortAll,
        };
        // If nobody receives it, the engine has ended already.
        let _ = self.shared.commands.post(command);
        if is_engine_thread() {
            return;
        }
        let threads = self.threads.lock().take();
        match threads {
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
        // Still there on a thread of an engine, which must not wait for itself.
        if let Some(threads) = self.threads.get_mut().take() {
            threads.detach();
        }
    }
}

fn of_several(index: usize, error: SubmitError) -> SubmitError {
    SubmitError::OneOfSeveral { index, error: Box::new(error) }
}

/// An engine's thread that waited for the engine would wait for itself.
fn check_may_wait() -> Result<(), SubmitError> {
    if is_engine_thread() { Err(SubmitError::OwnThread) } else { Ok(()) }
}
