//! What stays with a slot from step to step.

use std::sync::Arc;

use backend_api::sample::TokenCounts;
use backend_api::{ProgramId, SlotSampling, Token};

/// A slot.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) sampling: Arc<SlotSampling>,
    pub(crate) counts: TokenCounts,
    /// By program.
    pub(crate) next: Vec<NextToken>,
    /// By program: the last step that sampled for the slot on the device, and whether that failed.
    last: Vec<(u64, bool)>,
}

/// What [`InputToken::Produced`](backend_api::InputToken::Produced) stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextToken {
    None,
    Sampled(Token),
    Failed,
    /// The step with this ticket samples it on the device.
    OnDevice(u64),
}

impl Slot {
    pub(crate) fn new(programs: usize) -> Self {
        Self {
            sampling: Arc::new(SlotSampling::greedy()),
            counts: TokenCounts::default(),
            next: vec![NextToken::None; programs],
            last: vec![(u64::MAX, false); programs],
        }
    }

    /// A sequence moves in.
    pub(crate) fn open(&mut self, sampling: &Arc<SlotSampling>) {
        self.counts.open(sampling);
        self.sampling = Arc::clone(sampling);
        self.close();
    }

    /// The sequence moves out.
    pub(crate) fn close(&mut self) {
        self.next.fill(NextToken::None);
    }

    /// Notes what the step with this ticket sampled for the slot. Unless a later step samples for it, or another sequence
    /// moved in, that is its next token.
    pub(crate) fn settle(&mut self, program: ProgramId, ticket: u64, sampled: NextToken) {
        self.last[program.index()] = (ticket, sampled == NextToken::Failed);
        let next = &mut self.next[program.index()];
        if *next == NextToken::OnDevice(ticket) {
            *next = sampled;
        }
    }

    /// Whether the step with this ticket, which has ended, sampled nothing for the slot.
    pub(crate) fn has_failed(&self, program: ProgramId, ticket: u64) -> bool {
        self.last[program.index()] != (ticket, false)
    }
}
