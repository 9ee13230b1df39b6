//! Sums and functions, in the types that products are made in.

use crate::machine::float::{Bf16, F16, Half};

/// Partial sums of a dot product.
const SUMS: usize = 16;

/// In what sums are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sums {
    F16,
    F32,
    F64,
    I32,
}

/// What operands of f32 are rounded to before they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    None,
    F16,
    Bf16,
    Tf32,
}

/// Vectors in the type that they are multiplied in.
pub(super) enum Vectors {
    Single(Vec<f32>),
    Double(Vec<f64>),
    Whole(Vec<i32>),
}

impl Vectors {
    pub(super) fn new(sums: Sums, rounding: Rounding, values: &[f64]) -> Self {
        match sums {
            Sums::F64 => Self::Double(values.to_vec()),
            Sums::I32 => Self::Whole(values.iter().map(|value| *value as i32).collect()),
            Sums::F16 | Sums::F32 => {
                let round = |value: &f64| {
                    let value = *value as f32;
                    match rounding {
                        Rounding::None => value,
                        Rounding::F16 => F16::widen(F16::narrow(value)),
                        Rounding::Bf16 => Bf16::widen(Bf16::narrow(value)),
                        Rounding::Tf32 => tf32(value),
                    }
                };
                Self::Single(values.iter().map(round).collect())
            }
        }
    }

    pub(super) fn dot(&self, own: usize, other: &Self, index: usize, length: usize) -> f64 {
        fn part<T>(values: &[T], index: usize, length: usize) -> &[T] {
            values.get(index * length..(index + 1) * length).unwrap_or_default()
        }
        match (self, other) {
            (Self::Single(a), Self::Single(b)) => {
                f64::from(dot(part(a, own, length), part(b, index, length)))
            }
            (Self::Double(a), Self::Double(b)) => {
                part(a, own, length).iter().zip(part(b, index, length)).map(|(a, b)| a * b).sum()
            }
            (Self::Whole(a), Self::Whole(b)) => f64::from(
                part(a, own, length)
                    .iter()
                    .zip(part(b, index, length))
                    .fold(0i32, |sum, (a, b)| sum.wrapping_add(a.wrapping_mul(*b))),
            ),
            // Both are made for the same product.
            _ => 0.0,
        }
    }
}

/// A dot product in interleaved partial sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; SUMS];
    let (a_chunks, b_chunks) = (a.chunks_exact(SUMS), b.chunks_exact(SUMS));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The nearest number with 10 bits of fraction, ties away from zero.
fn tf32(value: f32) -> f32 {
    if value.is_finite() {
        f32::from_bits(value.to_bits().wrapping_add(1 << 12) & !0x1fff)
    } else {
        value
    }
}

/// The approximation by tanh, which cuBLASLt uses.
pub(super) fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tf32_keeps_ten_bits_of_fraction() {
        assert_eq!(tf32(1.0 + 2f32.powi(-10)), 1.0 + 2f32.powi(-10));
        assert_eq!(tf32(1.0 + 2f32.powi(-11)), 1.0 + 2f32.powi(-10));
        assert_eq!(tf32(1.0 + 2f32.powi(-12)), 1.0);
        assert!(tf32(f32::NAN).is_nan());
    }
}
