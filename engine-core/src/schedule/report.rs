//! What the scheduler says: plans, events, counts, and what is wrong with it.

use radix_cache::Token;

use super::arrival::{FinishReason, SequenceId};
use crate::backend::{Batch, PageCopy, Sampled};

/// What the engine does next.
#[derive(Clone, Copy, Debug)]
pub enum Plan<'a> {
    /// Launch a step, which counts as launched.
    Launch(Step<'a>),
    /// Wait for the oldest step or copies in flight, commit them, and plan again.
    Sync {
        /// Copies to start first, which count as started. Often none.
        copies: &'a [PageCopy],
    },
    /// Nothing can run until something arrives.
    Idle,
}

/// A step to launch.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// What to launch.
    pub batch: Batch<'a>,
    /// The outputs that wait for a mask before they are sampled.
    pub deferred: &'a [Deferred],
    /// Copies between the tiers to start after the launch. Often none.
    pub copies: &'a [PageCopy],
}

/// An output that waits for a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deferred {
    /// Index into [`Batch::outputs`].
    pub output: u32,
    /// Whose it is.
    pub id: SequenceId,
}

/// What happened to a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
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
        /// The token.
        token: Token,
        /// Its log probability, where that was asked for.
        logprob: Option<f32>,
        /// The likeliest tokens in its place, most likely first, where they were asked for.
        top: &'a [(Token, f32)],
    },
    /// How likely a run of its prompt's tokens is.
    Scored {
        /// Who.
        id: SequenceId,
        /// Position of the run's first token.
        position: u32,
        /// The tokens with their log probabilities. Their [`Sampled::top`] point into `top`.
        tokens: &'a [Sampled],
        /// The likeliest tokens in their places.
        top: &'a [(Token, f32)],
    },
    /// A part of the vector of its prompt.
    Pooled {
        /// Who.
        id: SequenceId,
        /// How many positions it is the mean of.
        positions: u32,
        /// The vector.
        vector: &'a [f32],
    },
    /// It ended and holds nothing any more.
    Finished {
        /// Who.
        id: SequenceId,
        /// Why.
        reason: &'a FinishReason,
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
    /// Rows launched to verify proposed tokens.
    pub verification_rows: u64,
    /// Tokens that were proposed and verified.
    pub proposed_tokens: u64,
    /// Of those, tokens that the model generates as well.
    pub accepted_tokens: u64,
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
