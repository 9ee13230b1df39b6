//! The product in vectors: lanes are output columns.
//!
//! A register tile is up to `BYTE_ROWS` rows by one panel, or one row by four: an input
//! that is broadcast is used once, so that it is an operand in memory and takes no register. For each block of 32
//! inputs a row and panel take eight dot products of four, one conversion, one multiplication and
//! one or two multiply-adds; weights are unpacked once for all rows of the tile. So at best 8 of 10
//! (Q4_1: 11) instructions that use the multipliers are dot products of 64 products each, where
//! the exact kernel's multiply-adds do sixteen. One row is bound by memory as before.

#![allow(clippy::needless_range_loop, reason = "each index is a register of several arrays")]

use std::ops::Range;

use super::{blocks::ByteWeights, rows::QuantizedView};
use crate::{
    isa::dot::{DotIsa, DotOp},
    kernels::{
        linear::{LinearRows, Place},
        panels::{PanelBlocks, Panels},
    },
};

/// Some panels, all rows.
pub(crate) struct ByteTask<'a, B> {
    pub(crate) panels: &'a Panels<B>,
    pub(crate) range: Range<usize>,
    pub(crate) input: QuantizedView<'a>,
    pub(crate) rows: LinearRows<'a>,
}

impl<B: ByteWeights> DotOp for ByteTask<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: DotIsa>(self, isa: S) {
        let mut row = 0;
        while row < self.rows.rows {
            let left = (self.rows.rows - row).min(S::BYTE_ROWS);
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

impl<B: ByteWeights> ByteTask<'_, B> {
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
        let width = self.input.width();
        let mut inputs = [self.input.row(row); R];
        for (tile_row, input) in inputs.iter_mut().enumerate() {
            *input = self.input.row(row + tile_row);
        }
        let mut panels = [PanelBlocks::EMPTY; P];
        for (index, blocks) in panels.iter_mut().enumerate() {
            *blocks = self.panels.panel(panel + index);
        }
        let mut sums = [[isa.splat(0.0); P]; R];
        for index in 0..width {
            let mut blocks = [panels[0].get(index); P];
            for p in 0..P {
                blocks[p] = panels[p].get(index);
                if let Some(ahead) = panels[p].ahead(index) {
                    isa.prefetch(ahead);
                }
            }
            let mut dots = [[isa.splat_i32(0); P]; R];
            if B::BIAS != 0 {
                for r in 0..R {
                    dots[r] = [isa.splat_i32(-B::BIAS * inputs[r][index].sum); P];
                }
            }
            for step in 0..4 {
                let [first, second] = B::inputs(step);
                let mut weights = [blocks[0].step(isa, step); P];
                for p in 1..P {
                    weights[p] = blocks[p].step(isa, step);
                }
                for r in 0..R {
                    let quants = &inputs[r][index].quants;
                    let words = [quants[first], quants[second]];
                    for p in 0..P {
                        dots[r][p] = if B::IS_NIBBLES {
                            isa.dot_nibbles(dots[r][p], weights[p], words)
                        } else {
                            isa.dot_bytes(dots[r][p], weights[p], words)
                        };
                    }
                }
            }
            for p in 0..P {
                let scales = blocks[p].scales(isa);
                for r in 0..R {
                    sums[r][p] = add_block(
                        isa,
                        sums[r][p],
                        isa.to_f32(dots[r][p]),
                        scales,
                        inputs[r][index].scale,
                    );
                }
                if B::HAS_MINIMA {
                    let minima = blocks[p].minima(isa);
                    for r in 0..R {
                        let offset = isa.splat(inputs[r][index].offset);
                        sums[r][p] = isa.mul_add(minima, offset, sums[r][p]);
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

/// Adds a block's sum of products of quants, in the order that all kernels share.
#[inline(always)]
pub(super) fn add_block<S: DotIsa>(
    isa: S,
    sum: S::F32,
    dot: S::F32,
    scales: S::F32,
    input_scale: f32,
) -> S::F32 {
    isa.mul_add(dot, isa.mul(scales, isa.splat(input_scale)), sum)
}
