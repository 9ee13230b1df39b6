//! Who is next.

use std::cmp::Reverse;

use super::config::QueuePolicy;
use super::scheduler::Scheduler;
use super::sequence::{Sequence, SequenceKey};

/// Above this many waiting, look-ups for an order would cost more than it gains.
const MOST_ORDERED: usize = 128;

/// A sequence that later ones were admitted before so often goes first.
const MOST_PASSED_OVER: u32 = 64;

/// Rounds that a sequence waits for another one to compute or load their common prefix.
pub(super) const MOST_HELD: u32 = 64;

impl Scheduler {
    /// Puts the queue into the policy's order.
    pub(super) fn order_queue(&mut self) {
        if self.config.queue_policy == QueuePolicy::FirstCome {
            // The queue is in this order already: arrivals join at its end, resumed ones in
            // front.
            return;
        }
        let by_prefix = self.waiting.len() <= MOST_ORDERED;
        let (sequences, pool) = (&self.sequences, &self.pool);
        self.waiting.make_contiguous().sort_by_cached_key(|&key| {
            let sequence = &sequences[key];
            let class = match sequence {
                Sequence { resumed: true, .. } => 0,
                Sequence { passed_over, .. } if *passed_over >= MOST_PASSED_OVER => 1,
                _ => 2,
            };
            let cached = match class {
                2 if by_prefix => {
                    let found = pool.probe(sequence.namespace, matchable(sequence));
                    found.tokens + found.host_tokens
                }
                _ => 0,
            };
            (class, Reverse(cached), sequence.arrival)
        });
    }

    /// Counts, for those that still wait, that a later one was admitted before them.
    pub(super) fn count_passed_over(&mut self, newest_admitted: u64) {
        for &key in &self.waiting {
            let sequence = &mut self.sequences[key];
            if sequence.arrival < newest_admitted {
                sequence.passed_over += 1;
            }
        }
    }

    /// Whether another sequence is computing a longer prefix of this one than is cached, or having
    /// it loaded, so that waiting for it computes less. `matched` tokens are cached.
    pub(super) fn is_worth_holding(&self, key: SequenceKey, matched: usize) -> bool {
        let sequence = &self.sequences[key];
        if sequence.held >= MOST_HELD {
            return false;
        }
        let leads = |leader: &Sequence, end: usize| {
            leader.namespace == sequence.namespace
                && self.common_pages(matchable(sequence), &leader.tokens[..end]) > matched
        };
        let mut running = self.running.iter().map(|&other| &self.sequences[other]);
        let mut loading = self.tier.loading();
        running.any(|leader| leader.is_prefilling() && leads(leader, leader.known()))
            || loading.any(|(other, end)| {
                self.sequences.get(other).is_some_and(|leader| leads(leader, end))
            })
    }

    /// Tokens in whole pages that both begin with.
    fn common_pages(&self, tokens: &[u32], others: &[u32]) -> usize {
        let same = tokens.iter().zip(others).take_while(|(a, b)| a == b).count();
        self.pool.floor_page(same)
    }
}

/// The tokens that may be taken from the cache: one must be computed, to have logits.
pub(super) fn matchable(sequence: &Sequence) -> &[u32] {
    &sequence.tokens[..sequence.known() - 1]
}
