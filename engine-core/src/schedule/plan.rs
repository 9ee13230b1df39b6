//! Rows of sequences that run already.

use super::report::ScheduleError;
use super::scheduler::{GROUP, LaunchedRow, Scheduler};
use super::seeded::SeededBug;
use super::sequence::{Place, SequenceKey};
use crate::backend::{InputToken, OutputRequest, Row, SlotEvent, SlotId, Span};

impl Scheduler {
    /// A decode row for each running sequence that may generate more.
    pub(super) fn plan_decode(&mut self) -> Result<(), ScheduleError> {
        for index in 0..self.running.len() {
            let key = self.running[index];
            if self.can_decode(key) {
                self.push_row(key, 1, false)?;
                self.next.decode_rows += 1;
            }
        }
        Ok(())
    }

    /// Chunks of running sequences that are still computing what they came with. Returns what is
    /// left of the step's chunk budget, in tokens.
    pub(super) fn plan_prefill(&mut self) -> Result<usize, ScheduleError> {
        let mut budget = self.config.chunk();
        for index in 0..self.running.len() {
            let key = self.running[index];
            budget -= self.plan_chunk(key, budget)?;
        }
        Ok(budget)
    }

    /// A chunk of at most `budget` tokens, where one fits and its pages can be had. Returns its
    /// length.
    pub(super) fn plan_chunk(
        &mut self,
        key: SequenceKey,
        budget: usize,
    ) -> Result<usize, ScheduleError> {
        let sequence = &self.sequences[key];
        let (launched, known) = (sequence.launched, sequence.known());
        if sequence.pending > 0 || launched >= known {
            return Ok(0);
        }
        // Whole pages, so that what a chunk computes can be cached at once; but for the last.
        let end = if known - launched <= budget {
            known
        } else {
            self.pool.floor_page(launched + budget)
        };
        let whole_pages = !self.has_bug(SeededBug::ChunkNotWholePages);
        let end = if whole_pages { end } else { end.min(launched + budget.div_ceil(2)) };
        let missing = self.pool.pages_for(end).saturating_sub(self.table_len(key));
        if end <= launched || missing > self.pool.available() {
            return Ok(0);
        }
        self.push_row(key, end - launched, true)?;
        Ok(end - launched)
    }

    /// Whether its next row is a decode row that its limit allows.
    pub(super) fn can_decode(&self, key: SequenceKey) -> bool {
        let sequence = &self.sequences[key];
        let limit_reached = if self.has_bug(SeededBug::LimitIgnoresLaunched) {
            false
        } else {
            sequence.tokens_left() == 0
        };
        sequence.is_decoding() && !limit_reached
    }

    /// Pages that the next decode rows need beyond those in their tables.
    pub(super) fn pages_for_decode(&self) -> usize {
        let needs_page = |&&key: &&SequenceKey| {
            self.can_decode(key)
                && self.sequences[key].launched == self.table_len(key) * self.config.page_size
        };
        self.running.iter().filter(needs_page).count()
    }

    fn table_len(&self, key: SequenceKey) -> usize {
        let place = self.sequences[key].place;
        place.map_or(0, |place| self.slots.pages(place.slot, GROUP).len())
    }

    /// Appends a row of `len` new tokens, takes the pages that it needs, and counts it as
    /// launched. It samples if it reaches the end of what is known or launched.
    fn push_row(
        &mut self,
        key: SequenceKey,
        len: usize,
        is_prefill: bool,
    ) -> Result<(), ScheduleError> {
        let wrong_slot = self.has_bug(SeededBug::WrongSlotForNextToken);
        let late = is_prefill && self.has_bug(SeededBug::ChunkOffByOne);
        let unannounced = self.has_bug(SeededBug::PagesNotAnnounced);
        let sequence = &mut self.sequences[key];
        let Some(Place { slot, .. }) = sequence.place else { return Ok(()) };
        let (start, end) = (sequence.launched, sequence.launched + len);

        let table = self.slots.pages_mut(slot, GROUP);
        let (old, needed) = (table.len(), self.pool.pages_for(end));
        if needed > old {
            self.pool.take(needed - old, table)?;
            let entries = Span { start: old as u32, len: (needed - old) as u32 };
            if !unannounced {
                self.slot_events.push(SlotEvent::Pages { slot, group: GROUP, entries });
            }
        }

        let batch = &mut self.next;
        let row = batch.rows.len() as u32;
        let tokens = Span { start: batch.tokens.len() as u32, len: len as u32 };
        let known = &sequence.tokens[start.min(sequence.tokens.len())..];
        batch.tokens.extend(known.iter().take(len).map(|&token| InputToken::Known(token)));
        if known.is_empty() {
            let named = if wrong_slot { SlotId(slot.0.saturating_sub(1)) } else { slot };
            batch.tokens.push(InputToken::Produced(named));
        }
        if late
            && let Some(first) = batch.tokens.get_mut(tokens.start as usize)
            && let Some(&token) = sequence.tokens.get(start + 1)
        {
            *first = InputToken::Known(token);
        }

        let samples = end == sequence.known() + sequence.pending;
        let outputs = Span { start: batch.outputs.len() as u32, len: samples.into() };
        if samples {
            let token = tokens.start + tokens.len - 1;
            if sequence.constrained {
                batch.constrained.push((batch.outputs.len() as u32, sequence.id));
            }
            let mut output = OutputRequest::sample(row, token);
            output.deferred = sequence.constrained;
            batch.outputs.push(output);
            sequence.pending += 1;
        }
        sequence.launched = end;
        batch.rows.push(Row { slot, tokens, position: start as u32, outputs });
        let epoch = sequence.epoch;
        batch.launched.rows.push(LaunchedRow { key, epoch, slot, end, outputs, is_prefill });
        if is_prefill {
            self.stats.prefill_tokens += len as u64;
        }
        Ok(())
    }
}
