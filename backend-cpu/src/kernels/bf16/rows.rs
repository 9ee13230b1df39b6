//! Activations in bf16.

use std::ops::Range;

use crate::{
    isa::{
        LANES,
        dot::{DotIsa, DotOp},
        tiles::TILE_ROWS,
    },
    pool::{Pool, TaskPanicked, for_rows},
    shared::SharedMut,
    simd::Simd,
};

/// Inputs of a block of weights.
pub(crate) const INPUTS: usize = 32;

/// Rows of activations, rounded: `[rows, width]`, each row padded with zeros to whole blocks, with
/// some rows of nothing behind, so that a tile of rows is whole wherever it begins.
#[derive(Debug, Default)]
pub(crate) struct Bf16Rows {
    values: Vec<u16>,
    /// Of a row: a multiple of 32.
    width: usize,
}

impl Bf16Rows {
    /// Values that inputs `[rows, depth]` become.
    pub(crate) fn values_of((rows, depth): (usize, usize)) -> usize {
        (rows + TILE_ROWS) * depth.next_multiple_of(INPUTS)
    }

    /// Makes room for so many values.
    pub(crate) fn reserve(&mut self, values: usize) {
        if self.values.len() < values {
            self.values.resize(values, 0);
        }
    }

    /// Values that there is room for.
    pub(crate) fn room(&self) -> usize {
        self.values.len()
    }

    /// Rounds `rows` rows of `depth` inputs.
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
        let width = depth.next_multiple_of(INPUTS);
        self.width = width;
        self.reserve(Self::values_of((rows, depth)));
        let values = SharedMut::new(&mut self.values);
        for_rows(pool, rows, depth, &|rows: Range<usize>| {
            // SAFETY: each row is in one range only.
            let values = unsafe { values.part(rows.start * width..rows.end * width) };
            let input = &input[rows.start * depth..rows.end * depth];
            simd.run_dot(Round { input, depth, values });
        })
    }

    /// The rows from `first` on.
    pub(crate) fn from(&self, first: usize) -> Bf16View<'_> {
        Bf16View { values: &self.values[first * self.width..], width: self.width }
    }
}

/// Some of the rows, numbered from zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16View<'a> {
    values: &'a [u16],
    width: usize,
}

impl<'a> Bf16View<'a> {
    /// Values of a row.
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// A row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [u16] {
        &self.values[row * self.width..][..self.width]
    }

    /// A tile of rows from `row` on.
    #[inline(always)]
    pub(crate) fn tile(&self, row: usize) -> &'a [u16] {
        &self.values[row * self.width..(row + TILE_ROWS) * self.width]
    }
}

/// Rounds whole rows.
struct Round<'a> {
    /// `[rows, depth]`.
    input: &'a [f32],
    depth: usize,
    /// `[rows, padded depth]`.
    values: &'a mut [u16],
}

impl DotOp for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: DotIsa>(self, isa: S) {
        let width = self.depth.next_multiple_of(INPUTS);
        let rows = self.input.chunks_exact(self.depth).zip(self.values.chunks_exact_mut(width));
        for (input, values) in rows {
            // Rows behind were written at another width: the padding is written too.
            let values = values.as_chunks_mut::<LANES>().0;
            for (index, to) in values.iter_mut().enumerate() {
                let from = input.get(index * LANES..).unwrap_or_default();
                let from = &from[..from.len().min(LANES)];
                isa.store_bf16(isa.load_partial(from, 0.0), to);
            }
        }
    }
}
