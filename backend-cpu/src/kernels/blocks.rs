//! How a run of weights of sixteen output columns is stored, and turned into f32 in registers.
//!
//! A file stores a weight matrix output by output, each output's inputs adjacent. A kernel whose
//! lanes are outputs wants sixteen outputs of one input adjacent. So weights are regrouped at load
//! into *blocks*: [`Block::DEPTH`] inputs by sixteen outputs. The bytes a weight takes, and its value,
//! stay those of the file: `q * d` (plus `m`) in f32, which is exact before the addition of `m`,
//! as `d` has eleven bits and `q` at most eight.
//!
//! | format | block | bytes a weight |
//! | --- | --- | --- |
//! | F32 | 8 inputs of 16 f32 | 4 |
//! | F16, BF16 | 8 inputs of 16 u16 | 2 |
//! | Q8_0 | 16 scales, 32 inputs of 16 i8 | 1.0625 |
//! | Q4_1 | 16 scales, 16 minima, 16 pairs of inputs, 16 bytes a pair | 0.625 |
//! | Q4_0 | 16 scales, 16 pairs of inputs, 16 bytes a pair | 0.5625 |
//! | all other formats | composed of parts in `composed` | as in the file |
//!
//! A byte of a pair holds the even input in its low nibble and the odd one in its high nibble.

use crate::isa::{Isa, LANES};

/// A block of weights: `DEPTH` inputs by sixteen outputs.
pub(crate) trait Block: Copy + Send + Sync + 'static {
    /// Inputs in a block; even.
    const DEPTH: usize;

    /// How many blocks ahead of use a panel is fetched from memory: about 2 KiB.
    const PREFETCH_DISTANCE: usize =
        if size_of::<Self>() < 2048 { 2048 / size_of::<Self>() } else { 1 };

    /// Inputs that share a scale; even.
    const GROUP: usize = Self::DEPTH;

    /// What all weights of an output in a group share, in registers.
    type Scale<S: Isa>: Copy;

    /// All zero; what an output that only pads its panel is made of.
    fn zero() -> Self;

    /// Sets output `column` from the bytes of its row in the file, `block` being which run of
    /// `DEPTH` inputs. A row may end inside a block of a format that isn't quantized: the rest stays
    /// zero.
    fn set_column(&mut self, column: usize, row: &[u8], block: usize);

    /// Loads the shared part of a group.
    fn scale<S: Isa>(&self, isa: S, group: usize) -> Self::Scale<S>;

    /// Inputs `2 * pair` and `2 * pair + 1` of all sixteen outputs, as f32; `scale` is their
    /// group's.
    fn pair<S: Isa>(&self, isa: S, scale: Self::Scale<S>, pair: usize) -> [S::F32; 2];
}

/// Single precision.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct F32Block {
    /// By input.
    pub(crate) weights: [[f32; LANES]; 8],
}

impl Block for F32Block {
    const DEPTH: usize = 8;
    type Scale<S: Isa> = ();

    fn zero() -> Self {
        Self { weights: [[0.0; LANES]; 8] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        let values = row.as_chunks::<4>().0.iter().skip(block * Self::DEPTH);
        for (weights, bytes) in self.weights.iter_mut().zip(values) {
            weights[column] = f32::from_le_bytes(*bytes);
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, _: S, _: usize) {}

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, (): (), pair: usize) -> [S::F32; 2] {
        [isa.load(&self.weights[2 * pair]), isa.load(&self.weights[2 * pair + 1])]
    }
}

/// Half precision.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct F16Block {
    weights: [[u16; LANES]; 8],
}

impl Block for F16Block {
    const DEPTH: usize = 8;
    type Scale<S: Isa> = ();

    fn zero() -> Self {
        Self { weights: [[0; LANES]; 8] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        set_column_of_16_bits(&mut self.weights, column, row, block);
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, _: S, _: usize) {}

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, (): (), pair: usize) -> [S::F32; 2] {
        [isa.load_f16(&self.weights[2 * pair]), isa.load_f16(&self.weights[2 * pair + 1])]
    }
}

/// The upper half of single precision.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Bf16Block {
    weights: [[u16; LANES]; 8],
}

impl Block for Bf16Block {
    const DEPTH: usize = 8;
    type Scale<S: Isa> = ();

    fn zero() -> Self {
        Self { weights: [[0; LANES]; 8] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        set_column_of_16_bits(&mut self.weights, column, row, block);
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, _: S, _: usize) {}

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, (): (), pair: usize) -> [S::F32; 2] {
        [isa.load_bf16(&self.weights[2 * pair]), isa.load_bf16(&self.weights[2 * pair + 1])]
    }
}

