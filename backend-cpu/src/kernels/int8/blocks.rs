//! Quantized weights for dot products of bytes: 32 inputs of sixteen columns.
//!
//! | format | block | bytes a weight |
//! | --- | --- | --- |
//! | Q8_0 | 16 scales, 8 vectors of 4 inputs by 16 columns, 128 added to each | 1.0625 |
//! | Q4_1 | 16 scales, 16 minima, 4 vectors | 0.625 |
//! | Q4_0 | 16 scales, 4 vectors | 0.5625 |
//!
//! In the 4-bit formats, vector `v` has inputs `4 v ..` in the low nibbles and `16 + 4 v ..` in the
//! high ones: the file's order.

use crate::{
    isa::{
        Isa, LANES,
        dot::{DotIsa, QUADS},
        tiles::ByteBlock,
    },
    kernels::blocks::Block,
};

/// A block that can be multiplied with bytes.
pub(crate) trait ByteWeights: Block {
    /// What is added to each weight to make it unsigned.
    const BIAS: i32;
    /// Whether outputs have a minimum that is added to each weight.
    const HAS_MINIMA: bool;
    /// Whether weights are below 16.
    const IS_NIBBLES: bool;

    /// Scales by column.
    fn scales<S: Isa>(&self, isa: S) -> S::F32;

    /// Minima by column, where the format has them.
    fn minima<S: Isa>(&self, isa: S) -> S::F32;

    /// Two vectors of weights; `step` is below four.
    fn step<S: DotIsa>(&self, isa: S, step: usize) -> [S::Bytes; 2];

    /// Which words of a row's block the two vectors are multiplied with.
    fn inputs(step: usize) -> [usize; 2];

    /// The unsigned weights, for matrix units.
    fn expand(&self, to: &mut ByteBlock);
}

/// Two four-bit vectors.
fn expand_nibbles(quants: &[[u8; QUADS]; 4], to: &mut ByteBlock) {
    for (vector, quants) in quants.iter().enumerate() {
        for (byte, quant) in quants.iter().enumerate() {
            to[vector][byte] = quant & 15;
            to[vector + 4][byte] = quant >> 4;
        }
    }
}

/// Sets a column of four-bit vectors from the 16 bytes of a block in the file.
fn set_nibbles(quants: &mut [[u8; QUADS]; 4], column: usize, bytes: &[u8; 16]) {
    for (vector, bytes) in quants.iter_mut().zip(bytes.as_chunks::<4>().0) {
        vector[4 * column..][..4].copy_from_slice(bytes);
    }
}

/// An input of a column, as it is in the vectors.
fn nibble(quants: &[[u8; QUADS]; 4], column: usize, input: usize) -> u8 {
    let byte = quants[input % 16 / 4][4 * column + input % 4];
    if input < 16 { byte & 15 } else { byte >> 4 }
}

/// Two inputs of all columns, worked out one by one: an embedding is looked up this way.
#[inline(always)]
fn pair_of<S: Isa>(isa: S, pair: usize, quant: impl Fn(usize, usize) -> f32) -> [S::F32; 2] {
    [2 * pair, 2 * pair + 1].map(|input| {
        let lanes: [f32; LANES] = std::array::from_fn(|column| quant(column, input));
        isa.load(&lanes)
    })
}

/// Four bits, a scale and a minimum for each column.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q4_1Quads {
    scales: [u16; LANES],
    minima: [u16; LANES],
    quants: [[u8; QUADS]; 4],
}

impl Block for Q4_1Quads {
    const DEPTH: usize = 32;
    type Scale<S: Isa> = [S::F32; 2];

    fn zero() -> Self {
        Self { scales: [0; LANES], minima: [0; LANES], quants: [[0; QUADS]; 4] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        if let Some([d0, d1, m0, m1, quants @ ..]) = row.as_chunks::<20>().0.get(block) {
            self.scales[column] = u16::from_le_bytes([*d0, *d1]);
            self.minima[column] = u16::from_le_bytes([*m0, *m1]);
            set_nibbles(&mut self.quants, column, quants);
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, isa: S, _: usize) -> [S::F32; 2] {
        [isa.load_f16(&self.scales), isa.load_f16(&self.minima)]
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, [scale, minimum]: [S::F32; 2], pair: usize) -> [S::F32; 2] {
        let quants = pair_of(isa, pair, |column, input| nibble(&self.quants, column, input).into());
        quants.map(|quants| isa.mul_add(quants, scale, minimum))
    }
}

impl ByteWeights for Q4_1Quads {
    const BIAS: i32 = 0;
    const HAS_MINIMA: bool = true;
    const IS_NIBBLES: bool = true;

    #[inline(always)]
    fn scales<S: Isa>(&self, isa: S) -> S::F32 {
        isa.load_f16(&self.scales)
    }

    #[inline(always)]
    fn minima<S: Isa>(&self, isa: S) -> S::F32 {
        isa.load_f16(&self.minima)
    }

    #[inline(always)]
    fn step<S: DotIsa>(&self, isa: S, step: usize) -> [S::Bytes; 2] {
        isa.load_nibble_bytes(&self.quants[step])
    }

    #[inline(always)]
    fn inputs(step: usize) -> [usize; 2] {
        [step, step + 4]
    }

    fn expand(&self, to: &mut ByteBlock) {
        expand_nibbles(&self.quants, to);
    }
}

/// Four bits, eight standing for zero, and a scale for each column.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Q4_0Quads {
    scales: [u16; LANES],
    quants: [[u8; QUADS]; 4],
}

impl Block for Q4_0Quads {
    const DEPTH: usize = 32;
    type Scale<S: Isa> = S::F32;

