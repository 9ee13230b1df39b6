//! Matrix units: tiles of sixteen rows by sixteen columns.
//!
//! Two operations, each on one or two tiles of rows by two panels: products of bytes, whose sums
//! are handed out block by block as every block of 32 inputs has its own scales, and products of
//! bf16, which are summed over all inputs. [`Amx`] has the instructions; [`TileTwin`] does the same
//! in plain loops, so that the kernels around the tiles are tested on any machine.

#[cfg(target_arch = "x86_64")]
mod amx;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::Amx;

use super::{
    LANES,
    dot::{PAIRS, QUADS},
};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Blocks of bytes whose sums are handed out at once.
pub(crate) const BLOCKS_AT_ONCE: usize = 4;

/// 32 inputs of a row in eight bits.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(crate) struct RowBlock {
    /// Signed bytes, four of them in each word, the first in the lowest byte.
    pub(crate) quants: [i32; 8],
    /// What a quant stands for.
    pub(crate) scale: f32,
    /// The sum of the quants times `scale`.
    pub(crate) offset: f32,
    /// The sum of the quants.
    pub(crate) sum: i32,
}

/// 32 inputs by sixteen columns as bytes: four inputs of each column in a vector.
pub(crate) type ByteBlock = [[u8; QUADS]; 8];
/// 32 inputs by sixteen columns as bf16: two inputs of each column in a vector.
pub(crate) type PairBlock = [[u16; PAIRS]; 16];
/// Sums of a tile, `[row, column]`.
pub(crate) type TileSums<T> = [[T; LANES]; TILE_ROWS];

/// One or two tiles of rows: where the first row of each starts, and how far it is to the next one.
#[derive(Clone, Copy)]
pub(crate) struct TileInputs<'a, T> {
    pub(crate) tiles: [&'a [T]; 2],
    /// How many of `tiles` there are.
    pub(crate) count: usize,
    pub(crate) stride: usize,
}

impl<T> TileInputs<'_, T> {
    /// Panics unless each tile has `TILE_ROWS` rows of `width`.
    fn check(&self, width: usize) {
        assert!(matches!(self.count, 1 | 2), "one or two tiles of rows");
        for tile in &self.tiles[..self.count] {
            assert!(tile.len() >= (TILE_ROWS - 1) * self.stride + width, "a tile lacks rows");
        }
    }
}

/// Something that multiplies tiles.
pub(crate) trait Tiles: Copy + Send + Sync + 'static {
    /// For each of up to [`BLOCKS_AT_ONCE`] blocks and the tiles of `inputs`: sums of signed input
    /// bytes times unsigned weight bytes, by block, and tile after tile for the first panel and
    /// then the second. `weights` has the same number of blocks for both panels.
    fn bytes(
        self,
        inputs: TileInputs<'_, RowBlock>,
        weights: [&[ByteBlock]; 2],
        sums: &mut [[[TileSums<i32>; 2]; 2]; BLOCKS_AT_ONCE],
    );

    /// Sums of products of bf16 over all blocks. `weights` are every `step`th block of each panel,
    /// `blocks` of them.
    fn pairs(
        self,
        inputs: TileInputs<'_, u16>,
        weights: [&[PairBlock]; 2],
        step: usize,
        blocks: usize,
        sums: &mut [[TileSums<f32>; 2]; 2],
    );
}

/// Panics unless every `step`th block of each panel exists, `blocks` of them.
fn check_panels(weights: [&[PairBlock]; 2], step: usize, blocks: usize) {
    for panel in weights {
        assert!(blocks > 0 && panel.len() > (blocks - 1) * step, "a panel lacks blocks");
    }
}

/// The twin of a matrix unit: plain loops with the unit's order of additions.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileTwin;

#[cfg(any(test, not(target_arch = "x86_64")))]
impl Tiles for TileTwin {
    fn bytes(
        self,
        inputs: TileInputs<'_, RowBlock>,
        weights: [&[ByteBlock]; 2],
        sums: &mut [[[TileSums<i32>; 2]; 2]; BLOCKS_AT_ONCE],
    ) {
        inputs.check(weights[0].len());
        for (block, sums) in sums.iter_mut().enumerate().take(weights[0].len()) {
            for (panel, sums) in sums.iter_mut().enumerate() {
                for (tile, sums) in sums.iter_mut().enumerate().take(inputs.count) {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let row = &inputs.tiles[tile][row * inputs.stride + block];
                        *sums = dot_bytes(row, &weights[panel][block]);
                    }
                }
            }
        }
    }

    fn pairs(
        self,
        inputs: TileInputs<'_, u16>,
        weights: [&[PairBlock]; 2],
        step: usize,
        blocks: usize,
        sums: &mut [[TileSums<f32>; 2]; 2],
    ) {
        inputs.check(blocks * PAIRS);
        check_panels(weights, step, blocks);
        for (panel, sums) in sums.iter_mut().enumerate() {
            for (tile, sums) in sums.iter_mut().enumerate().take(inputs.count) {
                *sums = [[0.0; LANES]; TILE_ROWS];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let row = &inputs.tiles[tile][row * inputs.stride..];
                    for (block, row) in row.chunks_exact(PAIRS).enumerate().take(blocks) {
                        add_pairs(sums, row, &weights[panel][block * step]);
                    }
                }
            }
        }
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn dot_bytes(row: &RowBlock, weights: &ByteBlock) -> [i32; LANES] {
    let mut sums = [0; LANES];
    for (quads, inputs) in weights.iter().zip(row.quants) {
        let inputs = inputs.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        for (sum, weights) in sums.iter_mut().zip(quads.as_chunks::<4>().0) {
            *sum += weights.iter().zip(inputs).map(|(w, x)| i32::from(*w) * x).sum::<i32>();
        }
    }
    sums
}

#[cfg(any(test, not(target_arch = "x86_64")))]
/// A block's products: those of even and of odd inputs are summed apart.
fn add_pairs(sums: &mut [f32; LANES], row: &[u16], weights: &PairBlock) {
    let value = super::dot::bf16_value;
    let mut apart = [[0.0f32; 2]; LANES];
    for (pairs, inputs) in weights.iter().zip(row.as_chunks::<2>().0) {
        for (sums, weights) in apart.iter_mut().zip(pairs.as_chunks::<2>().0) {
            for half in 0..2 {
                sums[half] += value(inputs[half]) * value(weights[half]);
            }
        }
    }
    for (sum, [even, odd]) in sums.iter_mut().zip(apart) {
        *sum += even + odd;
    }
}
