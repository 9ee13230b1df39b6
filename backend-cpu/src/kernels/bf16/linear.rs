//! The products: in vectors, where lanes are output columns, and on matrix units.
//!
//! Vectors: a register tile is up to `PAIR_ROWS` rows by one panel, or one row by four, and
//! each dot product does 32 products, twice what a multiply-add does. Matrix units: 32 rows by two
//! panels, all inputs in one go. One row is bound by memory, 2 bytes a weight.

#![allow(clippy::needless_range_loop, reason = "each index is a register of several arrays")]

use std::ops::Range;

use super::{pairs::Bf16Pairs, rows::Bf16View};
use crate::{
    isa::{
        LANES,
        dot::{DotIsa, DotOp},
        tiles::{TILE_ROWS, TileInputs, Tiles},
    },
    kernels::{
        linear::{LinearRows, Place},
        panels::{PanelBlocks, Panels},
    },
};

/// Some panels, all rows, in vectors.
pub(crate) struct PairTask<'a> {
    pub(crate) panels: &'a Panels<Bf16Pairs>,
    pub(crate) range: Range<usize>,
    pub(crate) input: Bf16View<'a>,
    pub(crate) rows: LinearRows<'a>,
}

impl DotOp for PairTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: DotIsa>(self, isa: S) {
        let mut row = 0;
        while row < self.rows.rows {
            let left = (self.rows.rows - row).min(S::PAIR_ROWS);
            row += match left {
                12.. => self.every_panel::<S, 12>(isa, row),
                8.. => self.every_panel::<S, 8>(isa, row),
                4.. => self.every_panel::<S, 4>(isa, row),
                2.. => self.every_panel::<S, 2>(isa, row),
                _ => self.every_panel::<S, 1>(isa, row),
            };
        }
    }
}

impl PairTask<'_> {
    /// `R` rows by all panels: the rows stay in the first cache meanwhile. Returns `R`.
    #[inline(always)]
    fn every_panel<S: DotIsa, const R: usize>(&self, isa: S, row: usize) -> usize {
        let mut panel = self.range.start;
        while panel < self.range.end {
            if R == 1 && self.rows.rows == 1 && self.range.end - panel >= 4 {
                self.tile::<S, 1, 4>(isa, row, panel);
                panel += 4;
            } else {
                self.tile::<S, R, 1>(isa, row, panel);
                panel += 1;
            }
        }
        R
    }

    /// `R` rows by `P` panels over all inputs.
    #[inline(always)]
    fn tile<S: DotIsa, const R: usize, const P: usize>(&self, isa: S, row: usize, panel: usize) {
        let mut inputs: [&[[u16; 2]]; R] = [&[]; R];
        for (tile_row, input) in inputs.iter_mut().enumerate() {
            *input = self.input.row(row + tile_row).as_chunks::<2>().0;
        }
        let mut panels = [PanelBlocks::EMPTY; P];
        for (index, blocks) in panels.iter_mut().enumerate() {
            *blocks = self.panels.panel(panel + index);
        }
        let mut sums = [[isa.splat(0.0); P]; R];
        for index in 0..self.input.width() / Bf16Pairs::DEPTH_INPUTS {
            let mut run = inputs;
            for row in &mut run {
                *row = &row[index * Bf16Pairs::VECTORS..][..Bf16Pairs::VECTORS];
            }
            let mut blocks = [panels[0].get(index); P];
            for p in 0..P {
                blocks[p] = panels[p].get(index);
                if let Some(ahead) = panels[p].ahead(index) {
                    isa.prefetch(ahead);
                }
            }
            for pair in 0..Bf16Pairs::VECTORS {
                let mut weights = [isa.load_pairs(blocks[0].vector(pair)); P];
                for p in 1..P {
                    weights[p] = isa.load_pairs(blocks[p].vector(pair));
                }
                for r in 0..R {
                    let [first, second] = run[r][pair];
                    let words = u32::from(first) | u32::from(second) << 16;
                    for p in 0..P {
                        sums[r][p] = isa.dot_pairs(sums[r][p], weights[p], words);
                    }
                }
            }
        }
        for (tile_row, sums) in sums.into_iter().enumerate() {
            for (index, sum) in sums.into_iter().enumerate() {
                let place = Place::new(panel + index, self.panels.columns());
                place.finish(isa, row + tile_row, sum, self.rows);
            }
        }
    }
}

/// Some panels, all rows, on a matrix unit.
pub(crate) struct TiledPairTask<'a, T> {
    pub(crate) tiles: T,
    pub(crate) panels: &'a Panels<Bf16Pairs>,
    pub(crate) range: Range<usize>,
    pub(crate) input: Bf16View<'a>,
    pub(crate) rows: LinearRows<'a>,
}

impl<T: Tiles> DotOp for TiledPairTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: DotIsa>(self, isa: S) {
        let (rows, width) = (self.rows.rows, self.input.width());
        for panel in self.range.clone().step_by(2) {
            let count = (self.range.end - panel).min(2);
            // A lone panel is computed twice.
            let (first, step) = self.panels.panel(panel).as_slice();
            let (second, _) = self.panels.panel(panel + count - 1).as_slice();
            let weights = [Bf16Pairs::tiles(first), Bf16Pairs::tiles(second)];
            for row in (0..rows).step_by(2 * TILE_ROWS) {
                let tiles = (rows - row).div_ceil(TILE_ROWS).min(2);
                let inputs = TileInputs {
                    tiles: [0, tiles - 1].map(|tile| self.input.tile(row + tile * TILE_ROWS)),
                    count: tiles,
                    stride: width,
                };
                let mut sums = [[[[0.0; LANES]; TILE_ROWS]; 2]; 2];
                let blocks = width / Bf16Pairs::DEPTH_INPUTS;
                self.tiles.pairs(inputs, weights, step, blocks, &mut sums);
                for (index, sums) in sums.iter().enumerate().take(count) {
                    let place = Place::new(panel + index, self.panels.columns());
                    let sums = sums.as_flattened().iter().take(rows - row);
                    for (row, sum) in (row..).zip(sums) {
                        place.finish(isa, row, isa.load(sum), self.rows);
                    }
                }
            }
        }
    }
}
