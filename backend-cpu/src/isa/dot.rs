//! Dot products of short integers and of bf16, sixteen outputs at a time.
//!
//! Kernels of reduced precision are written once against [`DotIsa`]. Lanes are output columns as in
//! [`Isa`]; a weight vector holds, for each of the sixteen columns, the weights of four neighbouring
//! inputs (bytes) or of two (bf16), and the activations of these inputs are broadcast. Integer
//! sums are exact, so all paths agree on them bit for bit. Sums of bf16 products are rounded as the
//! path rounds them, and agree within one path only.

use super::{Isa, LANES, Portable};

/// Bytes of a vector of weights: four inputs of sixteen columns.
pub(crate) const QUADS: usize = 4 * LANES;
/// bf16 numbers of a vector of weights: two inputs of sixteen columns.
pub(crate) const PAIRS: usize = 2 * LANES;

/// An instruction-set path with dot products.
pub(crate) trait DotIsa: Isa {
    /// Four unsigned bytes for each of sixteen columns.
    type Bytes: Copy;
    /// Sixteen sums.
    type I32: Copy;
    /// Two bf16 for each of sixteen columns.
    type Pairs: Copy;

    /// Rows of the register tile of a product of bytes, up to twelve.
    const BYTE_ROWS: usize;
    /// Rows of the register tile of a product of bf16, up to twelve.
    const PAIR_ROWS: usize;

    /// Runs `op` in a function that is compiled with this path's instructions.
    fn vectorize_dot<O: DotOp>(self, op: O) -> O::Output;

    fn splat_i32(self, value: i32) -> Self::I32;
    fn load_i32(self, from: &[i32; LANES]) -> Self::I32;
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn to_f32(self, value: Self::I32) -> Self::F32;
    fn load_bytes(self, from: &[u8; QUADS]) -> Self::Bytes;
    /// The low nibbles and the high ones, each as bytes.
    fn load_nibble_bytes(self, from: &[u8; QUADS]) -> [Self::Bytes; 2];
    /// Adds products of weights up to 15 and signed bytes, four of each in a lane of `inputs`.
    /// No byte of `inputs` is -128.
    fn dot_nibbles(self, sum: Self::I32, weights: [Self::Bytes; 2], inputs: [i32; 2]) -> Self::I32;
    /// The same for weights up to 255.
    fn dot_bytes(self, sum: Self::I32, weights: [Self::Bytes; 2], inputs: [i32; 2]) -> Self::I32;

    fn load_pairs(self, from: &[u16; PAIRS]) -> Self::Pairs;
    /// Adds the products of two bf16 weights a column and two bf16 inputs, the first in the lower
    /// half of `inputs`.
    fn dot_pairs(self, sum: Self::F32, weights: Self::Pairs, inputs: u32) -> Self::F32;

    /// The greatest lane, in any order of comparison.
    #[inline(always)]
    fn greatest_of_all(self, a: Self::F32) -> f32 {
        self.greatest(a)
    }

    /// The sum of all lanes, in any order of addition: for sums that are exact.
    #[inline(always)]
    fn sum_of_all(self, a: Self::F32) -> f32 {
        self.sum(a)
    }

    /// Stores integral values between -128 and 127 as bytes.
    fn store_i8(self, value: Self::F32, to: &mut [i8; LANES]);
    /// Rounds to bf16, to nearest, ties to even. NaN stays NaN.
    fn store_bf16(self, value: Self::F32, to: &mut [u16; LANES]);
}

/// A piece of work that is generic over paths with dot products; see [`Op`](super::Op).
pub(crate) trait DotOp {
    /// What it computes.
    type Output;
    /// Does the work.
    fn run<S: DotIsa>(self, isa: S) -> Self::Output;
}

/// An f32 rounded to bf16, to nearest, ties to even.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The value of a bf16.
#[inline(always)]
pub(crate) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The twin of all dot-product units: plain loops.
impl DotIsa for Portable {
    type Bytes = [u8; QUADS];
    type I32 = [i32; LANES];
    type Pairs = [u16; PAIRS];

    const BYTE_ROWS: usize = 2;
    const PAIR_ROWS: usize = 2;

