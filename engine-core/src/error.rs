//! What the engine tells its callers when something is wrong.
//!
//! Three kinds: the caller's mistake ([`SubmitError`], found before any state changes), the
//! device's trouble ([`GenerationError`]), and a broken invariant, which ends the engine
//! ([`EngineDead`]) rather than letting it go on with wrong answers.

use std::fmt;
use std::sync::Arc;

use radix_cache::Token;

use crate::backend::BackendError;
use crate::model::{OpenError, ProgramError};
use crate::request::ParamsError;
use crate::schedule::{Refusal, ScheduleError};
use crate::text::TextError;
use crate::weights::WeightsError;

/// Why an engine can't be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Tokenizer or chat template can't be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The configuration doesn't make a program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A weight can't be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The backend can't compile the model.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The scheduler can't be built with these limits.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// An option that makes no sense.
    #[error("invalid {option}: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The device's memory doesn't hold the weights and enough KV for a single request.
    #[error(
        "{available} bytes are left for KV beside the weights; one page of {page_size} tokens \
         takes {page_bytes}"
    )]
    NoRoomForKv {
        /// Bytes for KV.
        available: u64,
        /// Tokens in a page.
        page_size: usize,
        /// Bytes of a page.
        page_bytes: u64,
    },
    /// A host tier was asked for, but the backend has no memory for one.
    #[error("the backend `{backend}` has no host memory for KV")]
    NoHostMemory {
        /// The backend's description.
        backend: String,
    },
    /// The host tier is larger than the backend may use on the host, or smaller than a page.
    #[error(
        "the host tier needs {needed} bytes of the host's {available}: a page of {page_size} \
         tokens takes {page_bytes}"
    )]
    HostMemory {
        /// Bytes that it would take, with a page at least.
        needed: u64,
        /// Bytes that the backend may use there.
        available: u64,
        /// Tokens in a page.
        page_size: usize,
        /// Bytes of a page.
        page_bytes: u64,
    },
    /// The progress report that was brought along panicked.
    #[error("the progress report panicked: {reason}")]
    Progress {
        /// What the panic said.
        reason: String,
    },
    /// A thread can't be started.
    #[error("cannot start the {name} thread: {source}")]
    Thread {
        /// Which.
        name: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Why a request was not taken. Nothing changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// A sampling parameter makes no sense.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The prompt is empty or too long, or can never fit.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many requests wait already: try again later.
    #[error("the queue is full: it holds {limit} requests")]
    QueueFull {
        /// The most that may wait ([`EngineOptions::max_queued_requests`](crate::engine::EngineOptions)).
        limit: usize,
    },
    /// The engine was started without preparing for vectors
    /// ([`EngineOptions::embeddings`](crate::engine::EngineOptions)), which its backend needs.
    #[error("the engine was started without embeddings")]
    NoEmbeddings,
    /// A conversation without a message: there is nothing to answer.
    #[error("the prompt has no messages")]
    NoMessages,
    /// A token id in the prompt that the model doesn't have.
    #[error("prompt token {index} is {token}, but the vocabulary has {vocab_size}")]
    UnknownToken {
        /// Its place in the prompt.
        index: usize,
        /// The id.
        token: Token,
        /// Number of ids.
        vocab_size: u32,
    },
    /// The engine was built without a tokenizer or a chat template.
    #[error("{what} needs a {needed}, which this engine doesn't have")]
    NoText {
        /// What was asked for.
        what: &'static str,
        /// What is missing.
        needed: &'static str,
    },
    /// The text can't be tokenized, or the chat template refuses the messages.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The request to fork has no such sample.
    #[error("sample {sample} doesn't exist: the request has {samples}")]
    NoSuchSample {
        /// The sample that was named.
        sample: u32,
        /// How many there are.
        samples: u32,
    },
    /// The request's token constraint could not be copied for its samples.
    #[error("the token constraint {problem}")]
    Constraint {
        /// What happened.
        problem: String,
    },
    /// One of several requests that were submitted together; none was taken.
    #[error("request {index} of several: {error}")]
    OneOfSeveral {
        /// Which, from 0.
        index: usize,
        /// What is wrong with it.
        error: Box<SubmitError>,
    },
    /// A thread of an engine, on which a constraint or a waker ran, was to wait for an engine.
    #[error("a thread of the engine can't wait for it")]
    OwnThread,
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The engine has ended.
    #[error(transparent)]
    Dead(#[from] EngineDead),
}

/// Why a stream ended without a finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// The device failed on this sample. Others are not affected.
    #[error("sample {sample} failed: {reason}")]
    Failed {
        /// The sample.
        sample: u32,
        /// What the device said.
        reason: String,
    },
    /// The token constraint of a sample panicked, or left it nothing to say. Others are not
    /// affected.
    #[error("sample {sample} ended: its token constraint {problem}")]
    Constraint {
        /// The sample.
        sample: u32,
        /// What happened.
        problem: String,
    },
    /// The waker that the reader's task left panicked. The request ends, with all its samples.
    #[error("the waker of the reader {problem}")]
    Waker {
        /// What happened.
        problem: String,
    },
    /// An embedding was given up, by a shutdown, before its vector was known.
    #[error("sample {sample} was given up")]
    GivenUp {
        /// The sample.
        sample: u32,
    },
    /// A branch could not be forked, usually since its parent had ended.
    #[error("sample {sample} was refused: {refusal}")]
    Refused {
        /// The sample.
        sample: u32,
        /// Why.
        refusal: Refusal,
    },
    /// The engine has ended.
    #[error(transparent)]
    Dead(#[from] EngineDead),
}

/// Why [`Engine::generate`](crate::engine::Engine::generate) has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The request was not taken.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// Its stream ended without a finish.
    #[error(transparent)]
    Generation(#[from] GenerationError),
}

/// The engine has ended and can't be used again: the device is lost or hung, something inside
/// panicked, or an invariant broke.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the engine has ended: {reason}")]
pub struct EngineDead {
    reason: Arc<str>,
}

impl EngineDead {
    pub(crate) fn new(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string().into() }
    }

    /// What ended it.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Debug for EngineDead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EngineDead").field(&self.reason).finish()
    }
}
