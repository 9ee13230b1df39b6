//! bf16 weights for dot products of two: 32 inputs of sixteen columns, 2 bytes a weight.

use crate::{
    isa::{Isa, LANES, dot::PAIRS, tiles::PairBlock},
    kernels::blocks::Block,
};

/// 32 inputs by sixteen columns: a vector has two inputs of each column.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Bf16Pairs {
    weights: PairBlock,
}

impl Bf16Pairs {
    /// Inputs of a block.
    pub(crate) const DEPTH_INPUTS: usize = 32;
    /// Vectors of a block.
    pub(crate) const VECTORS: usize = Self::DEPTH_INPUTS / 2;

    /// A vector of weights.
    #[inline(always)]
    pub(crate) fn vector(&self, pair: usize) -> &[u16; PAIRS] {
        &self.weights[pair]
    }

    /// Blocks as a matrix unit reads them.
    pub(crate) fn tiles(blocks: &[Self]) -> &[PairBlock] {
        // SAFETY: `Bf16Pairs` is `repr(C)` with a block as its only field and, as 1,024 is a
        // multiple of its alignment, without padding: slices of both have the same layout.
        unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len()) }
    }
}

impl Block for Bf16Pairs {
    const DEPTH: usize = Self::DEPTH_INPUTS;
    type Scale<S: Isa> = ();

    fn zero() -> Self {
        Self { weights: [[0; PAIRS]; Self::VECTORS] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        let values = row.as_chunks::<2>().0.iter().skip(block * Self::DEPTH);
        for (input, bytes) in values.enumerate().take(Self::DEPTH) {
            self.weights[input / 2][2 * column + input % 2] = u16::from_le_bytes(*bytes);
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, _: S, _: usize) {}

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, (): (), pair: usize) -> [S::F32; 2] {
        let pairs = self.weights[pair].as_chunks::<2>().0;
        [0, 1].map(|half| {
            let lanes: [u16; LANES] = std::array::from_fn(|column| pairs[column][half]);
            isa.load_bf16(&lanes)
        })
    }
}
