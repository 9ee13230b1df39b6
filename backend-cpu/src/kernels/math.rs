//! Elementary functions on sixteen lanes.

use crate::isa::Isa;

/// `e^x` with a relative error of at most 2e-7 for `x` from -87.3 to 88; the function is clamped
/// there, and NaN stays NaN.
///
/// The argument is split into `n ln 2 + r` with `|r| <= ln 2 / 2`, `ln 2` being taken in two
/// parts so that the subtraction is exact (Cody and Waite); `e^r` is its Taylor polynomial of degree
/// seven, whose remainder there is 5e-9.
#[inline(always)]
pub(crate) fn exp<S: Isa>(isa: S, x: S::F32) -> S::F32 {
    const LOW: f32 = -87.336_54;
    const HIGH: f32 = 88.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 1.0 / 2.0, 1.0, 1.0];
    let x = isa.max(isa.splat(LOW), x);
    let x = isa.min(isa.splat(HIGH), x);
    let n = isa.round(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
    let r = isa.mul_add(n, isa.splat(-LN_2_HIGH), x);
    let r = isa.mul_add(n, isa.splat(-LN_2_LOW), r);
    let mut sum = isa.splat(1.0 / 5040.0);
    for coefficient in TAYLOR {
        sum = isa.mul_add(sum, r, isa.splat(coefficient));
    }
    isa.mul(sum, isa.power_of_two(n))
}

/// `1 / (1 + e^-x)`, relative error at most 4e-7.
#[inline(always)]
pub(crate) fn sigmoid<S: Isa>(isa: S, x: S::F32) -> S::F32 {
    let one = isa.splat(1.0);
    isa.div(one, isa.add(one, exp(isa, isa.sub(isa.splat(0.0), x))))
}

/// The hyperbolic tangent, absolute error at most 3e-7.
#[inline(always)]
pub(crate) fn tanh<S: Isa>(isa: S, x: S::F32) -> S::F32 {
    // 2 sigmoid(2x) - 1
    isa.mul_add(isa.splat(2.0), sigmoid(isa, isa.add(x, x)), isa.splat(-1.0))
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) fn soft_cap<S: Isa>(isa: S, x: S::F32, cap: f32) -> S::F32 {
    let cap = isa.splat(cap);
    isa.mul(cap, tanh(isa, isa.div(x, cap)))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<S: Isa>(isa: S, x: S::F32) -> S::F32 {
    isa.mul(x, sigmoid(isa, x))
}

/// The tanh approximation of GELU: `x / 2 * (1 + tanh(u))` with
/// `u = sqrt(2 / pi) * (x + 0.044715 x^3)`, which is `x * sigmoid(2 u)`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Isa>(isa: S, x: S::F32) -> S::F32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let square = isa.mul(x, x);
    let factor = isa.mul_add(square, isa.splat(0.044_715), isa.splat(1.0));
    let twice_u = isa.mul(isa.mul(x, factor), isa.splat(TWICE_SQRT_2_OVER_PI));
    isa.mul(x, sigmoid(isa, twice_u))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        isa::{LANES, Op},
        simd::Simd,
    };

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Sigmoid,
        Tanh,
        SoftCap,
        Silu,
        Gelu,
    }

    #[derive(Clone)]
    struct Apply(Function, [f32; LANES]);

    impl Op for Apply {
        type Output = [f32; LANES];

        fn run<S: Isa>(self, isa: S) -> Self::Output {
            let x = isa.load(&self.1);
            let y = match self.0 {
                Function::Exp => exp(isa, x),
                Function::Sigmoid => sigmoid(isa, x),
                Function::Tanh => tanh(isa, x),
                Function::SoftCap => soft_cap(isa, x, 30.0),
                Function::Silu => silu(isa, x),
                Function::Gelu => gelu_tanh(isa, x),
            };
            let mut lanes = [0.0; LANES];
            isa.store(y, &mut lanes);
            lanes
        }
    }

    /// Checks `function` against `reference` at a million points of a range.
    fn check(
        function: Function,
        range: std::ops::Range<f32>,
        reference: impl Fn(f64) -> f64,
        allowed: impl Fn(f64) -> f64,
    ) {
        const POINTS: usize = 1 << 16;
        for simd in Simd::available() {
            for first in 0..POINTS {
                let at = |lane: usize| {
                    let t = (first * LANES + lane) as f32 / (POINTS * LANES) as f32;
                    range.start + (range.end - range.start) * t
                };
                let x: [f32; LANES] = std::array::from_fn(at);
                let got = simd.run(Apply(function, x));
                for (x, got) in x.iter().zip(got) {
                    let expected = reference(f64::from(*x));
                    let error = (f64::from(got) - expected).abs();
                    assert!(error <= allowed(expected), "{simd:?} at {x}: {got}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn exp_is_within_its_stated_error() {
        check(Function::Exp, -87.3..88.0, f64::exp, |value| value * 2e-7);
        check(Function::Exp, -1.0..1.0, f64::exp, |value| value * 2e-7);
    }

    #[test]
    fn sigmoid_and_tanh_are_within_their_stated_errors() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        check(Function::Sigmoid, -80.0..80.0, sigmoid, |value| value * 4e-7);
        check(Function::Tanh, -12.0..12.0, f64::tanh, |_| 3e-7);
        check(Function::SoftCap, -300.0..300.0, |x| 30.0 * (x / 30.0).tanh(), |_| 1e-5);
    }

    #[test]
    fn activations_are_close_to_their_definitions() {
        check(Function::Silu, -30.0..30.0, |x| x / (1.0 + (-x).exp()), |y| y.abs() * 1e-6 + 1e-12);
        let gelu = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x / (1.0 + (-2.0 * u).exp())
        };
        check(Function::Gelu, -8.0..8.0, gelu, |y| y.abs() * 1e-5 + 1e-9);
    }

    #[test]
    fn extremes_stay_finite_and_not_a_number_stays() {
        for simd in Simd::available() {
            let x: [f32; LANES] = std::array::from_fn(|lane| match lane {
                0 => f32::NEG_INFINITY,
                1 => f32::INFINITY,
                2 => f32::NAN,
                3 => -1e30,
                4 => 1e30,
                _ => 0.0,
            });
            let y = simd.run(Apply(Function::Exp, x));
            assert!(y[0] < 2e-38 && y[1] > 1e38 && y[1].is_finite() && y[2].is_nan());
            assert!(simd.run(Apply(Function::Silu, x))[2].is_nan());
            assert_eq!(simd.run(Apply(Function::Tanh, x))[3..6], [-1.0, 1.0, 0.0]);
        }
    }
}
