//! Putting sequences back when pages run out.

use std::cmp::Reverse;

use super::report::ScheduleError;
use super::scheduler::Scheduler;
use super::seeded::SeededBug;
use super::sequence::SequenceKey;

impl Scheduler {
    /// Whether the next decode rows need pages that can't be had, or a test wants a retraction.
    pub(super) fn must_retract(&self) -> bool {
        self.retraction_is_forced() || self.pages_for_decode() > self.pool.available()
    }

    /// Puts sequences back until the others' decode rows fit. With no step in flight, so that
    /// no token is lost.
    pub(super) fn retract_until_decode_fits(&mut self) -> Result<(), ScheduleError> {
        if self.retraction_is_forced() {
            self.last_forced_retraction = self.stats().steps;
            self.retract_one()?;
        }
        while self.pages_for_decode() > self.pool.available() && self.running.len() > 1 {
            self.retract_one()?;
        }
        Ok(())
    }

    /// Puts back the sequence that loses least: fewest generated tokens, then the longest
    /// prompt, which the cache is likeliest to keep.
    pub(super) fn retract_one(&mut self) -> Result<(), ScheduleError> {
        let loses_least = |&key: &SequenceKey| {
            let sequence = &self.sequences[key];
            (sequence.generated(), Reverse(sequence.prompt_len), Reverse(sequence.arrival))
        };
        let Some(key) = self.running.iter().copied().min_by_key(loses_least) else {
            return Ok(());
        };
        self.insert_computed(key)?;
        let lock = self.sequences[key].place.map(|place| place.lock);
        if self.has_bug(SeededBug::RetractionKeepsLock)
            && let Some(lock) = lock
        {
            self.pool.fork(lock)?;
        }
        self.vacate(key)?;
        self.running.retain(|&other| other != key);
        self.requeue(key);
        if self.has_bug(SeededBug::ResumeForgetsOutput) {
            let sequence = &mut self.sequences[key];
            sequence.tokens.truncate(sequence.prompt_len);
        }
        self.stats.retractions += 1;

        let kept = self.running.iter().map(|&key| &self.sequences[key]);
        let (generated, limit) = kept.fold((0, 0), |(generated, limit), sequence| {
            (generated + sequence.generated(), limit + sequence.max_tokens)
        });
        self.reserve.after_retraction(self.running.len(), generated, limit);
        Ok(())
    }

    /// Puts a sequence that has left its slot at the front of the queue.
    pub(super) fn requeue(&mut self, key: SequenceKey) {
        let sequence = &mut self.sequences[key];
        sequence.resumed = true;
        (sequence.may_load, sequence.loaded) = (true, 0..0);
        self.waiting.push_front(key);
    }

    fn retraction_is_forced(&self) -> bool {
        let since = self.stats().steps - self.last_forced_retraction;
        !self.running.is_empty() && self.config.retract_every.is_some_and(|every| since >= every)
    }
}
