//! Steps that are launched and not committed.

use std::collections::VecDeque;

use super::sequence::SequenceKey;

/// Most steps that are launched and not committed.
pub(super) const MAX_IN_FLIGHT: usize = 2;

/// Owns what the commits of launched steps need, oldest first.
#[derive(Debug)]
pub(super) struct Flights {
    in_flight: VecDeque<Launched>,
    /// Retired ones, for their memory.
    spare: Vec<Vec<LaunchedRow>>,
    next_step: u64,
    /// KV was lost: nothing is launched until all that was launched before has ended.
    is_draining: bool,
}

/// A launched step, as far as its commit needs it.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) step: u64,
    pub(super) rows: Vec<LaunchedRow>,
}

/// A row of a launched step.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaunchedRow {
    pub(super) key: SequenceKey,
    /// Which of the sequence's runs it belongs to.
    pub(super) run: u64,
    pub(super) kind: RowKind,
    /// The batch's output whose tokens continue the sequence.
    pub(super) output: Option<u32>,
    /// The batch's output that tells something of the prompt, and after how many positions.
    pub(super) of_prompt: Option<(u32, u32)>,
    /// Positions that exist once the row has run. Of a verification, those that exist in any case.
    pub(super) end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    Decode,
    /// So many tokens are proposed.
    Verify {
        drafted: u32,
    },
    Chunk,
}

impl Flights {
    pub(super) fn new() -> Self {
        Self {
            in_flight: VecDeque::with_capacity(MAX_IN_FLIGHT),
            spare: Vec::with_capacity(MAX_IN_FLIGHT + 1),
            next_step: 0,
            is_draining: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Steps launched since the start.
    pub(super) fn launched(&self) -> u64 {
        self.next_step
    }

    /// Whether another step may be launched.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight.len() < MAX_IN_FLIGHT
    }

    /// Launches nothing more until all is committed that is in flight.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// An empty list of rows.
    pub(super) fn rows(&mut self) -> Vec<LaunchedRow> {
        let mut rows = self.spare.pop().unwrap_or_default();
        rows.clear();
        rows
    }

    /// Counts a step as launched and returns its number.
    pub(super) fn launch(&mut self, rows: Vec<LaunchedRow>) -> u64 {
        let step = self.next_step;
        self.next_step += 1;
        self.is_draining = false;
        self.in_flight.push_back(Launched { step, rows });
        step
    }

    /// The token that a row of the run was to produce is known without. False if no row produces
    /// one token.
    pub(super) fn preempt(&mut self, key: SequenceKey, run: u64) -> bool {
        let rows = self.in_flight.iter_mut().flat_map(|launched| &mut launched.rows);
        let produces = |row: &&mut LaunchedRow| {
            let is_one = !matches!(row.kind, RowKind::Verify { .. });
            row.key == key && row.run == run && row.output.is_some() && is_one
        };
        match rows.filter(produces).last() {
            Some(row) => row.output.take().is_some(),
            None => false,
        }
    }

    /// The oldest step has ended.
    pub(super) fn retire(&mut self) -> Option<Launched> {
        self.in_flight.pop_front()
    }

    /// Takes a list of rows back that is not needed any more.
    pub(super) fn recycle(&mut self, rows: Vec<LaunchedRow>) {
        self.spare.push(rows);
    }
}
