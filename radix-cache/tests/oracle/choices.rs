//! Where a random run gets its decisions from: a seed in the tests, bytes in the fuzz target.

/// An endless source of decisions.
pub(crate) trait Choices {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize;

    /// Whether something happens that happens once in `rarity` times.
    fn one_in(&mut self, rarity: usize) -> bool {
        self.below(rarity) == 0
    }

    /// False when a run should end early.
    fn any_left(&self) -> bool {
        true
    }
}

/// SplitMix64: a seed replays a run.
#[derive(Debug)]
pub(crate) struct Seed(pub(crate) u64);

impl Choices for Seed {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}
