//! A log of everything that a scheduler was told, with what it decided; and its replay.

use engine_core::PageId;
use engine_core::backend::{
    Batch, GroupId, InputToken, OutputRequest, PageCopy, Row, SharedPrefix, SlotEvent, StepError,
    StepResult,
};
use engine_core::schedule::{
    Arrival, FinishReason, Plan, RequestId, Scheduler, SchedulerConfig, SequenceId,
};

/// One input, and the decision that followed it.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Arrive(Arrival),
    Abort(RequestId, u32),
    End(SequenceId, FinishReason),
    Fork(SequenceId, Arrival),
    Advance(u64),
    Plan(Plan, Option<Snapshot>, Vec<PageCopy>),
    Commit(StepResult, Option<StepError>),
    CommitCopies(Option<StepError>),
}

/// A copy of all that a batch says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    step: u64,
    tokens: Vec<InputToken>,
    pub(crate) rows: Vec<Row>,
    pub(crate) decode_rows: u32,
    /// Sampling seeds of the rows' sequences: who they are.
    pub(crate) seeds: Vec<u64>,
    outputs: Vec<OutputRequest>,
    events: Vec<SlotEvent>,
    shared: Vec<SharedPrefix>,
    tables: Vec<Vec<PageId>>,
}

impl Snapshot {
    pub(crate) fn of(batch: &Batch<'_>) -> Self {
        Self {
            step: batch.step,
            tokens: batch.tokens.to_vec(),
            rows: batch.rows.to_vec(),
            decode_rows: batch.decode_rows,
            seeds: batch.rows.iter().map(|row| batch.slots.sampling(row.slot).seed).collect(),
            outputs: batch.outputs.to_vec(),
            events: batch.events.to_vec(),
            shared: batch.shared.to_vec(),
            tables: batch.rows.iter().map(|row| batch.pages(row, GroupId(0)).to_vec()).collect(),
        }
    }
}

/// Tells a new scheduler the same, and returns the first entry at which it decides otherwise.
pub(crate) fn replay(config: SchedulerConfig, log: &[Entry]) -> Option<usize> {
    let Ok(mut scheduler) = Scheduler::new(config) else { return Some(0) };
    log.iter().position(|entry| match entry.clone() {
        Entry::Arrive(arrival) => {
            // A refusal is a decision too: it shows in the plans that follow.
            let _ = scheduler.arrive(arrival);
            false
        }
        Entry::Abort(request, samples) => scheduler.abort(request, samples).is_err(),
        Entry::End(id, reason) => scheduler.end(id, reason).is_err(),
        Entry::Fork(parent, branch) => {
            let _ = scheduler.fork(parent, branch);
            false
        }
        Entry::Advance(now) => {
            scheduler.advance(now);
            false
        }
        Entry::Plan(plan, batch, copies) => {
            let same = scheduler.plan().ok() == Some(plan);
            let again = (plan == Plan::Launch).then(|| Snapshot::of(&scheduler.batch()));
            !same || again != batch || scheduler.copies() != copies
        }
        Entry::Commit(result, error) => scheduler.commit(&result, error.as_ref()).is_err(),
        Entry::CommitCopies(error) => scheduler.commit_copies(error.as_ref()).is_err(),
    })
}
