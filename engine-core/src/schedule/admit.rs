//! Letting waiting sequences run.

use std::sync::Arc;

use super::queue::matchable;
use super::report::{Event, ScheduleError};
use super::reserve::CLIPPED_OUTPUT;
use super::scheduler::{GROUP, Scheduler};
use super::seeded::SeededBug;
use super::sequence::{Place, Sequence, SequenceKey};
use crate::backend::{SlotEvent, SlotSampling, Span};

/// What came of looking at one waiting sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It runs now.
    Admitted,
    /// It waits for another one to compute or load their common prefix, or for room to load its
    /// own; the next may go.
    Held,
    /// Its prefix is on its way from the host; the next may go.
    Loading,
    /// It doesn't fit, and nobody may overtake it for that.
    Full,
}

impl Scheduler {
    /// Admits from the queue while slots, `chunk_budget` tokens of prompt and pages last.
    pub(super) fn admit(&mut self, chunk_budget: &mut usize) -> Result<(), ScheduleError> {
        if self.waiting.is_empty() || self.free_slots.is_empty() {
            return Ok(());
        }
        self.order_queue();
        let mut index = 0;
        let mut newest_admitted = None;
        // Sequences that are being loaded for have a slot reserved each.
        while index < self.waiting.len()
            && self.free_slots.len() > self.tier.loading().count()
            && *chunk_budget > 0
        {
            let key = self.waiting[index];
            match self.try_admit(key)? {
                Admission::Full => break,
                outcome @ (Admission::Held | Admission::Loading) => {
                    self.sequences[key].held += u32::from(outcome == Admission::Held);
                    index += 1;
                    // Looking further than slots reach can't admit more.
                    if index > self.slots.len() {
                        break;
                    }
                }
                Admission::Admitted => {
                    self.waiting.remove(index);
                    newest_admitted = newest_admitted.max(Some(self.sequences[key].arrival));
                    let computed = self.plan_chunk(key, *chunk_budget)?;
                    *chunk_budget -= computed;
                    if computed == 0 {
                        break;
                    }
                }
            }
        }
        if let Some(newest) = newest_admitted {
            self.count_passed_over(newest);
        }
        Ok(())
    }

    pub(super) fn try_admit(&mut self, key: SequenceKey) -> Result<Admission, ScheduleError> {
        let sequence = &self.sequences[key];
        if sequence.loading.is_some() {
            return Ok(Admission::Loading);
        }
        let found = self.pool.probe(sequence.namespace, matchable(sequence));
        let loads = self.is_worth_loading(key, found);
        let matched = found.tokens + if loads { found.host_tokens } else { 0 };
        if self.is_worth_holding(key, matched) {
            return Ok(Admission::Held);
        }
        let needed = self.tokens_needed(sequence, found.tokens);
        if !self.has_room(needed) {
            return Ok(Admission::Full);
        }
        if loads && let Some(outcome) = self.order_load(key, found)? {
            return Ok(outcome);
        }
        let Some(&slot) = self.free_slots.last() else { return Ok(Admission::Full) };

        let whole = self.has_bug(SeededBug::WholePromptMatched);
        let sequence = &self.sequences[key];
        let tokens = if whole { &sequence.tokens[..] } else { matchable(sequence) };
        let table = self.slots.pages_mut(slot, GROUP);
        table.clear();
        let acquired = self.pool.acquire(sequence.namespace, tokens, table)?;
        // Locking shrank what is evictable: read it again.
        let needed = self.tokens_needed(&self.sequences[key], acquired.tokens);
        if !self.has_room(needed) && !self.has_bug(SeededBug::NoRecheckAfterLock) {
            self.slots.pages_mut(slot, GROUP).clear();
            if !self.has_bug(SeededBug::RefusedAdmissionKeepsLock) {
                self.pool.release(acquired.lock, true)?;
            }
            return Ok(Admission::Full);
        }
        self.settle(key, Place { slot, lock: acquired.lock }, acquired.tokens)?;
        Ok(Admission::Admitted)
    }

