//! What stays with a slot from step to step, built from slot events alone.

use std::sync::Arc;

use engine_core::backend::{Batch, InputToken, Limits, Row, SlotEvent, SlotId, SlotSampling};
use engine_core::sample::TokenCounts;
use engine_core::{PageId, Token};

/// A sequence's resident state.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// By group. Only what `Pages` events announced since the slot was opened.
    pub(super) tables: Vec<Vec<PageId>>,
    pub(super) sampling: Arc<SlotSampling>,
    pub(super) counts: TokenCounts,
    pub(super) next: NextToken,
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
    /// An empty slot of a program with `groups` page groups.
    pub(super) fn new(groups: usize) -> Self {
        Self {
            tables: vec![Vec::new(); groups],
            sampling: Arc::new(SlotSampling::greedy()),
            counts: TokenCounts::default(),
            next: NextToken::None,
        }
    }

    /// A sequence moves in.
    pub(super) fn open(&mut self, sampling: &Arc<SlotSampling>) {
        self.tables.iter_mut().for_each(Vec::clear);
        self.counts.open(sampling);
        self.sampling = Arc::clone(sampling);
        self.next = NextToken::None;
    }

    /// Counts a token that was sampled, and goes on with it.
    pub(super) fn record(&mut self, token: Token) {
        self.counts.record(token);
        self.next = NextToken::Sampled(token);
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

    /// The tokens of one of the slot's rows, or why it can't run.
    pub(super) fn resolve_row(
        &self,
        row: &Row,
        tokens: &[InputToken],
        vocab_size: u32,
        page_size: u32,
        windows: &[Option<u32>],
        pages: &[u32],
    ) -> Result<Vec<Token>, String> {
        for (group, (table, window)) in self.tables.iter().zip(windows).enumerate() {
            // Pages that the window has left behind may have been given away.
            let oldest = window.map_or(0, |window| (row.position + 1).saturating_sub(window));
            for entry in oldest / page_size..row.kv_len().div_ceil(page_size) {
                match table.get(entry as usize) {
                    Some(page) if page.0 < pages[group] => {}
                    found => {
                        return Err(format!("entry {entry} of its table is {found:?}"));
                    }
                }
            }
        }
        let resolve = |token: &InputToken| match *token {
            InputToken::Known(token) if token < vocab_size => Ok(token),
            InputToken::Known(token) => Err(format!("token {token} of {vocab_size}")),
            InputToken::Produced(slot) if slot != row.slot => {
                Err(format!("it goes on with the token of slot {}", slot.0))
            }
            InputToken::Produced(_) => match self.next {
                NextToken::Sampled(token) => Ok(token),
                NextToken::None => Err("it goes on with a token that was never sampled".into()),
                NextToken::Failed => Err("the step that it goes on from failed".into()),
            },
        };
        tokens.iter().map(resolve).collect()
    }
}

/// What of a batch doesn't fit `limits`, or names things that don't exist.
pub(super) fn find_malformed(batch: &Batch<'_>, limits: &Limits) -> Option<&'static str> {
    let too_large = batch.rows.len() > limits.rows as usize
        || batch.tokens.len() > limits.tokens as usize
        || batch.outputs.len() > limits.outputs as usize;
    if too_large {
        return Some("a batch beyond its limits");
    }
    if batch.slots.len() < limits.slots as usize {
        return Some("fewer slots than were compiled for");
    }
    let known_slot = |slot: SlotId| slot.0 < limits.slots;
    let known_event = |event: &SlotEvent| match *event {
        SlotEvent::Open { slot } | SlotEvent::Close { slot } => known_slot(slot),
        SlotEvent::Pages { slot, group, .. } => {
            known_slot(slot) && usize::from(group.0) < limits.pages.len()
        }
        SlotEvent::CopyPage { group, from, to } => {
            let pages = limits.pages.get(usize::from(group.0));
            pages.is_some_and(|&pages| from.0 < pages && to.0 < pages)
        }
    };
    if !batch.events.iter().all(known_event) {
        return Some("events about slots or pages that don't exist");
    }
    let mut next = 0;
    for row in batch.rows {
        let tokens = row.tokens.range();
        let is_whole =
            tokens.start == next && !tokens.is_empty() && tokens.end <= batch.tokens.len();
        if !is_whole || !known_slot(row.slot) || row.position.checked_add(row.tokens.len).is_none()
        {
            return Some("rows that aren't runs of tokens of known slots");
        }
        next = tokens.end;
    }
    let known_output = |output: &engine_core::backend::OutputRequest| {
        let row = batch.rows.get(output.row as usize);
        row.is_some_and(|row| row.tokens.range().contains(&(output.token as usize)))
    };
    if next != batch.tokens.len() || !batch.outputs.iter().all(known_output) {
        return Some("tokens or outputs that belong to no row");
    }
    None
}
