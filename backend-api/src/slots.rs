//! What is resident on a device: for each slot a page table per group and sampling state.

use std::sync::Arc;

use radix_cache::{PageId, Token};

use crate::GroupId;

/// A sequence's stable place on the device, below [`Limits::slots`](crate::Limits::slots).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

impl SlotId {
    /// The slot as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An adapter (LoRA) that a slot's sequence runs with; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u32);

impl AdapterId {
    /// The model as it is.
    pub const NONE: Self = Self(0);
}

/// What a slot holds beside its page tables. Fixed while the slot is open.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotState {
    /// How tokens are sampled.
    pub sampling: Arc<SlotSampling>,
    /// What the model is adapted with.
    pub adapter: AdapterId,
}

impl From<Arc<SlotSampling>> for SlotState {
    fn from(sampling: Arc<SlotSampling>) -> Self {
        Self { sampling, adapter: AdapterId::NONE }
    }
}

/// How the tokens of a slot's sequence are sampled. Fixed while the slot is open.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SlotSampling {
    /// 0 is greedy; then no filter applies and no noise is drawn.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is
    /// off.
    pub repetition_penalty: f32,
    /// Subtracted for each time that a token was generated; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once from tokens that were generated; 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Arc<[(Token, f32)]>,
    /// Key of the noise, with `sample_index`, position and token id.
    pub seed: u64,
    /// Which of a request's `n` samples this is.
    pub sample_index: u32,
    /// `Some(k)`: report the sampled token's log probability and the `k` likeliest.
    pub logprobs: Option<u8>,
    /// Tokens that may not be sampled for positions below `suppress_before`: how a minimum
    /// length is kept.
    pub suppress: Arc<[Token]>,
    /// See `suppress`. An absolute position.
    pub suppress_before: u32,
    /// Tokens known when the slot was opened: the prompt, and what was generated before a
    /// retraction. Empty unless a penalty is on, since nothing else reads it.
    pub history: Arc<[Token]>,
    /// How many of `history` are the prompt; the others count as generated.
    pub history_prompt: u32,
}

impl SlotSampling {
    /// Greedy, nothing else.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Arc::from([]),
            seed: 0,
            sample_index: 0,
            logprobs: None,
            suppress: Arc::from([]),
            suppress_before: 0,
            history: Arc::from([]),
            history_prompt: 0,
        }
    }

    /// Whether a penalty is on, so that tokens must be counted.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}

/// State of all slots. The core writes it, backends read it during a launch.
#[derive(Clone, Debug)]
pub struct Slots {
    groups: usize,
    /// `slot * groups + group`. Entries of a windowed group whose positions have all left the
    /// window may be [`PageId::NONE`].
    tables: Vec<Vec<PageId>>,
    states: Vec<SlotState>,
}

impl Slots {
    /// Empty slots.
    pub fn new(slots: u32, groups: usize) -> Self {
        let empty = SlotState::from(Arc::new(SlotSampling::greedy()));
        Self {
            groups,
            tables: vec![Vec::new(); slots as usize * groups],
            states: vec![empty; slots as usize],
        }
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// A slot's page table in a group.
    pub fn pages(&self, slot: SlotId, group: GroupId) -> &[PageId] {
        &self.tables[slot.index() * self.groups + group.index()]
    }

    /// A slot's page table in a group, to change. Every change is announced by a
    /// [`SlotEvent`](crate::SlotEvent) of the next batch.
    pub fn pages_mut(&mut self, slot: SlotId, group: GroupId) -> &mut Vec<PageId> {
        &mut self.tables[slot.index() * self.groups + group.index()]
    }

    /// What the slot holds.
    pub fn state(&self, slot: SlotId) -> &SlotState {
        &self.states[slot.index()]
    }

    /// How the slot's tokens are sampled.
    pub fn sampling(&self, slot: SlotId) -> &Arc<SlotSampling> {
        &self.states[slot.index()].sampling
    }

    /// Moves a sequence in. Its page tables are the caller's to set.
    pub fn open(&mut self, slot: SlotId, state: impl Into<SlotState>) {
        self.states[slot.index()] = state.into();
    }

    /// Number of page groups.
    pub fn groups(&self) -> usize {
        self.groups
    }
}
