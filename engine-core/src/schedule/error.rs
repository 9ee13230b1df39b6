//! What a scheduler refuses, and what ends it.

use super::arrival::SequenceId;
use crate::kv::PoolError;

/// Why an input was not applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The caller's mistake. Nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The scheduler can't go on.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
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
    /// A result lacks a token that was asked for, or has more than may be.
    #[error("step {step} returned {found} tokens for output {output}, not 1 to {most}")]
    Answer {
        /// The step.
        step: u64,
        /// Index of the output.
        output: u32,
        /// Tokens that the result has for it.
        found: usize,
        /// Most that it may have.
        most: usize,
    },
    /// Sequences wait and nothing runs, yet none can be admitted.
    #[error("{waiting} sequences wait and none can ever run")]
    Stuck {
        /// How many wait.
        waiting: usize,
    },
    /// A sequence was to do what only one that runs can do.
    #[error("{id:?} has no slot")]
    NotRunning {
        /// Which.
        id: SequenceId,
    },
    /// A page or slot has no owner, or more than one.
    #[error("ownership is broken: {0}")]
    Ownership(String),
}

/// Why a sequence was refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The limit is zero tokens, and nothing is wanted of the prompt.
    #[error("max_tokens is 0, so there is nothing to generate")]
    NothingToGenerate,
    /// The prompt leaves no room for a token.
    #[error(
        "the prompt has {prompt_len} tokens, but the context holds {context_length}, the answer included"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt_len: usize,
        /// Tokens in the context.
        context_length: usize,
    },
    /// Prompt and limit need more pages than there are.
    #[error("prompt and max_tokens need {needed} pages of KV, but there are {capacity} in all")]
    NeverFits {
        /// Pages needed.
        needed: usize,
        /// Pages there are.
        capacity: usize,
    },
    /// Too many wait already.
    #[error("the queue is full: {waiting} sequences wait")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The id is in use.
    #[error("sequence {0:?} exists already")]
    Exists(SequenceId),
    /// The sequence to fork doesn't exist, or has ended.
    #[error("there is no sequence {0:?}")]
    Unknown(SequenceId),
}
