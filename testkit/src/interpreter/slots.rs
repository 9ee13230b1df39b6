//! What stays with a slot from step to step, built from slot events alone.

use std::sync::Arc;

use engine_core::backend::{Batch, BatchBounds, GroupId, InputToken, Row, SlotSampling};
use engine_core::sample::TokenCounts;
use engine_core::{PageId, Token};

/// A sequence's resident state.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// By group. Only what `Pages` events announced since the slot was opened.
    pub(super) tables: Vec<Vec<PageId>>,
    pub(super) sampling: Arc<SlotSampling>,
    pub(super) counts: TokenCounts,
    /// By program.
    pub(super) next: Vec<NextToken>,
}

/// What [`InputToken::Produced`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextToken {
    /// Nothing was sampled since the slot was opened.
    None,
    /// The last token sampled.
    Sampled(Token),
    /// The row that was to sample it failed.
    Failed,
}

impl Slot {
    /// An empty slot for `programs` programs with `groups` page groups in all.
    pub(super) fn new(programs: usize, groups: usize) -> Self {
        Self {
            tables: vec![Vec::new(); groups],
            sampling: Arc::new(SlotSampling::greedy()),
            counts: TokenCounts::default(),
            next: vec![NextToken::None; programs],
        }
    }

    /// A sequence moves in.
    pub(super) fn open(&mut self, sampling: &Arc<SlotSampling>) {
        self.tables.iter_mut().for_each(Vec::clear);
        self.counts.open(sampling);
        self.sampling = Arc::clone(sampling);
        self.next.fill(NextToken::None);
    }

    /// Takes over entries of a page table that were appended or re-pointed.
    ///
    /// `announced` is the table as it is after the whole batch. Where a later event of the batch
    /// shortened it, nothing is left to take over.
    pub(super) fn set_pages(
        &mut self,
        group: usize,
        entries: std::ops::Range<usize>,
        announced: &[PageId],
    ) {
        let entries = entries.start..entries.end.min(announced.len());
        let table = &mut self.tables[group];
        for (index, &page) in entries.clone().zip(announced.get(entries).unwrap_or(&[])) {
            if index < table.len() {
                table[index] = page;
            } else if index == table.len() {
                table.push(page);
            }
            // A gap stays a gap: `resolve_row` finds the position without a page.
        }
    }

    /// The tokens of one of the slot's rows, or why it can't run. `groups` are the executor's groups
    /// of the batch's program, each with its window.
    pub(super) fn resolve_row(
        &self,
        batch: &Batch<'_>,
        row: &Row,
        groups: &[(usize, Option<u32>)],
        bounds: &BatchBounds,
    ) -> Result<Vec<Token>, String> {
        for &(group, window) in groups {
            let (announced, lent) = (&self.tables[group], batch.pages(row, GroupId(group as u8)));
            let needed = row.kv_len().div_ceil(bounds.page_size()) as usize;
            let live = bounds.first_live_entry(row, window)..needed;
            if announced.get(live.clone()) != lent.get(live) {
                return Err(format!("the table of group {group} was not announced"));
            }
        }
        let resolve = |token: &InputToken| match *token {
            InputToken::Known(token) => Ok(token),
            InputToken::Produced(_) => match self.next[batch.program.index()] {
                NextToken::Sampled(token) => Ok(token),
                NextToken::None => Err("it goes on with a token that was never sampled".into()),
                NextToken::Failed => Err("the step that it goes on from failed".into()),
            },
        };
        batch.tokens[row.tokens.range()].iter().map(resolve).collect()
    }
}
