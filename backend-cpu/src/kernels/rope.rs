//! Rotary position embedding.
//!
//! Angles are computed once a step for each token and frequency, in the precision of the reference
//! implementations: the product of position and frequency is an f32, its sine and cosine are
//! rounded from f64. Applying them is two multiply-adds a value, bound by the cache.

use crate::isa::{Isa, LANES, Op};

/// Cosines and sines of a step, times the attention factor: `[tokens, pairs]` each.
#[derive(Debug, Default)]
pub(crate) struct RopeAngles {
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RopeAngles {
    /// Computes them for tokens at `positions`.
    pub(crate) fn compute(&mut self, positions: &[u32], frequencies: &[f32], factor: f32) {
        self.cosines.clear();
        self.sines.clear();
        for &position in positions {
            for frequency in frequencies {
                let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
                self.cosines.push(cosine as f32 * factor);
                self.sines.push(sine as f32 * factor);
            }
        }
    }
}

/// Which dimensions form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// `i` and `i + pairs`.
    Halves,
    /// `2 i` and `2 i + 1`.
    Adjacent,
}

/// Rotates the first `2 * pairs` dimensions of each head of some tokens.
pub(crate) struct Rope<'a> {
    /// `[tokens, heads * head_dim]`.
    pub(crate) input: &'a [f32],
    /// Likewise.
    pub(crate) output: &'a mut [f32],
    pub(crate) width: usize,
    pub(crate) head_dim: usize,
    pub(crate) pairs: usize,
    pub(crate) pairing: Pairing,
    pub(crate) angles: &'a RopeAngles,
    /// Number of the first of these tokens in the step.
    pub(crate) first_token: usize,
}

impl Op for Rope<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let tokens =
            self.input.chunks_exact(self.width).zip(self.output.chunks_exact_mut(self.width));
        for (token, (input, output)) in tokens.enumerate() {
            let start = (self.first_token + token) * self.pairs;
            let cosines = &self.angles.cosines[start..start + self.pairs];
            let sines = &self.angles.sines[start..start + self.pairs];
            let heads =
                input.chunks_exact(self.head_dim).zip(output.chunks_exact_mut(self.head_dim));
            for (input, output) in heads {
                match self.pairing {
                    Pairing::Halves => rotate_halves(isa, input, output, cosines, sines),
                    Pairing::Adjacent => rotate_adjacent(isa, input, output, cosines, sines),
                }
                output[2 * self.pairs..].copy_from_slice(&input[2 * self.pairs..]);
            }
        }
    }
}

#[inline(always)]
fn rotate_halves<S: Isa>(
    isa: S,
    input: &[f32],
    output: &mut [f32],
    cosines: &[f32],
    sines: &[f32],
) {
    let pairs = cosines.len();
    let (first, second) = input[..2 * pairs].split_at(pairs);
    let (out_first, out_second) = output[..2 * pairs].split_at_mut(pairs);
    let mut start = 0;
    while start < pairs {
        let end = (start + LANES).min(pairs);
        let a = isa.load_partial(&first[start..end], 0.0);
        let b = isa.load_partial(&second[start..end], 0.0);
        let cosine = isa.load_partial(&cosines[start..end], 0.0);
        let sine = isa.load_partial(&sines[start..end], 0.0);
        let minus_sine = isa.sub(isa.splat(0.0), sine);
        let rotated_a = isa.mul_add(b, minus_sine, isa.mul(a, cosine));
        let rotated_b = isa.mul_add(a, sine, isa.mul(b, cosine));
        isa.store_partial(rotated_a, &mut out_first[start..end]);
        isa.store_partial(rotated_b, &mut out_second[start..end]);
        start = end;
    }
}

#[inline(always)]
fn rotate_adjacent<S: Isa>(
    isa: S,
    input: &[f32],
    output: &mut [f32],
    cosines: &[f32],
    sines: &[f32],
) {
    let mut start = 0;
    while start < cosines.len() {
        let end = (start + LANES).min(cosines.len());
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        for (lane, pair) in input[2 * start..2 * end].as_chunks::<2>().0.iter().enumerate() {
            (a[lane], b[lane]) = (pair[0], pair[1]);
        }
        let (from_a, from_b) = (isa.load(&a), isa.load(&b));
        let cosine = isa.load_partial(&cosines[start..end], 0.0);
        let sine = isa.load_partial(&sines[start..end], 0.0);
        let minus_sine = isa.sub(isa.splat(0.0), sine);
        isa.store(isa.mul_add(from_b, minus_sine, isa.mul(from_a, cosine)), &mut a);
        isa.store(isa.mul_add(from_a, sine, isa.mul(from_b, cosine)), &mut b);
        for (lane, pair) in output[2 * start..2 * end].as_chunks_mut::<2>().0.iter_mut().enumerate()
        {
            *pair = [a[lane], b[lane]];
        }
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Simd;

    #[test]
    fn both_pairings_match_the_formula_and_leave_the_rest_unchanged() {
        let frequencies: Vec<f32> = (0..21).map(|i| 10_000f32.powf(-(i as f32) / 21.0)).collect();
        let (head_dim, heads, pairs) = (50, 3, frequencies.len());
        let positions = [0, 1, 77, 4095];
        let width = heads * head_dim;
        let input: Vec<f32> =
            (0..positions.len() * width).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let mut angles = RopeAngles::default();
        angles.compute(&positions, &frequencies, 1.25);
        for pairing in [Pairing::Halves, Pairing::Adjacent] {
            for simd in Simd::available() {
                let mut output = vec![f32::NAN; input.len()];
                // In two parts, as two threads would do it.
                let (front, back) = output.split_at_mut(width);
                for (first_token, input, output) in
                    [(0, &input[..width], front), (1, &input[width..], back)]
                {
                    simd.run(Rope {
                        input,
                        output,
                        width,
                        head_dim,
                        pairs,
                        pairing,
                        angles: &angles,
                        first_token,
                    });
                }
                for (token, &position) in positions.iter().enumerate() {
                    for head in 0..heads {
                        let at = token * width + head * head_dim;
                        for (pair, frequency) in frequencies.iter().enumerate() {
                            let (i, j) = match pairing {
                                Pairing::Halves => (pair, pair + pairs),
                                Pairing::Adjacent => (2 * pair, 2 * pair + 1),
                            };
                            let angle = f64::from(position as f32 * frequency);
                            let (a, b) = (f64::from(input[at + i]), f64::from(input[at + j]));
                            let expected = [
                                (a * angle.cos() - b * angle.sin()) * 1.25,
                                (b * angle.cos() + a * angle.sin()) * 1.25,
                            ];
                            assert!((f64::from(output[at + i]) - expected[0]).abs() < 1e-6);
                            assert!((f64::from(output[at + j]) - expected[1]).abs() < 1e-6);
                        }
                        let rest = at + 2 * pairs..at + head_dim;
                        assert_eq!(output[rest.clone()], input[rest]);
                    }
                }
            }
        }
    }
}