    fn zero() -> Self {
        Self { scales: [0; LANES], quants: [[0; QUADS]; 4] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        if let Some([low, high, quants @ ..]) = row.as_chunks::<18>().0.get(block) {
            self.scales[column] = u16::from_le_bytes([*low, *high]);
            set_nibbles(&mut self.quants, column, quants);
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, isa: S, _: usize) -> S::F32 {
        isa.load_f16(&self.scales)
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, scale: S::F32, pair: usize) -> [S::F32; 2] {
        let quants = pair_of(isa, pair, |column, input| {
            f32::from(nibble(&self.quants, column, input)) - 8.0
        });
        quants.map(|quants| isa.mul(quants, scale))
    }
}

impl ByteWeights for Q4_0Quads {
    const BIAS: i32 = 8;
    const HAS_MINIMA: bool = false;
    const IS_NIBBLES: bool = true;

    #[inline(always)]
    fn scales<S: Isa>(&self, isa: S) -> S::F32 {
        isa.load_f16(&self.scales)
    }

    #[inline(always)]
    fn minima<S: Isa>(&self, isa: S) -> S::F32 {
        isa.splat(0.0)
    }

    #[inline(always)]
    fn step<S: DotIsa>(&self, isa: S, step: usize) -> [S::Bytes; 2] {
        isa.load_nibble_bytes(&self.quants[step])
    }

    #[inline(always)]
    fn inputs(step: usize) -> [usize; 2] {
        [step, step + 4]
    }

    fn expand(&self, to: &mut ByteBlock) {
        expand_nibbles(&self.quants, to);
    }
}

/// Eight bits and a scale for each column.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Q8_0Quads {
    scales: [u16; LANES],
    quants: ByteBlock,
}

impl Block for Q8_0Quads {
    const DEPTH: usize = 32;
    type Scale<S: Isa> = S::F32;

    fn zero() -> Self {
        Self { scales: [0; LANES], quants: [[128; QUADS]; 8] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        if let Some([low, high, quants @ ..]) = row.as_chunks::<34>().0.get(block) {
            self.scales[column] = u16::from_le_bytes([*low, *high]);
            for (vector, bytes) in self.quants.iter_mut().zip(quants.as_chunks::<4>().0) {
                // Adding 128 turns the sign bit.
                vector[4 * column..][..4].copy_from_slice(&bytes.map(|byte| byte ^ 128));
            }
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, isa: S, _: usize) -> S::F32 {
        isa.load_f16(&self.scales)
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, scale: S::F32, pair: usize) -> [S::F32; 2] {
        let quants = pair_of(isa, pair, |column, input| {
            f32::from(self.quants[input / 4][4 * column + input % 4]) - 128.0
        });
        quants.map(|quants| isa.mul(quants, scale))
    }
}

impl ByteWeights for Q8_0Quads {
    const BIAS: i32 = 128;
    const HAS_MINIMA: bool = false;
    const IS_NIBBLES: bool = false;

    #[inline(always)]
    fn scales<S: Isa>(&self, isa: S) -> S::F32 {
        isa.load_f16(&self.scales)
    }

    #[inline(always)]
    fn minima<S: Isa>(&self, isa: S) -> S::F32 {
        isa.splat(0.0)
    }

    #[inline(always)]
    fn step<S: DotIsa>(&self, isa: S, step: usize) -> [S::Bytes; 2] {
        [isa.load_bytes(&self.quants[2 * step]), isa.load_bytes(&self.quants[2 * step + 1])]
    }

    #[inline(always)]
    fn inputs(step: usize) -> [usize; 2] {
        [2 * step, 2 * step + 1]
    }

    fn expand(&self, to: &mut ByteBlock) {
        *to = self.quants;
    }
}
