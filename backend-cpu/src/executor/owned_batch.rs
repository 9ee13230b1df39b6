//! An owned copy of what a step needs, handed to the driver thread.

use std::{ops::Range, sync::Arc};

use backend_api::{
    Batch, BatchBounds, Draft, GroupId, InputToken, OutputRequest, PageId, ProgramId, Row,
    RowFailure, SharedPrefix, SlotEvent, SlotId, SlotSampling, Span, StepError, StepResult, Token,
    Want,
};

use super::sampling::{NextToken, ResidentSlot};

/// A step's inputs, and its results on the way back. Kept and reused: in steady state copying a
/// batch allocates nothing.
///
/// The forward pass puts the output rows into another order than the batch, so that logits are
/// computed only where tokens are wanted, and those that wait for masks are one run:
///
/// ```text
/// | tokens, at once | tokens, deferred | vectors |
/// |<-------- logits of these -------->|
/// ```
#[derive(Debug, Default)]
pub(crate) struct OwnedBatch {
    /// The ticket's number.
    pub(crate) number: u64,
    pub(crate) program: ProgramId,
    pub(crate) tokens: Vec<InputToken>,
    pub(crate) rows: Vec<Row>,
    pub(crate) outputs: Vec<OutputRequest>,
    pub(crate) targets: Vec<Token>,
    pub(crate) shared: Vec<SharedPrefix>,
    pub(crate) changes: Vec<SlotChange>,
    /// By token: what `tokens` stand for, known when the step runs.
    pub(crate) resolved: Vec<Token>,
    /// By output row, in the order of the forward pass: the token, as an index into `tokens`.
    pub(crate) output_tokens: Vec<u32>,
    /// By output: its first output row. The others follow.
    first_rows: Vec<u32>,
    /// Output rows whose tokens are wanted at once.
    pub(crate) immediate_rows: usize,
    /// Output rows whose logits are wanted: those, then the deferred ones.
    pub(crate) logit_rows: usize,
    /// What the step has answered so far.
    pub(crate) result: StepResult,
    pub(crate) failures: Vec<RowFailure>,
    /// Page tables of all rows and of the program's groups, one after another.
    pages: Vec<PageId>,
    /// `row * groups + group`: a table in `pages`.
    tables: Vec<Span>,
    groups: usize,
}

/// A slot event with what it refers to.
#[derive(Clone, Debug)]
pub(crate) enum SlotChange {
    Open { slot: SlotId, sampling: Arc<SlotSampling> },
    CopyPage { group: GroupId, from: PageId, to: PageId },
    Close { slot: SlotId },
}

