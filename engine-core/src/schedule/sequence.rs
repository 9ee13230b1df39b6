//! One stream of tokens being generated.

use std::ops::Range;
use std::sync::Arc;

use radix_cache::{LockId, Namespace, Retention, Token, TransferId};
use slotmap::new_key_type;

use crate::backend::{SlotId, SlotSampling};

/// A request's number, chosen by whoever submits it. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One of a request's sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    /// The request.
    pub request: RequestId,
    /// Which of its samples, from 0.
    pub index: u32,
}

/// A sequence that wants to run.
#[derive(Clone, Debug)]
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
    /// Its tokens need masks: steps that sample it defer their sampling.
    pub constrained: bool,
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
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

new_key_type! {
    /// A sequence in the scheduler. Generational: never names another sequence later.
    pub(super) struct SequenceKey;
}

/// The state of a sequence: four counts, and what it holds while it runs.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// The known tokens: prompt, then generated.
    pub(super) tokens: Vec<Token>,
    pub(super) prompt_len: usize,
    pub(super) max_tokens: usize,
    pub(super) stop_tokens: Arc<[Token]>,
    pub(super) sampling: Arc<SlotSampling>,
    pub(super) namespace: Namespace,
    pub(super) retention: Retention,
    pub(super) constrained: bool,
    /// Positions whose KV some launched step writes.
    pub(super) launched: usize,
    /// Positions whose KV a retired step wrote.
    pub(super) computed: usize,
    /// Positions whose pages the tree owns and this sequence locks.
    pub(super) protected: usize,
    /// Tokens that launched steps will produce.
    pub(super) pending: usize,
    /// Held while it runs.
    pub(super) place: Option<Place>,
    /// Counts the times that it was put back: rows launched before are not its own any more.
    pub(super) epoch: u32,
    /// Order of arrival.
    pub(super) arrival: u64,
    /// It ran before and goes before any policy.
    pub(super) resumed: bool,
    /// How often a later one was admitted before it.
    pub(super) passed_over: u32,
    /// How often it waited for another one to compute their common prefix, or for room to load.
    pub(super) held: u32,
    /// What it waits for, if a part of its prefix is on its way from the host.
    pub(super) loading: Option<TransferId>,
    /// Positions that were loaded for it since it began to wait.
    pub(super) loaded: Range<usize>,
    /// Nothing has been loaded for it, or tried to be, since it began to wait.
    pub(super) may_load: bool,
}

/// What a running sequence holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) slot: SlotId,
    pub(super) lock: LockId,
}

impl Sequence {
    pub(super) fn new(arrival: Arrival, number: u64) -> Self {
        let Arrival { id, prompt, sampling, max_tokens, stop_tokens, .. } = arrival;
        let Arrival { namespace, retention, constrained, .. } = arrival;
        Self {
            id,
            prompt_len: prompt.len(),
            tokens: prompt,
            max_tokens: max_tokens as usize,
            stop_tokens,
            sampling,
            namespace,
            retention,
            constrained,
            launched: 0,
            computed: 0,
            protected: 0,
            pending: 0,
            place: None,
            epoch: 0,
            arrival: number,
            resumed: false,
            passed_over: 0,
            held: 0,
            loading: None,
            loaded: 0..0,
            may_load: true,
        }
    }

    /// Tokens on the host.
    pub(super) fn known(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens that it may still generate beyond those known or launched.
    pub(super) fn tokens_left(&self) -> usize {
        self.max_tokens.saturating_sub(self.generated() + self.pending)
    }

    /// Tokens, known or to be produced by launched steps, whose KV no launched step writes. One
    /// means decode, more means prefill.
    pub(super) fn unlaunched(&self) -> usize {
        self.known() + self.pending - self.launched
    }

    pub(super) fn is_decoding(&self) -> bool {
        self.unlaunched() == 1
    }

    /// Some of what was known when it was admitted is not retired yet.
    pub(super) fn is_prefilling(&self) -> bool {
        self.computed + 1 < self.known()
    }
}
