//! What the scheduler says: plans, events, counts, and what is wrong with it.

use super::sequence::{FinishReason, SequenceId};
use crate::kv::PoolError;

/// What the engine should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Launch [`Scheduler::batch`](super::Scheduler::batch).
    Launch,
    /// Wait for the oldest step or copies in flight, commit them, and plan again.
    Sync,
    /// Nothing can run until something arrives.
    Idle,
}

/// What happened to a sequence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// It runs, for the first time.
    Admitted {
        /// Who.
        id: SequenceId,
        /// Prompt tokens whose KV was in the cache.
        cached_tokens: u32,
    },
    /// It has a new token.
    Token {
        /// Who.
        id: SequenceId,
        /// Index into [`StepResult::tokens`](crate::backend::StepResult::tokens) of the result that was committed.
        sampled: u32,
    },
    /// It ended and holds nothing any more.
    Finished {
        /// Who.
        id: SequenceId,
        /// Why.
        reason: FinishReason,
    },
}

/// Counts since the start, and what is so now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchedulerStats {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Steps launched.
    pub steps: u64,
    /// Prompt tokens of admitted sequences.
    pub prompt_tokens: u64,
    /// Of those, tokens whose KV was in the cache.
    pub cached_tokens: u64,
    /// Of those, tokens whose KV was loaded from the host for their sequence.
    pub host_cached_tokens: u64,
    /// Admitted sequences that something had been loaded for.
    pub host_hits: u64,
    /// Positions that launched prefill rows compute, those after a retraction included.
    pub prefill_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Sequences put back because pages ran out.
    pub retractions: u64,
    /// Pages evicted from the tree.
    pub evicted_pages: u64,
    /// Tokens whose KV was loaded from the host, whether or not it was used then.
    pub loaded_tokens: u64,
    /// Pages that were copied to the host.
    pub pages_to_host: u64,
    /// Copies between the tiers that were executed, each of one run of pages.
    pub transfers: u64,
    /// Copies between the tiers that failed.
    pub failed_transfers: u64,
}

/// The scheduler can't go on: its own accounting is broken, or the backend broke its contract.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The limits or the page size make no sense.
    #[error("invalid scheduler configuration: {0}")]
    Config(String),
    /// See [`PoolError`].
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A commit without a launch.
    #[error("a step or copies were committed, but none are in flight")]
    NothingInFlight,
    /// A result lacks a token that was asked for.
    #[error("step {step} returned no token for output {output}")]
    MissingOutput {
        /// The step.
        step: u64,
        /// Index of the output.
        output: u32,
    },
    /// Sequences wait and nothing runs, yet none can be admitted.
    #[error("{waiting} sequences wait and none can ever run")]
    Stuck {
        /// How many wait.
        waiting: usize,
    },
    /// A page or slot has no owner, or more than one.
    #[error("ownership is broken: {0}")]
    Ownership(String),
}
