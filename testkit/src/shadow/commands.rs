//! What was launched and has not run yet, in order.

use std::sync::Arc;

use engine_core::backend::{Batch, GroupId, OutputRequest, PageCopy, SlotSampling, Want};
use engine_core::{PageId, Token};

use super::kv::Sequence;

/// One thing to do, when its turn comes.
#[derive(Debug)]
pub(super) enum Command {
    /// A sequence moves in.
    Open { opening: u64, sampling: Arc<SlotSampling> },
    /// A sequence moves out.
    Close { opening: u64 },
    /// Copy a page.
    Copy { group: GroupId, from: PageId, to: PageId },
    /// Pages are free from here on.
    Free { group: GroupId, pages: Vec<PageId> },
    /// Run a step.
    Step(Step),
    /// Copy pages between the tiers.
    Transfer { ticket: u64, copies: Vec<PageCopy>, lost: bool },
}

impl Command {
    /// The ticket that stands for it, if somebody waits for it.
    pub(super) fn ticket(&self) -> Option<u64> {
        match self {
            Self::Step(Step { ticket, .. }) | Self::Transfer { ticket, .. } => Some(*ticket),
            _ => None,
        }
    }
}

/// A launched step, with copies of all that it borrowed.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) ticket: u64,
    pub(super) number: u64,
    pub(super) rows: Vec<StepRow>,
    pub(super) sampling: Sampling,
    /// The memory was lost after it was launched.
    pub(super) lost: bool,
}

/// A row with its tables.
#[derive(Debug)]
pub(super) struct StepRow {
    pub(super) sequence: Sequence,
    pub(super) opening: u64,
    /// Its seed, if that is known to be its own.
    pub(super) own_seed: Option<u64>,
    /// `None`: the token that the step before made the slot's next one.
    pub(super) tokens: Vec<Option<Token>>,
    /// Index of its first token in the batch.
    pub(super) first_token: u32,
    pub(super) position: u32,
    /// By group.
    pub(super) tables: Vec<Vec<PageId>>,
    pub(super) outputs: Vec<StepOutput>,
}

/// An output with what it refers to.
#[derive(Debug)]
pub(super) struct StepOutput {
    /// Among the batch's.
    pub(super) index: u32,
    pub(super) request: OutputRequest,
    /// The tokens to score.
    pub(super) targets: Vec<Token>,
}

impl StepOutput {
    /// A copy of an output of a batch that was checked.
    pub(super) fn new(batch: &Batch<'_>, index: u32) -> Self {
        let request = batch.outputs[index as usize];
        let targets = match request.want {
            Want::Score { targets, .. } => batch.targets[targets.range()].to_vec(),
            _ => Vec::new(),
        };
        Self { index, request, targets }
    }
}

/// A mask with its words.
#[derive(Debug)]
pub(super) struct KeptMask {
    /// Output, and token of its run.
    pub(super) place: (u32, u32),
    pub(super) allowed: Vec<u32>,
}

/// When and how a step's outputs are sampled.
#[derive(Debug)]
pub(super) enum Sampling {
    /// With the step.
    AtOnce,
    /// Deferred, and not asked for yet.
    Deferred,
    /// Deferred, and asked for under masks.
    Masked(Vec<KeptMask>),
}
