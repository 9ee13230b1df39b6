//! Who is next.

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::config::QueuePolicy;
use super::sequence::{Sequence, SequenceKey};
use super::sequences::Sequences;

/// Above this many waiting, look-ups for an order would cost more than it gains.
const MOST_ORDERED: usize = 128;

/// A sequence that later ones were admitted before so often goes first.
const MOST_PASSED_OVER: u32 = 64;

/// Owns the order of those that wait.
#[derive(Debug)]
pub(super) struct Queue {
    policy: QueuePolicy,
    /// Resumed ones in front.
    keys: VecDeque<SequenceKey>,
    /// One that joined had a priority, since the queue was empty last.
    has_priorities: bool,
}

impl Queue {
    pub(super) fn new(policy: QueuePolicy) -> Self {
        Self { policy, keys: VecDeque::new(), has_priorities: false }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn get(&self, index: usize) -> Option<SequenceKey> {
        self.keys.get(index).copied()
    }

    pub(super) fn last(&self) -> Option<SequenceKey> {
        self.keys.back().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SequenceKey> + '_ {
        self.keys.iter().copied()
    }

    /// Somebody new.
    pub(super) fn join(&mut self, key: SequenceKey, priority: i32) {
        self.has_priorities = priority != 0 || (self.has_priorities && !self.keys.is_empty());
        self.keys.push_back(key);
    }

    /// Somebody who ran before.
    pub(super) fn rejoin(&mut self, key: SequenceKey) {
        self.keys.push_front(key);
    }

    pub(super) fn leave(&mut self, key: SequenceKey) {
        self.keys.retain(|&other| other != key);
    }

    /// Puts the queue into the policy's order. `cached` says how many leading tokens of a sequence
    /// need not be computed.
    pub(super) fn order(&mut self, sequences: &Sequences, cached: impl Fn(&Sequence) -> usize) {
        let is_first_come = self.policy == QueuePolicy::FirstCome;
        if is_first_come && !self.has_priorities {
            // The queue is in this order already: arrivals join at its end, resumed ones in
            // front.
            return;
        }
        let by_prefix = !is_first_come && self.keys.len() <= MOST_ORDERED;
        self.keys.make_contiguous().sort_by_cached_key(|&key| {
            let sequence = sequences.of(key);
            let class = match sequence.waiting() {
                Some(waiting) if waiting.resumed => 0,
                Some(waiting) if waiting.passed_over >= MOST_PASSED_OVER => 1,
                _ => 2,
            };
            let (priority, cached) = match class {
                2 => (sequence.priority, if by_prefix { cached(sequence) } else { 0 }),
                _ => (0, 0),
            };
            (class, Reverse(priority), Reverse(cached), sequence.arrival)
        });
    }

    /// Counts, for those that still wait, that a later one was admitted before them.
    pub(super) fn pass_over(&self, sequences: &mut Sequences, newest_admitted: u64) {
        for &key in &self.keys {
            let sequence = sequences.of_mut(key);
            if sequence.arrival < newest_admitted
                && let Some(waiting) = sequence.waiting_mut()
            {
                waiting.passed_over += 1;
            }
        }
    }
}
