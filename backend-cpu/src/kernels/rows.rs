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
    /// `silu(a) * b`.
    SiluTimes,
    /// `gelu_tanh(a) * b`.
    GeluTanhTimes,
}

/// `out = f(a, b)`, value by value.
pub(crate) struct PairwiseOp<'a> {
    pub(crate) function: Pairwise,
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) output: &'a mut [f32],
}

impl Op for PairwiseOp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let inputs = self.a.chunks(LANES).zip(self.b.chunks(LANES));
        for ((a, b), output) in inputs.zip(self.output.chunks_mut(LANES)) {
            let (a, b) = (isa.load_partial(a, 0.0), isa.load_partial(b, 0.0));
            let value = match self.function {
                Pairwise::Add => isa.add(a, b),
                Pairwise::SiluTimes => isa.mul(math::silu(isa, a), b),
                Pairwise::GeluTanhTimes => isa.mul(math::gelu_tanh(isa, a), b),
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
