//! A step has ended: its tokens become known, its KV becomes cacheable.

use radix_cache::Token;

use super::report::{Event, ScheduleError};
use super::scheduler::{Launched, LaunchedRow, Scheduler};
use super::seeded::SeededBug;
use super::sequence::{FinishReason, SequenceKey};
use crate::backend::{RowFailure, StepError, StepResult};

impl Scheduler {
    /// Retires the oldest step in flight with what [`Executor::wait`](crate::backend::Executor::wait) gave: the result, and the error if
    /// there was one.
    ///
    /// A launch that failed is committed too, with its error and an empty result, before anything
    /// else is planned. [`StepError::Dead`] is not committed: the engine ends instead.
    ///
    /// # Errors
    ///
    /// A commit without a launch, a result that lacks a token, broken accounting.
    pub fn commit(
        &mut self,
        result: &StepResult,
        error: Option<&StepError>,
    ) -> Result<(), ScheduleError> {
        let launched = self.in_flight.pop_front().ok_or(ScheduleError::NothingInFlight)?;
        match error {
            None => self.commit_rows(&launched, result, &[])?,
            Some(StepError::Rows(failures)) => self.commit_rows(&launched, result, failures)?,
            Some(error) => self.lose_kv(&launched.rows, &error.to_string())?,
        }
        self.retire(launched);
        if cfg!(debug_assertions) { self.check() } else { Ok(()) }
    }

    fn commit_rows(
        &mut self,
        launched: &Launched,
        result: &StepResult,
        failures: &[RowFailure],
    ) -> Result<(), ScheduleError> {
        for (index, row) in launched.rows.iter().enumerate() {
            let mut answers = row.outputs.range().map(|output| output as u32);
            let key = match self.sequences.get(row.key) {
                Some(sequence) if sequence.epoch == row.epoch => row.key,
                // It ended, or was put back, after this row was launched.
                _ => match self.occupant_of_stale_row(row.slot) {
                    Some(key) => key,
                    None => continue,
                },
            };
            if let Some(failure) = failures.iter().find(|failure| failure.row as usize == index) {
                self.finish(key, FinishReason::Error(failure.reason.clone()))?;
                continue;
            }
            let sequence = &mut self.sequences[key];
            let was_prefilling = sequence.is_prefilling();
            sequence.computed = row.end;
            let mut finished = None;
            if let Some(output) = answers.next() {
                let answer = result.output(output).map(|answer| answer.tokens.range());
                let sampled = answer.filter(|tokens| tokens.len() == 1).map(|tokens| tokens.start);
                let token =
                    sampled.and_then(|place| Some((place, result.tokens.get(place)?.token)));
                let Some((sampled, token)) = token else {
                    return Err(ScheduleError::MissingOutput { step: launched.step, output });
                };
                finished = self.append(key, token, sampled as u32);
            }
            if row.is_prefill && (was_prefilling || self.sequences[key].generated() <= 1) {
                self.insert_computed(key)?;
                self.free_early(key)?;
            }
            if let Some(reason) = finished {
                self.finish(key, reason)?;
            }
        }
        Ok(())
    }

    /// Makes a token known. Returns the reason if it is the last one.
    fn append(&mut self, key: SequenceKey, token: Token, sampled: u32) -> Option<FinishReason> {
        let sequence = &mut self.sequences[key];
        sequence.tokens.push(token);
        sequence.pending = sequence.pending.saturating_sub(1);
        self.stats.generated_tokens += 1;
        self.events.push(Event::Token { id: sequence.id, sampled });
        if sequence.stop_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else if sequence.generated() >= sequence.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// The KV memory is gone. The sequences of the step's rows end; the others are computed again.
    pub(super) fn lose_kv(
        &mut self,
        rows: &[LaunchedRow],
        reason: &str,
    ) -> Result<(), ScheduleError> {
        for row in rows {
            if self.sequences.get(row.key).is_some_and(|sequence| sequence.epoch == row.epoch) {
                self.finish(row.key, FinishReason::Error(reason.to_owned()))?;
            }
        }
        let survivors = std::mem::take(&mut self.running);
        for &key in survivors.iter().rev() {
            self.vacate(key)?;
            self.requeue(key);
        }
        if !self.has_bug(SeededBug::TreeKeptAfterKvLoss) {
            self.pool.reset()?;
        }
        self.forget_copies()?;
        self.draining = !self.has_bug(SeededBug::LossNotDrained);
        Ok(())
    }

    /// Only a seeded bug keeps a stale row: for whoever sits in its slot now.
    fn occupant_of_stale_row(&self, slot: crate::backend::SlotId) -> Option<SequenceKey> {
        if !self.has_bug(SeededBug::StaleRowKept) {
            return None;
        }
        let sits = |&&key: &&SequenceKey| {
            self.sequences[key].place.is_some_and(|place| place.slot == slot)
        };
        self.running.iter().find(sits).copied()
    }

    /// Only a seeded bug frees a page of a running sequence.
    fn free_early(&mut self, key: SequenceKey) -> Result<(), ScheduleError> {
        if !self.has_bug(SeededBug::EarlyFree) {
            return Ok(());
        }
        let sequence = &self.sequences[key];
        let own = sequence.protected / self.config.page_size;
        if let Some(place) = sequence.place
            && let Some(&page) = self
                .slots
                .pages(place.slot, super::scheduler::GROUP)
                .get(own..)
                .and_then(<[_]>::last)
        {
            self.pool.give(&[page])?;
        }
        Ok(())
    }
}