    /// Moves a sequence into its slot, the last of the free ones, whose page table holds its
    /// `cached` positions.
    pub(super) fn settle(
        &mut self,
        key: SequenceKey,
        place: Place,
        cached: usize,
    ) -> Result<(), ScheduleError> {
        let slot = place.slot;
        self.free_slots.pop();
        self.pool.retain(place.lock, self.sequences[key].retention)?;
        let sequence = &mut self.sequences[key];
        let first_time = !sequence.resumed;
        (sequence.launched, sequence.computed) = (cached, cached);
        sequence.protected = self.pool.floor_page(cached);
        sequence.place = Some(place);
        let room = sequence.max_tokens.min(CLIPPED_OUTPUT) + 1;
        sequence.tokens.reserve(room);
        let pages = self.pool.pages_for(sequence.known() + room);
        let table = self.slots.pages_mut(slot, GROUP);
        table.reserve(pages.saturating_sub(table.len()));
        let prompt_only = self.config.has_bug(SeededBug::HistoryNotRenewed);
        self.slots.open(slot, sampling_of(sequence, prompt_only));
        self.slot_events.push(SlotEvent::Open { slot });
        let len = self.slots.pages(slot, GROUP).len() as u32;
        if len > 0 && !self.has_bug(SeededBug::MatchNotAnnounced) {
            let entries = Span { start: 0, len };
            self.slot_events.push(SlotEvent::Pages { slot, group: GROUP, entries });
        }
        let sequence = &self.sequences[key];
        if first_time {
            self.stats.prompt_tokens += sequence.prompt_len as u64;
            self.stats.cached_tokens += cached as u64;
            let loaded = sequence.loaded.end.min(cached).saturating_sub(sequence.loaded.start);
            self.stats.host_cached_tokens += loaded as u64;
            self.stats.host_hits += u64::from(loaded > 0);
            let cached_tokens = cached as u32;
            self.events.push(Event::Admitted { id: sequence.id, cached_tokens });
        }
        self.running.push(key);
        Ok(())
    }

    /// Positions that it needs pages for, beyond those that are cached: what is left of its
    /// known tokens, in whole pages, and its output, clipped.
    fn tokens_needed(&self, sequence: &Sequence, cached: usize) -> usize {
        let page_size = self.pool.page_size();
        let known = self.pool.pages_for(sequence.known().saturating_sub(cached)) * page_size;
        known + sequence.tokens_left().min(CLIPPED_OUTPUT)
    }

    /// Whether a sequence with so many cached positions would be admitted beside the running
    /// ones.
    pub(super) fn has_room_for(&self, key: SequenceKey, cached: usize) -> bool {
        self.has_room(self.tokens_needed(&self.sequences[key], cached))
    }

    /// Whether that many positions can be had without taking what running sequences, and those
    /// that are being loaded for, are expected to need. Alone, a sequence always has room: it
    /// was checked at its arrival.
    fn has_room(&self, needed: usize) -> bool {
        let loading = self.tier.loading().filter_map(|(key, end)| {
            Some(self.tokens_needed(self.sequences.get(key)?, end) as f64)
        });
        let loading = loading.reduce(|sum, needed| sum + needed);
        if self.running.is_empty() && loading.is_none() {
            return true;
        }
        let available = (self.pool.available() * self.pool.page_size()) as f64;
        let expected: f64 = self.running.iter().map(|&key| self.expected_need(key)).sum();
        available - expected - loading.unwrap_or_default() >= needed as f64
    }

    /// Positions that a running sequence will probably still take.
    fn expected_need(&self, key: SequenceKey) -> f64 {
        let sequence = &self.sequences[key];
        let rest_of_prompt = sequence.known().saturating_sub(sequence.launched);
        let output = sequence.tokens_left().min(CLIPPED_OUTPUT);
        rest_of_prompt as f64 + output as f64 * self.reserve.get()
    }
}

/// The slot's sampling state. Penalties read the tokens so far, so those travel with it.
fn sampling_of(sequence: &Sequence, prompt_only: bool) -> Arc<SlotSampling> {
    if !sequence.sampling.has_penalties() {
        return sequence.sampling.clone();
    }
    let mut sampling = SlotSampling::clone(&sequence.sampling);
    let known = if prompt_only { sequence.prompt_len } else { sequence.known() };
    sampling.history = sequence.tokens[..known].into();
    sampling.history_prompt = sequence.prompt_len as u32;
    Arc::new(sampling)
}