    #[inline(always)]
    fn vectorize_dot<O: DotOp>(self, op: O) -> O::Output {
        op.run(self)
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> Self::I32 {
        [value; LANES]
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I32 {
        *from
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn to_f32(self, value: Self::I32) -> [f32; LANES] {
        value.map(|value| value as f32)
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; QUADS]) -> Self::Bytes {
        *from
    }

    #[inline(always)]
    fn load_nibble_bytes(self, from: &[u8; QUADS]) -> [Self::Bytes; 2] {
        [from.map(|byte| byte & 15), from.map(|byte| byte >> 4)]
    }

    #[inline(always)]
    fn dot_nibbles(self, sum: Self::I32, weights: [Self::Bytes; 2], inputs: [i32; 2]) -> Self::I32 {
        self.dot_bytes(sum, weights, inputs)
    }

    #[inline(always)]
    fn dot_bytes(
        self,
        mut sum: Self::I32,
        weights: [Self::Bytes; 2],
        inputs: [i32; 2],
    ) -> Self::I32 {
        for (weights, inputs) in weights.iter().zip(inputs) {
            let inputs = inputs.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
            for (sum, weights) in sum.iter_mut().zip(weights.as_chunks::<4>().0) {
                for (weight, input) in weights.iter().zip(inputs) {
                    *sum += i32::from(*weight) * input;
                }
            }
        }
        sum
    }

    #[inline(always)]
    fn load_pairs(self, from: &[u16; PAIRS]) -> Self::Pairs {
        *from
    }

    #[inline(always)]
    fn dot_pairs(self, sum: [f32; LANES], weights: Self::Pairs, inputs: u32) -> [f32; LANES] {
        let [first, second] = [inputs as u16, (inputs >> 16) as u16].map(bf16_value);
        let pairs = weights.as_chunks::<2>().0;
        let lane = |index: usize| std::array::from_fn(|lane| bf16_value(pairs[lane][index]));
        let sum = self.mul_add([first; LANES], lane(0), sum);
        self.mul_add([second; LANES], lane(1), sum)
    }

    #[inline(always)]
    fn store_i8(self, value: [f32; LANES], to: &mut [i8; LANES]) {
        *to = value.map(|value| value as i8);
    }

    #[inline(always)]
    fn store_bf16(self, value: [f32; LANES], to: &mut [u16; LANES]) {
        *to = value.map(bf16_bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Simd;

    /// Integer products at the extremes of their operands.
    #[derive(Clone)]
    struct Extremes;

    impl DotOp for Extremes {
        type Output = Vec<[f32; LANES]>;

        fn run<S: DotIsa>(self, isa: S) -> Self::Output {
            let bytes: [u8; QUADS] = std::array::from_fn(|i| [0, 255, 128, 127, 1][i % 5]);
            let other: [u8; QUADS] = std::array::from_fn(|i| (i * 37 + 11) as u8);
            let words = [i32::from_le_bytes([127, 127, 127, 127]), i32::from_le_bytes([129; 4])];
            let mixed =
                [i32::from_le_bytes([129, 127, 0, 3]), i32::from_le_bytes([1, 255, 5, 250])];
            let mut out = Vec::new();
            let mut push = |value: S::I32| {
                let mut lanes = [0.0; LANES];
                isa.store(isa.to_f32(value), &mut lanes);
                out.push(lanes);
            };
            let start: [i32; LANES] = std::array::from_fn(|lane| lane as i32 * 1000 - 8000);
            let start = isa.add_i32(isa.load_i32(&start), isa.splat_i32(-5));
            push(start);
            let [a, b] = [isa.load_bytes(&bytes), isa.load_bytes(&other)];
            for words in [words, mixed] {
                push(isa.dot_bytes(start, [a, b], words));
                push(isa.dot_bytes(start, [b, a], words));
                for bytes in [&bytes, &other] {
                    push(isa.dot_nibbles(start, isa.load_nibble_bytes(bytes), words));
                }
            }
            out
        }
    }

    #[test]
    fn integer_products_are_exact_on_every_path() {
        let expected = Portable.vectorize_dot(Extremes);
        assert_eq!(expected[0][0], -8005.0);
        // Weights of the first column: 0 255 128 127, and 11 48 85 122.
        assert_eq!(expected[1][0], -8005.0 + 127.0 * (510.0 - 266.0));
        for simd in Simd::available() {
            assert_eq!(simd.run_dot(Extremes), expected, "{simd:?}");
        }
    }

    #[derive(Clone)]
    struct Store([f32; LANES]);

    impl DotOp for Store {
        type Output = ([u16; LANES], [i8; LANES]);

        fn run<S: DotIsa>(self, isa: S) -> Self::Output {
            let (mut bf16, mut bytes) = ([0; LANES], [0; LANES]);
            isa.store_bf16(isa.load(&self.0), &mut bf16);
            let integral = std::array::from_fn(|lane| [127.0, -127.0, 0.0, -3.0][lane % 4]);
            isa.store_i8(isa.load(&integral), &mut bytes);
            (bf16, bytes)
        }
    }

    #[test]
    fn rounding_to_bf16_is_that_of_the_half_crate_on_every_path() {
        let mut values = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-40].to_vec();
        for upper in [0x3f80u32, 0x3f81, 0xc123, 0x0001, 0x7f7f] {
            // Below, at and above the middle of two numbers.
            values.extend([0x7fff, 0x8000, 0x8001].map(|low| f32::from_bits(upper << 16 | low)));
        }
        values.extend([f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)]);
        for values in values.chunks(LANES) {
            let lanes = std::array::from_fn(|lane| values.get(lane).copied().unwrap_or(1.5));
            for simd in Simd::available() {
                let (bf16, bytes) = simd.run_dot(Store(lanes));
                for (bits, value) in bf16.into_iter().zip(lanes) {
                    assert_eq!(bits, half::bf16::from_f32(value).to_bits(), "{simd:?} {value}");
                    assert_eq!(bits, bf16_bits(value));
                }
                assert_eq!(bytes[..4], [127, -127, 0, -3], "{simd:?}");
            }
        }
    }
}