fn set_column_of_16_bits(weights: &mut [[u16; LANES]], column: usize, row: &[u8], block: usize) {
    let values = row.as_chunks::<2>().0.iter().skip(block * weights.len());
    for (weights, bytes) in weights.iter_mut().zip(values) {
        weights[column] = u16::from_le_bytes(*bytes);
    }
}

/// Eight bits and a scale for each output.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Q8_0Block {
    scales: [u16; LANES],
    quants: [[i8; LANES]; 32],
}

impl Block for Q8_0Block {
    const DEPTH: usize = 32;
    type Scale<S: Isa> = S::F32;

    fn zero() -> Self {
        Self { scales: [0; LANES], quants: [[0; LANES]; 32] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        if let Some([low, high, quants @ ..]) = row.as_chunks::<34>().0.get(block) {
            self.scales[column] = u16::from_le_bytes([*low, *high]);
            for (to, from) in self.quants.iter_mut().zip(quants) {
                to[column] = from.cast_signed();
            }
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, isa: S, _: usize) -> S::F32 {
        isa.load_f16(&self.scales)
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, scale: S::F32, pair: usize) -> [S::F32; 2] {
        [
            isa.mul(isa.load_i8(&self.quants[2 * pair]), scale),
            isa.mul(isa.load_i8(&self.quants[2 * pair + 1]), scale),
        ]
    }
}

/// Four bits, a scale and a minimum for each output.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q4_1Block {
    scales: [u16; LANES],
    minima: [u16; LANES],
    quants: [[u8; LANES]; 16],
}

impl Block for Q4_1Block {
    const DEPTH: usize = 32;
    type Scale<S: Isa> = [S::F32; 2];

    fn zero() -> Self {
        Self { scales: [0; LANES], minima: [0; LANES], quants: [[0; LANES]; 16] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        if let Some([d0, d1, m0, m1, quants @ ..]) = row.as_chunks::<20>().0.get(block) {
            self.scales[column] = u16::from_le_bytes([*d0, *d1]);
            self.minima[column] = u16::from_le_bytes([*m0, *m1]);
            set_column_of_nibbles(&mut self.quants, column, quants);
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, isa: S, _: usize) -> [S::F32; 2] {
        [isa.load_f16(&self.scales), isa.load_f16(&self.minima)]
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, [scale, minimum]: [S::F32; 2], pair: usize) -> [S::F32; 2] {
        let [even, odd] = isa.load_nibbles(&self.quants[pair]);
        [isa.mul_add(even, scale, minimum), isa.mul_add(odd, scale, minimum)]
    }
}

/// Four bits, eight standing for zero, and a scale for each output.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Q4_0Block {
    scales: [u16; LANES],
    quants: [[u8; LANES]; 16],
}

impl Block for Q4_0Block {
    const DEPTH: usize = 32;
    type Scale<S: Isa> = [S::F32; 2];

    fn zero() -> Self {
        Self { scales: [0; LANES], quants: [[0; LANES]; 16] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        if let Some([low, high, quants @ ..]) = row.as_chunks::<18>().0.get(block) {
            self.scales[column] = u16::from_le_bytes([*low, *high]);
            set_column_of_nibbles(&mut self.quants, column, quants);
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, isa: S, _: usize) -> [S::F32; 2] {
        // `(q - 8) * d = q * d - 8 * d`, and neither side needs rounding.
        let scale = isa.load_f16(&self.scales);
        [scale, isa.mul(scale, isa.splat(-8.0))]
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, [scale, minimum]: [S::F32; 2], pair: usize) -> [S::F32; 2] {
        let [even, odd] = isa.load_nibbles(&self.quants[pair]);
        [isa.mul_add(even, scale, minimum), isa.mul_add(odd, scale, minimum)]
    }
}

/// The file's byte `i` holds inputs `i` and `i + 16`; ours hold neighbours.
fn set_column_of_nibbles(quants: &mut [[u8; LANES]; 16], column: usize, bytes: &[u8; 16]) {
    let nibble = |input: usize| {
        if input < 16 { bytes[input] & 15 } else { bytes[input - 16] >> 4 }
    };
    for (pair, to) in quants.iter_mut().enumerate() {
        to[column] = nibble(2 * pair) | nibble(2 * pair + 1) << 4;
    }
}
