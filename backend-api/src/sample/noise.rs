//! Counter-based noise: a pure function of what it is for.

use radix_cache::Token;

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four
/// random words for each counter and key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_side_by_side(counter.map(|word| [word]), key).map(|[word]| word)
}

/// The same for several counters, which is vector code: `counter[word][which]`.
#[inline(always)]
fn philox_side_by_side<const N: usize>(
    mut counter: [[u32; N]; 4],
    mut key: [u32; 2],
) -> [[u32; N]; 4] {
    for _ in 0..ROUNDS {
        let before = counter;
        for which in 0..N {
            let [a, b] = [
                MULTIPLIERS[0] * u64::from(before[0][which]),
                MULTIPLIERS[1] * u64::from(before[2][which]),
            ];
            counter[0][which] = (b >> 32) as u32 ^ before[1][which] ^ key[0];
            counter[1][which] = b as u32;
            counter[2][which] = (a >> 32) as u32 ^ before[3][which] ^ key[1];
            counter[3][which] = a as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The noise of one position of one sample. Four neighbouring tokens share a Philox block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise {
    key: [u32; 2],
    sample_index: u32,
    position: u32,
}

/// Tokens that share a Philox block.
const BLOCK: usize = 4;
/// Blocks that are made side by side.
const BLOCKS: usize = 8;
/// Tokens whose words are made together.
pub(super) const TOGETHER: usize = BLOCK * BLOCKS;

/// No Gumbel noise from 32 bits exceeds this: `-ln(-ln(1 - 2^-33))`, rounded up.
pub(super) const MOST_NOISE: f64 = 22.9;

impl Noise {
    pub(super) fn new(seed: u64, sample_index: u32, position: u32) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], sample_index, position }
    }

    /// The words of [`TOGETHER`] tokens from `TOGETHER * group` on.
    pub(super) fn words(&self, group: u32) -> [u32; TOGETHER] {
        let first = group * BLOCKS as u32;
        let blocks = core::array::from_fn(|block| first + block as u32);
        let counter = [blocks, [self.position; BLOCKS], [self.sample_index; BLOCKS], [0; BLOCKS]];
        let words = philox_side_by_side(counter, self.key);
        core::array::from_fn(|token| words[token % BLOCK][token / BLOCK])
    }

    /// The word of one token.
    pub(super) fn word(&self, token: Token) -> u32 {
        let counter = [token / BLOCK as u32, self.position, self.sample_index, 0];
        philox4x32(counter, self.key)[token as usize % BLOCK]
    }
}

/// A standard Gumbel variable from 32 random bits.
pub(super) fn gumbel(word: u32) -> f64 {
    // In (0, 1), exact in f64, never at its ends.
    let uniform = (f64::from(word) + 0.5) / (1u64 << 32) as f64;
    -(-uniform.ln()).ln()
}

/// Whether `gumbel(word)` may reach `needed`. Never wrongly no; a yes is right more often than
/// not, and costs no logarithm.
///
/// `-ln(-ln u) >= d` implies `1 - u <= -ln u <= exp(-d) <= 2^-floor(d / ln 2)`, which compares
/// integers. The bound is doubled, which covers the rounding of `needed`.
pub(super) fn may_reach(word: u32, needed: f64) -> bool {
    if needed <= 0.0 {
        return true;
    }
    let halvings = (needed * std::f64::consts::LOG2_E).min(33.0) as u32;
    u64::from(!word) < 1 << (33 - halvings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of the Random123 distribution.
        let zeros = philox4x32([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox4x32([!0; 4], [!0; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox4x32(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
        );
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn words_made_together_are_those_made_one_by_one() {
        let noise = Noise::new(0x0123_4567_89ab_cdef, 3, 70);
        for group in [0, 1, 4_747] {
            let words = noise.words(group);
            let first = group * TOGETHER as u32;
            assert_eq!(words, core::array::from_fn(|token| noise.word(first + token as u32)));
        }
    }

    #[test]
    fn the_quick_test_never_rejects_noise_that_reaches() {
        let words = (0..2000).map(|i| philox4x32([i, 0, 0, 0], [7, 7])[0]);
        let extremes = (0..40).flat_map(|i| [i, u32::MAX - i]);
        let mut rejected = 0;
        for word in words.chain(extremes) {
            let noise = gumbel(word);
            assert!(may_reach(word, noise), "{word}");
            for step in 0..300 {
                let needed = f64::from(step) * 0.1 - 4.0;
                assert!(may_reach(word, needed) || noise < needed, "{word} {needed}");
                rejected += u32::from(!may_reach(word, needed));
            }
        }
        assert!(rejected > 300_000, "{rejected}");
        assert!(gumbel(u32::MAX) < MOST_NOISE);
    }
}
