//! Activations as bytes.

use std::ops::Range;

use crate::{
    isa::{
        LANES,
        dot::{DotIsa, DotOp},
        tiles::{RowBlock, TILE_ROWS},
    },
    pool::{Pool, TaskPanicked, for_rows},
    shared::SharedMut,
    simd::Simd,
};

/// Inputs that share a scale.
pub(crate) const INPUTS: usize = 32;

/// Rows of activations, quantized: `[rows, blocks]`, with some rows of nothing behind, so that a tile
/// of rows is whole wherever it begins.
#[derive(Debug, Default)]
pub(crate) struct QuantizedRows {
    blocks: Vec<RowBlock>,
    /// Blocks of a row.
    width: usize,
}

impl QuantizedRows {
    /// Blocks that inputs `[rows, depth]` become.
    pub(crate) fn blocks_of((rows, depth): (usize, usize)) -> usize {
        (rows + TILE_ROWS) * depth.div_ceil(INPUTS)
    }

    /// Makes room for so many blocks.
    pub(crate) fn reserve(&mut self, blocks: usize) {
        if self.blocks.len() < blocks {
            self.blocks.resize(blocks, RowBlock::default());
        }
    }

    /// Blocks that there is room for.
    pub(crate) fn room(&self) -> usize {
        self.blocks.len()
    }

    /// Quantizes `rows` rows of `depth` inputs.
    ///
    /// # Errors
    /// If the kernel panicked.
    pub(crate) fn fill(
        &mut self,
        pool: &mut Pool,
        simd: Simd,
        input: &[f32],
        (rows, depth): (usize, usize),
    ) -> Result<(), TaskPanicked> {
        self.width = depth.div_ceil(INPUTS);
        self.reserve(Self::blocks_of((rows, depth)));
        let width = self.width;
        let blocks = SharedMut::new(&mut self.blocks);
        for_rows(pool, rows, depth, &|rows: Range<usize>| {
            // SAFETY: each row is in one range only.
            let blocks = unsafe { blocks.part(rows.start * width..rows.end * width) };
            let input = &input[rows.start * depth..rows.end * depth];
            simd.run_dot(Quantize { input, depth, blocks });
        })
    }

    /// The rows from `first` on.
    pub(crate) fn from(&self, first: usize) -> QuantizedView<'_> {
        QuantizedView { blocks: &self.blocks[first * self.width..], width: self.width }
    }
}

/// Some of the rows, numbered from zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantizedView<'a> {
    blocks: &'a [RowBlock],
    width: usize,
}

impl<'a> QuantizedView<'a> {
    /// Blocks of a row.
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// A row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [RowBlock] {
        &self.blocks[row * self.width..][..self.width]
    }

    /// A tile of rows from `row` on, from `block` on.
    #[inline(always)]
    pub(crate) fn tile(&self, row: usize, block: usize) -> &'a [RowBlock] {
        &self.blocks[row * self.width + block..(row + TILE_ROWS) * self.width]
    }
}

/// Quantizes whole rows. A block with a value that is not finite gets a scale that is not a number,
/// which all outputs of its row inherit.
pub(crate) struct Quantize<'a> {
    /// `[rows, depth]`.
    pub(crate) input: &'a [f32],
    pub(crate) depth: usize,
    /// `[rows, blocks]`.
    pub(crate) blocks: &'a mut [RowBlock],
}

impl DotOp for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: DotIsa>(self, isa: S) {
        let width = self.depth.div_ceil(INPUTS);
        let rows = self.input.chunks_exact(self.depth).zip(self.blocks.chunks_exact_mut(width));
        for (row, blocks) in rows {
            for (input, block) in row.chunks(INPUTS).zip(blocks) {
                let (first, second) = input.split_at(input.len().min(LANES));
                let values = [isa.load_partial(first, 0.0), isa.load_partial(second, 0.0)];
                *block = quantize(isa, values);
            }
        }
    }
}

#[inline(always)]
fn quantize<S: DotIsa>(isa: S, values: [S::F32; 2]) -> RowBlock {
    let zero = isa.splat(0.0);
    let mut greatest = zero;
    for value in values {
        greatest = isa.max(greatest, isa.max(value, isa.sub(zero, value)));
    }
    let greatest = isa.greatest_of_all(greatest);
    let inverse = if greatest > f32::MIN_POSITIVE * 128.0 { 127.0 / greatest } else { 0.0 };
    let mut bytes = [[0; LANES]; 2];
    let mut sum = zero;
    for (value, bytes) in values.into_iter().zip(&mut bytes) {
        let quant = isa.round(isa.mul(value, isa.splat(inverse)));
        sum = isa.add(sum, quant);
        isa.store_i8(quant, bytes);
    }
    // Whole numbers below 2^24, so exact in any order; or not a number, as a value that is not
    // finite makes a quant that is none.
    let sum = isa.sum_of_all(sum);
    let scale = if sum.is_nan() { f32::NAN } else { greatest / 127.0 };
    let sum = sum as i32;
    let mut quants = [0; 8];
    for (word, bytes) in quants.iter_mut().zip(bytes.as_flattened().as_chunks::<4>().0) {
        *word = i32::from_le_bytes(bytes.map(i8::cast_unsigned));
    }
    RowBlock { quants, scale, offset: scale * sum as f32, sum }
}
