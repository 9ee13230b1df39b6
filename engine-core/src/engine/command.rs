//! What threads tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use radix_cache::Token;

use super::oneshot::Answer;
use super::sample_text::SampleText;
use crate::fence::Fenced;
use crate::request::{TokenConstraint, TokenLogprobs};
use crate::schedule::{Arrival, FinishReason, Refusal, RequestId, SequenceId};

/// To the scheduler thread.
#[derive(Debug)]
pub(super) enum Command {
    /// The samples of a request, or of several.
    Submit(Vec<Submission>),
    /// Branches of a running sequence.
    Fork { parent: SequenceId, branches: Vec<Submission> },
    /// The reader gave the request up.
    Abort { request: RequestId, samples: u32 },
    /// The text thread met a stop string, or can't reach the reader.
    End { id: SequenceId, reason: FinishReason },
    /// Forget the cached prefixes that nobody uses.
    ClearCache,
    /// Tell the whole cache as events.
    DumpCache(Answer<Vec<radix_cache::Event>>),
    /// Take nothing more and end when all has ended.
    Drain,
    /// End everything and stop.
    AbortAll,
}

/// One sample on its way into the queue.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) arrival: Arrival,
    pub(super) constraint: Option<Constraint>,
    pub(super) text: SampleText,
}

/// A constraint, whose drop may panic.
pub(super) type Constraint = Fenced<Box<dyn TokenConstraint>>;

/// To the text thread.
#[derive(Debug)]
pub(super) enum TextMessage {
    /// A sample begins.
    Open(SequenceId, Box<SampleText>),
    /// A branch begins: the prompt that it ends up with, and the token before its first.
    Forked { id: SequenceId, prompt_tokens: u32, last_token: Option<Token> },
    /// It runs for the first time.
    Admitted { id: SequenceId, cached_tokens: u32, at: Instant },
    /// How likely the prompt's tokens from a position were.
    Prompt { id: SequenceId, position: u32, logprobs: Vec<TokenLogprobs> },
    /// Its vector is known.
    Embedding { id: SequenceId, vector: Vec<f32> },
    /// A token is known.
    Token { id: SequenceId, token: Token, logprobs: Option<Box<TokenLogprobs>>, at: Instant },
    /// It ended.
    Finished { id: SequenceId, reason: FinishReason, at: Instant },
    /// Its constraint failed.
    Broken { id: SequenceId, problem: String },
    /// It could not begin.
    Refused { id: SequenceId, refusal: Refusal },
    /// Nothing comes any more.
    Close,
}

/// How many sequences were taken and have not run yet. Bounded, which bounds the memory of an
/// engine that is offered more than it can do.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    queued: Arc<AtomicUsize>,
    limit: usize,
}

/// A place in the queue, given back when dropped.
#[derive(Debug)]
pub(super) struct QueuePlace(Arc<AtomicUsize>);

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self { queued: Arc::new(AtomicUsize::new(0)), limit }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn len(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// That many places, or none.
    pub(super) fn enter(&self, places: usize) -> Option<Vec<QueuePlace>> {
        let room = |queued: usize| queued.checked_add(places).filter(|&sum| sum <= self.limit);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some((0..places).map(|_| QueuePlace(Arc::clone(&self.queued))).collect())
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
