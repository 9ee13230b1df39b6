//! What a sequence holds while it runs, and how it lets go: a slot, a lock in the tree, pages.

use super::report::{Event, ScheduleError};
use super::scheduler::{GROUP, Scheduler};
use super::seeded::SeededBug;
use super::sequence::{FinishReason, Place, SequenceKey};
use crate::backend::{SlotEvent, Span};

impl Scheduler {
    /// Takes a sequence out, wherever it is, and frees what it holds.
    pub(super) fn finish(
        &mut self,
        key: SequenceKey,
        reason: FinishReason,
    ) -> Result<(), ScheduleError> {
        if self.sequences[key].place.is_some() {
            if !matches!(reason, FinishReason::Error(_)) {
                self.insert_computed(key)?;
                if let Some(Place { lock, .. }) = self.sequences[key].place {
                    self.save(lock)?;
                }
            }
            let twice = reason == FinishReason::Abort && self.has_bug(SeededBug::AbortFreesTwice);
            if twice && let Some(place) = self.sequences[key].place {
                let own = self.sequences[key].protected / self.config.page_size;
                self.pool.give(&self.slots.pages(place.slot, GROUP)[own..])?;
            }
            self.vacate(key)?;
            self.running.retain(|&other| other != key);
        } else {
            self.waiting.retain(|&other| other != key);
            if self.has_bug(SeededBug::AbortForgetsLoad) {
                self.tier.forget_load(key);
            }
        }
        if let Some(sequence) = self.sequences.remove(key) {
            self.by_id.remove(&sequence.id);
            self.events.push(Event::Finished { id: sequence.id, reason });
        }
        Ok(())
    }

    /// Gives slot, lock and own pages back. Rows in flight become stale.
    pub(super) fn vacate(&mut self, key: SequenceKey) -> Result<(), ScheduleError> {
        let own = self.sequences[key].protected / self.config.page_size;
        let sequence = &mut self.sequences[key];
        let Some(Place { slot, lock }) = sequence.place.take() else { return Ok(()) };
        sequence.epoch += 1;
        (sequence.launched, sequence.computed) = (0, 0);
        sequence.protected = 0;
        if !self.config.has_bug(SeededBug::LossKeepsPending) {
            sequence.pending = 0;
        }
        let table = self.slots.pages_mut(slot, GROUP);
        let own = table.get(own..).unwrap_or_default();
        // What was to be announced of its table is gone with it, and what was to be copied into its
        // pages must not reach whoever has them next.
        self.slot_events.retain(|event| match event {
            SlotEvent::Pages { slot: other, .. } => *other != slot,
            SlotEvent::CopyPage { to, .. } => !own.contains(to),
            _ => true,
        });
        self.pool.give(own)?;
        table.clear();
        self.pool.release(lock, self.config.cache)?;
        if !self.has_bug(SeededBug::SlotNotClosed) {
            self.slot_events.push(SlotEvent::Close { slot });
        }
        self.free_slots.push(slot);
        Ok(())
    }

    /// Moves what is whole, computed and known into the tree.
    pub(super) fn insert_computed(&mut self, key: SequenceKey) -> Result<(), ScheduleError> {
        let page_size = self.config.page_size;
        let (last_token, partial) = (
            self.has_bug(SeededBug::LastSampledTokenCached),
            self.has_bug(SeededBug::PartialPageCached),
        );
        let no_repoint = self.has_bug(SeededBug::NoRepointAfterDuplicate);
        let sequence = &mut self.sequences[key];
        let Some(Place { slot, lock }) = sequence.place else { return Ok(()) };
        let computed = sequence.computed.min(sequence.known());
        let mut cacheable = self.pool.floor_page(computed);
        let table = self.slots.pages_mut(slot, GROUP);
        if last_token {
            cacheable = self.pool.floor_page(sequence.known()).min(table.len() * page_size);
        }
        if partial {
            cacheable = self.pool.pages_for(computed) * page_size;
        }
        if cacheable <= sequence.protected {
            return Ok(());
        }
        let (from, to) = (sequence.protected / page_size, cacheable / page_size);
        let before = no_repoint.then(|| table.clone());
        let inserted = if partial {
            let mut padded = sequence.tokens[sequence.protected..].to_vec();
            padded.resize(cacheable - sequence.protected, 0);
            self.pool.insert(lock, &padded, &mut table[from..to])?
        } else {
            let tokens = &sequence.tokens[sequence.protected..cacheable];
            self.pool.insert(lock, tokens, &mut table[from..to])?
        };
        sequence.protected = cacheable;
        if let Some(before) = before {
            table.clone_from(&before);
        } else if inserted.present_pages > 0 {
            let entries = Span { start: from as u32, len: inserted.present_pages as u32 };
            self.slot_events.push(SlotEvent::Pages { slot, group: GROUP, entries });
        }
        Ok(())
    }
}
