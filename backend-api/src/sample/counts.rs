//! Which tokens a sequence has seen and how often it generated each: what penalties read.

use hashbrown::HashMap;
use radix_cache::Token;

use crate::SlotSampling;

/// A slot's token counts. Empty, and free of cost, unless the slot's penalties are on.
#[derive(Clone, Debug, Default)]
pub struct TokenCounts {
    /// How often each token that prompt or output contain was generated.
    generated: HashMap<Token, u32>,
    is_on: bool,
}

impl TokenCounts {
    /// Starts over for a sequence that moves into the slot, from its
    /// [`history`](SlotSampling::history). Call it for every
    /// [`SlotEvent::Open`](crate::SlotEvent::Open).
    pub fn open(&mut self, sampling: &SlotSampling) {
        self.generated.clear();
        self.is_on = sampling.has_penalties();
        let prompt = sampling.history_prompt as usize;
        for (index, &token) in sampling.history.iter().enumerate() {
            if index < prompt && self.is_on {
                self.generated.entry(token).or_insert(0);
            } else {
                self.record(token);
            }
        }
    }

    /// Counts a token that was just sampled for the slot.
    pub fn record(&mut self, token: Token) {
        if self.is_on {
            *self.generated.entry(token).or_insert(0) += 1;
        }
    }

    /// How often the token was generated; `None` if it is in neither prompt nor output, or no
    /// penalty is on.
    pub fn generated(&self, token: Token) -> Option<u32> {
        self.generated.get(&token).copied()
    }

    /// Applies the slot's penalties to a row of logits.
    pub(super) fn penalize(&self, logits: &mut [f32], sampling: &SlotSampling) {
        for (&token, &generated) in &self.generated {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if *logit == f32::NEG_INFINITY {
                continue; // Forbidden; below, minus infinity can only be an overflow.
            }
            let repetition = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            if generated > 0 {
                *logit -= sampling.frequency_penalty * generated as f32;
                *logit -= sampling.presence_penalty;
            }
            *logit = logit.clamp(f32::MIN, f32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalized() -> SlotSampling {
        SlotSampling {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            history: [1, 2, 2, 3].into(),
            history_prompt: 2,
            ..SlotSampling::greedy()
        }
    }

    #[test]
    fn history_beyond_the_prompt_counts_as_generated() {
        let mut counts = TokenCounts::default();
        counts.open(&penalized());
        counts.record(3);
        let of = [0, 1, 2, 3].map(|token| counts.generated(token));
        assert_eq!(of, [None, Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn each_penalty_touches_the_tokens_that_it_is_about() {
        let mut counts = TokenCounts::default();
        counts.open(&penalized());
        let mut logits = [4.0, 4.0, 4.0, -4.0];
        counts.penalize(&mut logits, &penalized());
        assert_eq!(logits, [4.0, 2.0, 1.25, -8.75]);
    }

    #[test]
    fn opening_a_slot_forgets_the_previous_sequence() {
        let mut counts = TokenCounts::default();
        counts.open(&penalized());
        counts.open(&SlotSampling::greedy());
        counts.record(5);
        assert_eq!(counts.generated(2), None);
        assert_eq!(counts.generated(5), None);
    }

    #[test]
    fn a_huge_logit_stays_finite_under_penalties() {
        let mut counts = TokenCounts::default();
        let sampling = SlotSampling { repetition_penalty: 100.0, ..penalized() };
        counts.open(&sampling);
        let mut logits = [0.0, f32::MIN, f32::MIN, f32::MAX];
        counts.penalize(&mut logits, &sampling);
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
}