impl OwnedBatch {
    /// Checks `batch` and copies it. `groups` is the number of page groups of its program.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn fill(
        &mut self,
        number: u64,
        batch: &Batch<'_>,
        bounds: &BatchBounds,
        groups: &[usize],
    ) -> Result<(), StepError> {
        batch.check(bounds).map_err(|error| StepError::Batch { step: batch.step, error })?;
        let is_unknown = |want| matches!(want, Want::Verify(draft) if draft != Draft::Chain);
        if batch.outputs.iter().any(|output| is_unknown(output.want)) {
            return Err(StepError::Unsupported { what: "proposals that are no chain" });
        }
        self.number = number;
        self.program = batch.program;
        self.result.clear();
        self.failures.clear();
        copy(&mut self.tokens, batch.tokens);
        copy(&mut self.rows, batch.rows);
        copy(&mut self.outputs, batch.outputs);
        copy(&mut self.targets, batch.targets);
        copy(&mut self.shared, batch.shared);
        self.resolved.clear();
        self.place_outputs();
        self.groups = groups.get(batch.program.index()).copied().unwrap_or(0);
        self.pages.clear();
        self.tables.clear();
        for row in batch.rows {
            for group in 0..self.groups {
                let table = batch.pages(row, bounds.group(batch.program, GroupId(group as u8)));
                let len = row.kv_len().div_ceil(bounds.page_size());
                self.tables.push(Span { start: self.pages.len() as u32, len });
                self.pages.extend_from_slice(&table[..len as usize]);
            }
        }
        self.changes.clear();
        self.changes.extend(batch.events.iter().filter_map(|event| match *event {
            SlotEvent::Open { slot } => {
                Some(SlotChange::Open { slot, sampling: Arc::clone(batch.slots.sampling(slot)) })
            }
            SlotEvent::CopyPage { group, from, to } => {
                Some(SlotChange::CopyPage { group, from, to })
            }
            SlotEvent::Close { slot } => Some(SlotChange::Close { slot }),
            // Rows bring their page tables with them.
            SlotEvent::Pages { .. } => None,
        }));
        Ok(())
    }

    fn place_outputs(&mut self) {
        self.output_tokens.clear();
        self.first_rows.clear();
        self.first_rows.resize(self.outputs.len(), 0);
        let mut ends = [0; 3];
        for (class, end) in ends.iter_mut().enumerate() {
            for (output, first) in self.outputs.iter().zip(&mut self.first_rows) {
                if OutputClass::of(output) as usize == class {
                    *first = self.output_tokens.len() as u32;
                    let Span { start, len } = output.tokens;
                    self.output_tokens.extend(start..start + len);
                }
            }
            *end = self.output_tokens.len();
        }
        [self.immediate_rows, self.logit_rows, _] = ends;
    }

    /// The page table of a row in a group of the program.
    pub(crate) fn table(&self, row: usize, group: GroupId) -> &[PageId] {
        &self.pages[self.tables[row * self.groups + group.index()].range()]
    }

    /// Whether outputs wait for their masks.
    pub(crate) fn is_deferred(&self) -> bool {
        self.logit_rows > self.immediate_rows
    }

    /// Output rows of a class of outputs.
    pub(crate) fn rows_of(&self, class: OutputClass) -> Range<usize> {
        match class {
            OutputClass::Immediate => 0..self.immediate_rows,
            OutputClass::Deferred => self.immediate_rows..self.logit_rows,
            OutputClass::Vector => self.logit_rows..self.output_tokens.len(),
        }
    }

    /// Output rows of a part of an output's run.
    pub(crate) fn rows_of_part(&self, output: usize, part: &OutputRequest) -> Range<usize> {
        let before = part.tokens.start - self.outputs[output].tokens.start;
        let first = (self.first_rows[output] + before) as usize;
        first..first + part.tokens.len as usize
    }

    /// A row has no answers, and its slot no next token.
    pub(crate) fn fail(&mut self, failure: RowFailure, slot: &mut ResidentSlot) {
        *slot.next(self.program) = NextToken::Failed;
        if !self.has_failed(failure.row) {
            self.failures.push(failure);
        }
    }

    /// Puts the answers in order and takes those of failed rows out.
    ///
    /// # Errors
    /// The rows that failed.
    pub(crate) fn finish(&mut self) -> Result<(), StepError> {
        let Self { result, failures, outputs, .. } = self;
        if !failures.is_empty() {
            let failed = |row| failures.iter().any(|failure: &RowFailure| failure.row == row);
            result.outputs.retain(|it| !failed(outputs[it.output as usize].row));
        }
        result.outputs.sort_unstable_by_key(|it| it.output);
        match std::mem::take(failures) {
            failures if failures.is_empty() => Ok(()),
            failures => Err(StepError::Rows(failures)),
        }
    }

    pub(crate) fn has_failed(&self, row: u32) -> bool {
        self.failures.iter().any(|failure| failure.row == row)
    }

    /// The slot of an output's row.
    pub(crate) fn slot_of(&self, output: &OutputRequest) -> SlotId {
        self.rows[output.row as usize].slot
    }
}

/// Where an output's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputClass {
    /// Tokens, wanted at once.
    Immediate,
    /// Tokens that wait for masks.
    Deferred,
    /// Vectors.
    Vector,
}

impl OutputClass {
    pub(crate) fn of(output: &OutputRequest) -> Self {
        match output.want {
            Want::Hidden | Want::Pool(_) => Self::Vector,
            Want::Sample | Want::Verify(_) | Want::Score { .. } if output.deferred => {
                Self::Deferred
            }
            Want::Sample | Want::Verify(_) | Want::Score { .. } => Self::Immediate,
        }
    }
}

fn copy<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}
