//! A log of everything that a scheduler was told, with what it decided; and its replay.

use engine_core::PageId;
use engine_core::backend::{
    Batch, GroupId, InputToken, OutputRequest, PageCopy, Row, SharedPrefix, SlotEvent,
};
use engine_core::schedule::{Deferred, Input, Plan, Scheduler, SchedulerConfig};

/// One input, or a decision.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Input(Input<'static>),
    Plan(Planned),
}

/// A copy of all that a plan lends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    /// `None` where nothing was launched.
    pub(crate) batch: Option<Snapshot>,
    pub(crate) copies: Vec<PageCopy>,
    pub(crate) is_idle: bool,
}

/// A copy of all that a step says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    step: u64,
    tokens: Vec<InputToken>,
    pub(crate) rows: Vec<Row>,
    pub(crate) decode_rows: u32,
    /// Sampling seeds of the rows' sequences: who they are.
    pub(crate) seeds: Vec<u64>,
    pub(crate) outputs: Vec<OutputRequest>,
    deferred: Vec<Deferred>,
    events: Vec<SlotEvent>,
    shared: Vec<SharedPrefix>,
    tables: Vec<Vec<PageId>>,
}

impl Planned {
    pub(crate) fn of(plan: &Plan<'_>, groups: usize) -> Self {
        let (batch, copies) = match plan {
            Plan::Launch(step) => {
                (Some(Snapshot::of(&step.batch, step.deferred, groups)), step.copies)
            }
            Plan::Sync { copies } => (None, *copies),
            Plan::Idle => (None, &[][..]),
        };
        Self { batch, copies: copies.to_vec(), is_idle: matches!(plan, Plan::Idle) }
    }
}

impl Snapshot {
    fn of(batch: &Batch<'_>, deferred: &[Deferred], groups: usize) -> Self {
        let groups = || (0..groups as u8).map(GroupId);
        let tables = |&row: &Row| groups().map(move |group| batch.pages(&row, group).to_vec());
        Self {
            step: batch.step,
            tokens: batch.tokens.to_vec(),
            rows: batch.rows.to_vec(),
            decode_rows: batch.decode_rows,
            seeds: batch.rows.iter().map(|row| batch.slots.sampling(row.slot).seed).collect(),
            outputs: batch.outputs.to_vec(),
            deferred: deferred.to_vec(),
            events: batch.events.to_vec(),
            shared: batch.shared.to_vec(),
            tables: batch.rows.iter().flat_map(tables).collect(),
        }
    }
}

/// Tells a new scheduler the same, and returns the first entry at which it decides otherwise.
pub(crate) fn replay(config: SchedulerConfig, log: &[Entry]) -> Option<usize> {
    let groups = config.groups.len();
    let Ok(mut scheduler) = Scheduler::new(config) else { return Some(0) };
    log.iter().position(|entry| match entry.clone() {
        Entry::Input(input) => {
            // A refusal is a decision too: it shows in the plans that follow.
            let _ = scheduler.apply(input);
            false
        }
        Entry::Plan(planned) => {
            let again = scheduler.plan().ok().map(|plan| Planned::of(&plan, groups));
            again != Some(planned)
        }
    })
}
