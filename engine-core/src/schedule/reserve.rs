//! How much of what running sequences may still generate is kept free for them.

/// Most tokens that a sequence's future output is counted with.
pub(super) const CLIPPED_OUTPUT: usize = 4096;

const START: f64 = 0.7;
const FLOOR: f64 = 0.1;
const DECAY_STEPS: f64 = 600.0;
/// After a retraction, keep this many steps of output for each sequence.
const STEPS_AFTER_RETRACTION: usize = 20;

/// The fraction of future output that admission keeps free (SGLang's `new_token_ratio`): hopeful
/// after calm, careful after a retraction.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReserveRatio(f64);

impl ReserveRatio {
    pub(super) fn new() -> Self {
        Self(START)
    }

    pub(super) fn get(self) -> f64 {
        self.0
    }

    /// A step was launched without a retraction.
    pub(super) fn decay(&mut self) {
        self.0 = (self.0 - (START - FLOOR) / DECAY_STEPS).max(FLOOR);
    }

    /// Sequences were retracted; those kept have generated `generated` tokens of `limit`.
    pub(super) fn after_retraction(&mut self, sequences: usize, generated: usize, limit: usize) {
        let expected = generated + STEPS_AFTER_RETRACTION * sequences;
        self.0 = (expected as f64 / limit.max(1) as f64).clamp(FLOOR, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_falls_to_its_floor_in_600_calm_steps() {
        let mut ratio = ReserveRatio::new();
        (0..599).for_each(|_| ratio.decay());
        assert!(ratio.get() > FLOOR);
        (0..10).for_each(|_| ratio.decay());
        assert_eq!(ratio.get(), FLOOR);
    }

    #[test]
    fn a_retraction_raises_it_to_what_the_kept_ones_have_shown() {
        let mut ratio = ReserveRatio::new();
        ratio.after_retraction(2, 160, 400);
        assert_eq!(ratio.get(), 0.5);
        ratio.after_retraction(0, 0, 0);
        assert_eq!(ratio.get(), FLOOR);
    }
}
