//! What a sequence is to those who submit it.

use std::ops::Range;
use std::sync::Arc;

use radix_cache::{Namespace, Retention, Token};
use serde::{Deserialize, Serialize};

use crate::backend::{PoolKind, Pooling, SlotSampling};

/// A request's number, chosen by whoever submits it. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// One of a request's sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SequenceId {
    /// The request.
    pub request: RequestId,
    /// Which of its samples, from 0.
    pub index: u32,
}

/// A sequence that wants to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Arrival {
    /// Who it is.
    pub id: SequenceId,
    /// Its prompt.
    pub prompt: Vec<Token>,
    /// How tokens are sampled. `history` is filled in by the scheduler.
    pub sampling: Arc<SlotSampling>,
    /// Most tokens to generate.
    pub max_tokens: u32,
    /// Tokens that end it: the model's and the request's.
    pub stop_tokens: Arc<[Token]>,
    /// What it can share pages with.
    pub namespace: Namespace,
    /// How long its prefix should stay cached, beyond its own end.
    pub retention: Retention,
    /// Its tokens need masks: they are sampled once those are there.
    pub constrained: bool,
    /// Its tokens may be proposed and verified several at a time, where the scheduler's
    /// [`speculation`](super::SchedulerConfig::speculation) is on. Changes no token.
    pub speculation: bool,
    /// Higher ones leave the queue first, whatever its policy.
    pub priority: i32,
    /// What is wanted of its prompt.
    pub want: PromptWant,
}

/// What is wanted of a prompt, beside its continuation. With `max_tokens` 0 the sequence ends once
/// that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PromptWant {
    /// Nothing.
    #[default]
    Nothing,
    /// The log probabilities of the tokens from position `from` (1 at least) on, and of the `top`
    /// likeliest in the place of each.
    Scores {
        /// Position of the first token.
        from: u32,
        /// How many of the likeliest tokens.
        top: u8,
    },
    /// A vector. The mean of several positions comes in parts, and is not normalized.
    Vector(Pooling),
}

impl PromptWant {
    /// The positions of a prompt after which something is wanted.
    pub(super) fn positions(self, prompt_len: usize) -> Range<usize> {
        let last = prompt_len.saturating_sub(1);
        match self {
            Self::Nothing => 0..0,
            Self::Scores { from, .. } => (from as usize).saturating_sub(1).min(last)..last,
            Self::Vector(Pooling { kind: PoolKind::Last, .. }) => last..prompt_len,
            Self::Vector(Pooling { kind: PoolKind::Mean, .. }) => 0..prompt_len,
        }
    }
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FinishReason {
    /// It produced an end token or a stop string.
    Stop,
    /// It reached its limit, or the context's.
    Length,
    /// The caller gave it up.
    Abort,
    /// The device failed on it.
    Error(String),
}
