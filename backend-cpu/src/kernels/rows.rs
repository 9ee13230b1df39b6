//! Operations on the rows of an activation: norms, activations, sums.
//!
//! All of them read and write each value once or twice, with a few flops a value: they are bound by
//! the cache that the activations are in, and take a few hundredths of a step. A row's result
//! depends on that row alone, and is summed in an order that its width fixes.

use super::math;
use crate::isa::{Isa, LANES, Op};

/// `out = x / sqrt(mean(x^2) + epsilon) * (weight + offset)`, over each run of `width` values.
pub(crate) struct RmsNorm<'a> {
    /// `[runs, width]`.
    pub(crate) input: &'a [f32],
    /// Likewise.
    pub(crate) output: &'a mut [f32],
    /// `[width]`.
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
    /// Added to the weight: one for families that store it around zero.
    pub(crate) offset: f32,
}

impl Op for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let width = self.weight.len().max(1);
        for (input, output) in
            self.input.chunks_exact(width).zip(self.output.chunks_exact_mut(width))
        {
            let mut squares = isa.splat(0.0);
            for values in input.chunks(LANES) {
                let values = isa.load_partial(values, 0.0);
                squares = isa.mul_add(values, values, squares);
            }
            let mean = isa.sum(squares) / width as f32;
            let scale = isa.splat(1.0 / (mean + self.epsilon).sqrt());
            let offset = isa.splat(self.offset);
            let runs = input.chunks(LANES).zip(self.weight.chunks(LANES));
            for ((values, weight), output) in runs.zip(output.chunks_mut(LANES)) {
                let scaled = isa.mul(isa.load_partial(values, 0.0), scale);
                let weight = isa.add(isa.load_partial(weight, 0.0), offset);
                isa.store_partial(isa.mul(scaled, weight), output);
            }
        }
    }
}

/// A function of two values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pairwise {
    /// `a + b`.
    Add,
    /// `a * b`.
    Multiply,
    /// `sigmoid(a) * b`.
    SigmoidTimes,
    /// `silu(a) * b`.
    SiluTimes,
    /// `gelu_tanh(a) * b`.
    GeluTanhTimes,
    /// `g * sigmoid(slope * g) * (u + 1)`, where `g` is `a` up to `limit`, and `u` is `b` from
    /// `-limit` to `limit`.
    ClampedSwiglu { slope: f32, limit: f32 },
}

/// `out = f(a, b)`, value by value.
pub(crate) struct PairwiseOp<'a> {
    pub(crate) function: Pairwise,
    /// As many as of `b`, or one for all of them.
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) output: &'a mut [f32],
}

impl Op for PairwiseOp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let single = match self.a {
            [a] => Some(isa.splat(*a)),
            _ => None,
        };
        let inputs = self.b.chunks(LANES).zip(self.output.chunks_mut(LANES));
        for (run, (b, output)) in inputs.enumerate() {
            let a = match single {
                Some(a) => a,
                None => isa.load_partial(&self.a[run * LANES..][..b.len()], 0.0),
            };
            let b = isa.load_partial(b, 0.0);
            let value = match self.function {
                Pairwise::Add => isa.add(a, b),
                Pairwise::Multiply => isa.mul(a, b),
                Pairwise::SigmoidTimes => isa.mul(math::sigmoid(isa, a), b),
                Pairwise::SiluTimes => isa.mul(math::silu(isa, a), b),
                Pairwise::GeluTanhTimes => isa.mul(math::gelu_tanh(isa, a), b),
                Pairwise::ClampedSwiglu { slope, limit } => {
                    // In this order a NaN stays.
                    let (high, low) = (isa.splat(limit), isa.splat(-limit));
                    let gate = isa.min(high, a);
                    let up = isa.max(low, isa.min(high, b));
                    let slope = isa.mul(isa.splat(slope), gate);
                    let gate = isa.mul(gate, math::sigmoid(isa, slope));
                    isa.mul(gate, isa.add(up, isa.splat(1.0)))
                }
            };
            isa.store_partial(value, output);
        }
    }
}

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pointwise {
    /// Times a constant.
    Scale(f32),
    /// `cap * tanh(x / cap)`.
    SoftCap(f32),
}

/// `out = f(x)`, value by value.
pub(crate) struct PointwiseOp<'a> {
    pub(crate) function: Pointwise,
    pub(crate) input: &'a [f32],
    pub(crate) output: &'a mut [f32],
}

