//! The product on matrix units: tiles of sixteen rows by sixteen columns.
//!
//! Two panels are taken together, [`DEPTH`] blocks at a time: weights become bytes once for all
//! rows, and stay in the first caches. The unit sums 32 inputs a tile and hands the sums to the
//! vector units, which scale and add them in the order of the vector kernel: results are the same
//! bits. That scaling, not the unit, is the limit: 32 inputs use half of a tile's depth, and each
//! of the unit's outputs takes a conversion and one or two multiply-adds.

use std::ops::Range;

use super::{blocks::ByteWeights, linear::add_block, rows::QuantizedView};
use crate::{
    isa::{
        LANES,
        dot::{DotIsa, DotOp},
        tiles::{BLOCKS_AT_ONCE, ByteBlock, RowBlock, TILE_ROWS, TileInputs, TileSums, Tiles},
    },
    kernels::{
        linear::{LinearRows, Place},
        panels::Panels,
    },
};

/// Blocks that are expanded at a time.
const DEPTH: usize = 32;

/// Some panels, all rows.
pub(crate) struct TiledTask<'a, B, T> {
    pub(crate) tiles: T,
    pub(crate) panels: &'a Panels<B>,
    pub(crate) range: Range<usize>,
    pub(crate) input: QuantizedView<'a>,
    pub(crate) rows: LinearRows<'a>,
    pub(crate) scratch: &'a mut ByteScratch,
}

/// What a thread computes in.
#[derive(Default)]
pub(crate) struct ByteScratch {
    /// By panel.
    weights: [Vec<ByteBlock>; 2],
    /// `[row, panel]`: sums so far.
    sums: Vec<[[f32; LANES]; 2]>,
}

impl std::fmt::Debug for ByteScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteScratch").field("rows", &self.sums.len()).finish_non_exhaustive()
    }
}

impl<B: ByteWeights, T: Tiles> DotOp for TiledTask<'_, B, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: DotIsa>(mut self, isa: S) {
        for panel in self.range.clone().step_by(2) {
            let count = (self.range.end - panel).min(2);
            self.two_panels(isa, panel, count);
        }
    }
}

impl<B: ByteWeights, T: Tiles> TiledTask<'_, B, T> {
    /// One or two panels.
    #[inline(always)]
    fn two_panels<S: DotIsa>(&mut self, isa: S, panel: usize, count: usize) {
        let ByteScratch { weights, sums } = &mut *self.scratch;
        let rows = self.rows.rows;
        sums.clear();
        sums.resize(rows.next_multiple_of(TILE_ROWS), [[0.0; LANES]; 2]);
        let width = self.input.width();
        // A lone panel is computed twice.
        let panels = [0, count - 1].map(|index| self.panels.panel(panel + index));
        for start in (0..width).step_by(DEPTH) {
            let blocks = start..(start + DEPTH).min(width);
            for (weights, panel) in weights.iter_mut().zip(panels) {
                weights.resize(blocks.len(), [[0; 64]; 8]);
                for (to, block) in weights.iter_mut().zip(blocks.clone()) {
                    panel.get(block).expand(to);
                }
            }
            for row in (0..rows).step_by(2 * TILE_ROWS) {
                let tiles = (rows - row).div_ceil(TILE_ROWS).min(2);
                let mut out = [[[[[0; LANES]; TILE_ROWS]; 2]; 2]; BLOCKS_AT_ONCE];
                for first in blocks.clone().step_by(BLOCKS_AT_ONCE) {
                    let last = (first + BLOCKS_AT_ONCE).min(blocks.end);
                    let part = first - start..last - start;
                    let inputs = TileInputs {
                        tiles: [0, tiles - 1]
                            .map(|tile| self.input.tile(row + tile * TILE_ROWS, first)),
                        count: tiles,
                        stride: width,
                    };
                    let weights = [&weights[0][part.clone()], &weights[1][part]];
                    self.tiles.bytes(inputs, weights, &mut out);
                    for (index, panel) in panels.iter().enumerate().take(count) {
                        for tile in 0..tiles {
                            let row = row + tile * TILE_ROWS;
                            for (out, block) in out.iter().zip(first..last) {
                                let inputs = self.input.tile(row, block);
                                let sums = &mut sums[row..row + TILE_ROWS];
                                let out = &out[index][tile];
                                add(isa, panel.get(block), (inputs, width), out, sums, index);
                            }
                        }
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate().take(rows) {
            for (index, sum) in sums.iter().enumerate().take(count) {
                let place = Place::new(panel + index, self.panels.columns());
                place.finish(isa, row, isa.load(sum), self.rows);
            }
        }
    }
}

/// Adds what the unit summed over a block.
#[inline(always)]
fn add<S: DotIsa, B: ByteWeights>(
    isa: S,
    block: &B,
    (inputs, stride): (&[RowBlock], usize),
    out: &TileSums<i32>,
    sums: &mut [[[f32; LANES]; 2]],
    panel: usize,
) {
    let (scales, minima) = (block.scales(isa), block.minima(isa));
    for ((input, out), sums) in inputs.iter().step_by(stride).zip(out).zip(sums) {
        let sum = &mut sums[panel];
        let bias = isa.splat_i32(-B::BIAS * input.sum);
        let dot = isa.to_f32(isa.add_i32(isa.load_i32(out), bias));
        let mut total = add_block(isa, isa.load(sum), dot, scales, input.scale);
        if B::HAS_MINIMA {
            total = isa.mul_add(minima, isa.splat(input.offset), total);
        }
        isa.store(total, sum);
    }
}