impl Op for PointwiseOp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        for (input, output) in self.input.chunks(LANES).zip(self.output.chunks_mut(LANES)) {
            let value = isa.load_partial(input, 0.0);
            let value = match self.function {
                Pointwise::Scale(factor) => isa.mul(value, isa.splat(factor)),
                Pointwise::SoftCap(cap) => math::soft_cap(isa, value, cap),
            };
            isa.store_partial(value, output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kernels::linear_tests::noise, simd::Simd};

    type Of1 = fn(f64) -> f64;
    type Of2 = fn(f64, f64) -> f64;

    #[test]
    fn norm_matches_its_definition_for_rows_and_heads_of_any_width() {
        for (runs, width) in [(1, 576), (5, 64), (7, 20), (3, 1), (2, 17)] {
            let (input, weight) = (noise(3, runs * width), noise(4, width));
            let (epsilon, offset) = (1e-5, 1.0);
            for simd in Simd::available() {
                let mut output = vec![f32::NAN; input.len()];
                let norm = RmsNorm {
                    input: &input,
                    output: &mut output,
                    weight: &weight,
                    epsilon,
                    offset,
                };
                simd.run(norm);
                for (input, output) in input.chunks(width).zip(output.chunks(width)) {
                    let squares: f64 = input.iter().map(|x| f64::from(*x).powi(2)).sum();
                    let root = (squares / width as f64 + f64::from(epsilon)).sqrt();
                    for ((x, weight), got) in input.iter().zip(&weight).zip(output) {
                        let expected = f64::from(*x) / root * (f64::from(*weight) + 1.0);
                        assert!((f64::from(*got) - expected).abs() < 2e-6, "{simd:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_norm_does_not_depend_on_the_rows_beside_it() {
        let (input, weight) = (noise(5, 9 * 100), noise(6, 100));
        for simd in Simd::available() {
            let run = |input: &[f32]| {
                let mut output = vec![f32::NAN; input.len()];
                let weight = &weight[..];
                simd.run(RmsNorm {
                    input,
                    output: &mut output,
                    weight,
                    epsilon: 1e-6,
                    offset: 0.0,
                });
                output
            };
            let together = run(&input);
            for (row, together) in input.chunks(100).zip(together.chunks(100)) {
                assert_eq!(run(row), together, "{simd:?}");
            }
        }
    }

    #[test]
    fn functions_of_one_and_two_values_match_their_definitions() {
        let (a, b) = (noise(7, 77), noise(8, 77));
        for simd in Simd::available() {
            let mut output = vec![f32::NAN; 77];
            let clamped = Pairwise::ClampedSwiglu { slope: 1.702, limit: 0.5 };
            let pairwise: [(Pairwise, Of2); 6] = [
                (Pairwise::Add, |a, b| a + b),
                (Pairwise::Multiply, |a, b| a * b),
                (Pairwise::SigmoidTimes, |a, b| b / (1.0 + (-a).exp())),
                (clamped, |a, b| {
                    let (gate, up) = (a.min(0.5), b.clamp(-0.5, 0.5));
                    gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
                }),
                (Pairwise::SiluTimes, |a, b| a / (1.0 + (-a).exp()) * b),
                (Pairwise::GeluTanhTimes, |a, b| {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (a + 0.044715 * a.powi(3));
                    0.5 * a * (1.0 + u.tanh()) * b
                }),
            ];
            for (function, reference) in pairwise {
                simd.run(PairwiseOp { function, a: &a, b: &b, output: &mut output });
                for ((a, b), got) in a.iter().zip(&b).zip(&output) {
                    let expected = reference(f64::from(*a), f64::from(*b));
                    assert!((f64::from(*got) - expected).abs() < 1e-6, "{simd:?} {function:?}");
                }
            }
            let function = Pairwise::Multiply;
            simd.run(PairwiseOp { function, a: &a[..1], b: &b, output: &mut output });
            assert!(b.iter().zip(&output).all(|(b, got)| *got == a[0] * b), "{simd:?}");
            let pointwise: [(Pointwise, Of1); 2] = [
                (Pointwise::Scale(-2.5), |x| x * -2.5),
                (Pointwise::SoftCap(0.5), |x| 0.5 * (x / 0.5).tanh()),
            ];
            for (function, reference) in pointwise {
                simd.run(PointwiseOp { function, input: &a, output: &mut output });
                for (x, got) in a.iter().zip(&output) {
                    let expected = reference(f64::from(*x));
                    assert!((f64::from(*got) - expected).abs() < 1e-6, "{simd:?} {function:?}");
                }
            }
        }
    }
}
