//! `y = x W + b`: activations in f32, weights as the file has them. Products of reduced precision
//! are in `int8` and `bf16`; [`multiply`] runs all of them.
//!
//! **Layout.** Lanes are output columns: weights come in panels of sixteen columns (see
//! `blocks`), and an activation is broadcast. Each output is *one* chain of fused multiply-adds
//! that walks the inputs in order, starting from zero; the bias is added last. So an output
//! depends on its own row and column only: not on the other rows, on how columns are
//! spread over threads, nor on the tile that it was computed in.
//!
//! **Few rows** (up to four), formats of `blocks`: weights are turned into f32 in registers and used at once. A
//! batch of one has an arithmetic intensity of 2 flops a weight, that is 3.2 flops a byte in Q4_1:
//! the roofline is memory bandwidth. Four panels are walked together: they lie together in memory,
//! so that it is read from front to back, and their independent chains hide the latency of the
//! multiply-add. Blocks are fetched about 2 KiB ahead, as the processor's own prefetching
//! stops at the end of every page of memory; that alone makes it 1.7 times as fast.
//!
//! **Many rows**: two panels at a time are expanded to f32, [`EXPANDED_DEPTH`] inputs of each
//! (128 KiB, which stay in the second-level cache), and used for all rows in tiles of up to
//! `TILE_ROWS` rows. Expanding costs about four instructions a vector of weights, once a batch;
//! the tile then does two loads for each `2 * TILE_ROWS` multiply-adds, so the roofline is that of
//! the multiply-add units.
//!
//! **Composed formats** (see `composed`) are always expanded, few rows too: unpacking them takes
//! more instructions than a store and a load more, and code for every tile of every format would
//! take minutes to compile. One row has four panels expanded together, 256 inputs of each (64 KiB).

use std::ops::Range;

use super::{
    blocks::{Block, F32Block},
    matrix::{LinearScratch, Matrix, multiply_bytes, multiply_pairs},
    panels::{PackedMatrix, PanelBlocks, Panels, with_direct_panels, with_panels},
};
use crate::{
    isa::{Isa, LANES, Op},
    pool::{Pool, TaskPanicked},
    shared::SharedMut,
    simd::Simd,
};

/// Inputs that are expanded to f32 at a time.
const EXPANDED_DEPTH: usize = 1024;
/// The same for one row, for which four panels are expanded together.
const SINGLE_ROW_DEPTH: usize = 256;
/// Blocks of scratch memory that a thread needs: two panels of the former depth.
pub(crate) const SCRATCH_BLOCKS: usize = 2 * EXPANDED_DEPTH / F32Block::DEPTH;
/// Rows up to which weights are used straight from registers.
const FEW_ROWS: usize = 4;

/// Activations and where the products go.
#[derive(Clone, Copy)]
pub(crate) struct LinearRows<'a> {
    /// `[rows, depth]`.
    pub(crate) input: &'a [f32],
    pub(crate) rows: usize,
    /// `[rows, columns]`.
    pub(crate) output: SharedMut<'a, f32>,
    /// `[columns]`.
    pub(crate) bias: Option<&'a [f32]>,
}

/// A weight matrix, and the rows that it is multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    /// The first of its rows among those of all products.
    pub(crate) first: usize,
    pub(crate) rows: LinearRows<'a>,
}

/// A product with what its tasks need.
struct Prepared<'a> {
    tasks: Range<usize>,
    panels_each: usize,
    product: Product<'a>,
}

/// Computes some products in one parallel region. `input`, `[rows, depth]`, has the rows of all of
/// them; for matrices of reduced precision it is converted before, once.
///
/// # Errors
/// If a kernel panicked.
pub(crate) fn multiply(
    pool: &mut Pool,
    simd: Simd,
    input: &[f32],
    products: &[Product<'_>],
    scratch: &mut LinearScratch,
) -> Result<(), TaskPanicked> {
    convert(pool, simd, input, products, scratch)?;
    let threads = pool.threads();
    let mut tasks = 0;
    let mut prepared: Vec<Prepared<'_>> = Vec::with_capacity(products.len());
    for product in products.iter().filter(|product| product.rows.rows > 0) {
        let panels_each = panels_per_task(product, threads);
        let first = tasks;
        tasks += product.matrix.panel_count().div_ceil(panels_each);
        prepared.push(Prepared { tasks: first..tasks, panels_each, product: *product });
    }
    let LinearScratch { expanded, tiled, bytes, pairs } = scratch;
    let (expanded, tiled) = (SharedMut::new(expanded), SharedMut::new(tiled));
    pool.run(tasks, &|thread, task| {
        let prepared = prepared.iter().find(|prepared| prepared.tasks.contains(&task));
        let Some(Prepared { tasks, panels_each, product }) = prepared else { return };
        let Product { matrix, first: first_row, rows } = *product;
        let first = (task - tasks.start) * panels_each;
        let panels = first..(first + panels_each).min(matrix.panel_count());
        match matrix {
            Matrix::Exact(matrix) => {
                let mine = thread * SCRATCH_BLOCKS..(thread + 1) * SCRATCH_BLOCKS;
                // SAFETY: no two tasks that run at the same time have the same thread number.
                let scratch = unsafe { expanded.part(mine) };
                LinearTask { matrix, rows, panels, scratch }.run(simd);
            }
            Matrix::Bytes(matrix) => {
                // SAFETY: as above.
                let scratch = unsafe { &mut tiled.part(thread..thread + 1)[0] };
                multiply_bytes(simd, matrix, panels, bytes.from(first_row), rows, scratch);
            }
            Matrix::Pairs(matrix) => {
                multiply_pairs(simd, matrix, panels, pairs.from(first_row), rows);
            }
        }
    })
}

/// Converts the rows of all products to the precisions of their matrices.
fn convert(
    pool: &mut Pool,
    simd: Simd,
    input: &[f32],
    products: &[Product<'_>],
    scratch: &mut LinearScratch,
) -> Result<(), TaskPanicked> {
    let Some(first) = products.first().filter(|_| !input.is_empty()) else { return Ok(()) };
    let depth = first.matrix.depth();
    let shape = (input.len() / depth, depth);
    if products.iter().any(|product| matches!(product.matrix, Matrix::Bytes(_))) {
        scratch.bytes.fill(pool, simd, input, shape)?;
    }
    if products.iter().any(|product| matches!(product.matrix, Matrix::Pairs(_))) {
        scratch.pairs.fill(pool, simd, input, shape)?;
    }
    Ok(())
}

/// Panels that a task computes: as many as tiles walk together, or fewer where that leaves
/// threads without work at the end.
fn panels_per_task(product: &Product<'_>, threads: usize) -> usize {
    let choices: &[usize] = if product.rows.rows == 1 { &[4, 3, 2] } else { &[4, 2] };
    let longest =
        |panels: usize| product.matrix.panel_count().div_ceil(panels).div_ceil(threads) * panels;
    choices.iter().copied().min_by_key(|panels| longest(*panels)).unwrap_or(1)
}

/// One task: the output columns of some panels, all rows.
struct LinearTask<'a> {
    matrix: &'a PackedMatrix,
    rows: LinearRows<'a>,
    /// The panels.
    panels: Range<usize>,
    /// [`SCRATCH_BLOCKS`] blocks of this thread's own.
    scratch: &'a mut [F32Block],
}

impl LinearTask<'_> {
    fn run(self, simd: Simd) {
        let range = self.panels;
        if self.rows.rows <= FEW_ROWS && self.matrix.is_direct() {
            simd.run(FewRows { matrix: self.matrix, range, rows: self.rows });
        } else {
            let together = if self.rows.rows == 1 { 4 } else { 2 };
            for first in range.clone().step_by(together) {
                let last = (first + together).min(range.end);
                expanded_rows(simd, self.matrix, first..last, self.rows, self.scratch);
            }
        }
    }
}

/// All rows of the panels in `range`, through panels expanded to f32.
fn expanded_rows(
    simd: Simd,
    matrix: &PackedMatrix,
    range: Range<usize>,
    rows: LinearRows<'_>,
    scratch: &mut [F32Block],
) {
    let depth = matrix.depth();
    let expanded = if range.len() > 2 { SINGLE_ROW_DEPTH } else { EXPANDED_DEPTH };
    let room = expanded / F32Block::DEPTH;
    for start in (0..depth).step_by(expanded) {
        let end = (start + expanded).min(depth);
        let inputs = start..end;
        simd.run(Expand { matrix, range: range.clone(), inputs: inputs.clone(), scratch, room });
        simd.run(ExpandedRows { matrix, range: range.clone(), inputs, rows, scratch, room });
    }
}

/// Up to [`FEW_ROWS`] rows of the panels in `range`.
struct FewRows<'a> {
    matrix: &'a PackedMatrix,
    range: Range<usize>,
    rows: LinearRows<'a>,
}

impl Op for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        with_direct_panels!(self.matrix, panels => few_rows(isa, panels, self.range, self.rows));
    }
}

#[inline(always)]
fn few_rows<S: Isa, B: Block>(
    isa: S,
    panels: &Panels<B>,
    range: Range<usize>,
    rows: LinearRows<'_>,
) {
    let mut row = 0;
    while row < rows.rows {
        let left = rows.rows - row;
        if left >= 4 {
            row += every_panel::<S, B, 4>(isa, panels, range.clone(), row, rows);
        } else if left >= 2 {
            row += every_panel::<S, B, 2>(isa, panels, range.clone(), row, rows);
        } else {
            row += every_panel::<S, B, 1>(isa, panels, range.clone(), row, rows);
        }
    }
}

/// `R` rows from `row` on, over all inputs. Returns `R`.
#[inline(always)]
fn every_panel<S: Isa, B: Block, const R: usize>(
    isa: S,
    panels: &Panels<B>,
    range: Range<usize>,
    row: usize,
    rows: LinearRows<'_>,
) -> usize {
    let at_once = if R == 1 { S::SINGLE_ROW_PANELS } else { S::TILE_PANELS };
    let mut panel = range.start;
    while panel < range.end {
        let left = range.end - panel;
        if at_once >= 4 && left >= 4 {
            panel += whole_depth::<S, B, R, 4>(isa, panels, panel, row, rows);
        } else if at_once >= 4 && left == 3 {
            panel += whole_depth::<S, B, R, 3>(isa, panels, panel, row, rows);
        } else if at_once >= 2 && left >= 2 {
            panel += whole_depth::<S, B, R, 2>(isa, panels, panel, row, rows);
        } else {
            panel += whole_depth::<S, B, R, 1>(isa, panels, panel, row, rows);
        }
    }
    R
}

/// `R` rows by `P` panels over all inputs. Returns `P`.
#[inline(always)]
fn whole_depth<S: Isa, B: Block, const R: usize, const P: usize>(
    isa: S,
    panels: &Panels<B>,
    first: usize,
    row: usize,
    rows: LinearRows<'_>,
) -> usize {
    let depth = panels.depth();
    let mut inputs: [&[f32]; R] = [&[]; R];
    for (tile_row, input) in inputs.iter_mut().enumerate() {
        *input = &rows.input[(row + tile_row) * depth..][..depth];
    }
    let mut blocks = [PanelBlocks::EMPTY; P];
    for (panel, blocks) in blocks.iter_mut().enumerate() {
        *blocks = panels.panel(first + panel);
    }
    let sums = tile(isa, inputs, blocks, [[isa.splat(0.0); P]; R]);
    for (tile_row, sums) in sums.into_iter().enumerate() {
        for (panel, sum) in sums.into_iter().enumerate() {
            let place = Place::new(first + panel, panels.columns());
            place.finish(isa, row + tile_row, sum, rows);
        }
    }
    P
}

/// Turns `inputs` of some panels into f32, each at the start of its `room` blocks of `scratch`.
struct Expand<'a> {
    matrix: &'a PackedMatrix,
    range: Range<usize>,
    inputs: Range<usize>,
    scratch: &'a mut [F32Block],
    room: usize,
}

impl Op for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        with_panels!(self.matrix, panels => {
            for (panel, to) in self.range.zip(self.scratch.chunks_exact_mut(self.room)) {
                expand(isa, panels.panel(panel), self.inputs.clone(), to);
            }
        });
    }
}

#[inline(always)]
fn expand<S: Isa, B: Block>(
    isa: S,
    from: PanelBlocks<'_, B>,
    inputs: Range<usize>,
    to: &mut [F32Block],
) {
    let first = inputs.start / B::DEPTH;
    let blocks_each = B::DEPTH / F32Block::DEPTH;
    for index in 0..inputs.end.div_ceil(B::DEPTH) - first {
        let block = from.get(first + index);
        if let Some(ahead) = from.ahead(first + index) {
            isa.prefetch(ahead);
        }
        let to = &mut to[index * blocks_each..][..blocks_each];
        for group in 0..B::DEPTH / B::GROUP {
            let scale = block.scale(isa, group);
            for pair in group * B::GROUP / 2..(group + 1) * B::GROUP / 2 {
                let weights = block.pair(isa, scale, pair);
                let to = &mut to[2 * pair / F32Block::DEPTH].weights;
                isa.store(weights[0], &mut to[2 * pair % F32Block::DEPTH]);
                isa.store(weights[1], &mut to[2 * pair % F32Block::DEPTH + 1]);
            }
        }
    }
}

/// Advances the chains of all rows and the panels in `range` by `inputs`. Between calls they rest
/// in the output, which rounds nothing.
struct ExpandedRows<'a> {
    matrix: &'a PackedMatrix,
    range: Range<usize>,
    inputs: Range<usize>,
    rows: LinearRows<'a>,
    scratch: &'a [F32Block],
    room: usize,
}

impl Op for ExpandedRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        if self.rows.rows == 1 && self.range.len() == 4 {
            self.tile::<S, 1, 4>(isa, 0, 0);
        } else if S::TILE_PANELS >= 2 && self.range.len() == 2 {
            self.panels::<S, 2>(isa, 0);
        } else {
            for panel in 0..self.range.len() {
                self.panels::<S, 1>(isa, panel);
            }
        }
    }
}

impl ExpandedRows<'_> {
    #[inline(always)]
    fn panels<S: Isa, const P: usize>(&self, isa: S, panel: usize) {
        let mut row = 0;
        while row < self.rows.rows {
            row += match (self.rows.rows - row).min(S::TILE_ROWS) {
                8 => self.tile::<S, 8, P>(isa, row, panel),
                7 => self.tile::<S, 7, P>(isa, row, panel),
                6 => self.tile::<S, 6, P>(isa, row, panel),
                5 => self.tile::<S, 5, P>(isa, row, panel),
                4 => self.tile::<S, 4, P>(isa, row, panel),
                3 => self.tile::<S, 3, P>(isa, row, panel),
                2 => self.tile::<S, 2, P>(isa, row, panel),
                _ => self.tile::<S, 1, P>(isa, row, panel),
            };
        }
    }

    /// `R` rows from `row` by `P` panels. Returns `R`.
    #[inline(always)]
    fn tile<S: Isa, const R: usize, const P: usize>(
        &self,
        isa: S,
        row: usize,
        panel: usize,
    ) -> usize {
        let (depth, columns) = (self.matrix.depth(), self.matrix.columns());
        let mut inputs: [&[f32]; R] = [&[]; R];
        for (tile_row, input) in inputs.iter_mut().enumerate() {
            *input = &self.rows.input[(row + tile_row) * depth..][self.inputs.clone()];
        }
        let mut blocks = [PanelBlocks::EMPTY; P];
        for (index, blocks) in blocks.iter_mut().enumerate() {
            let start = (panel + index) * self.room;
            *blocks = PanelBlocks::adjacent(&self.scratch[start..]);
        }
        let first = self.range.start + panel;
        let mut sums = [[isa.splat(0.0); P]; R];
        if self.inputs.start > 0 {
            for (tile_row, sums) in sums.iter_mut().enumerate() {
                for (index, sum) in sums.iter_mut().enumerate() {
                    let place = Place::new(first + index, columns);
                    *sum = isa.load_partial(place.of(row + tile_row, self.rows.output), 0.0);
                }
            }
        }
        let sums = tile(isa, inputs, blocks, sums);
        for (tile_row, sums) in sums.into_iter().enumerate() {
            for (index, sum) in sums.into_iter().enumerate() {
                let place = Place::new(first + index, columns);
                if self.inputs.end == depth {
                    place.finish(isa, row + tile_row, sum, self.rows);
                } else {
                    isa.store_partial(sum, place.of(row + tile_row, self.rows.output));
                }
            }
        }
        R
    }
}

/// The register tile: adds the products of `R` rows and `P` panels to `sums`, input after input.
///
/// Plain loops: a closure would be a function of its own, without this path's instructions,
/// wherever the compiler decides against inlining it.
#[inline(always)]
fn tile<S: Isa, B: Block, const R: usize, const P: usize>(
    isa: S,
    inputs: [&[f32]; R],
    panels: [PanelBlocks<'_, B>; P],
    mut sums: [[S::F32; P]; R],
) -> [[S::F32; P]; R] {
    let zero = isa.splat(0.0);
    let depth = inputs[0].len();
    let whole = depth / B::DEPTH;
    for index in 0..whole {
        let mut run = inputs;
        for row in &mut run {
            *row = &row[index * B::DEPTH..][..B::DEPTH];
        }
        let mut blocks = [panels[0].get(index); P];
        for panel in 0..P {
            blocks[panel] = panels[panel].get(index);
            if let Some(ahead) = panels[panel].ahead(index) {
                isa.prefetch(ahead);
            }
        }
        for group in 0..B::DEPTH / B::GROUP {
            let mut scales = [blocks[0].scale(isa, group); P];
            for panel in 1..P {
                scales[panel] = blocks[panel].scale(isa, group);
            }
            for pair in group * B::GROUP / 2..(group + 1) * B::GROUP / 2 {
                let mut weights = [[zero; 2]; P];
                for panel in 0..P {
                    weights[panel] = blocks[panel].pair(isa, scales[panel], pair);
                }
                for half in 0..2 {
                    for row in 0..R {
                        let input = isa.splat(run[row][2 * pair + half]);
                        for panel in 0..P {
                            let weights = weights[panel][half];
                            sums[row][panel] = isa.mul_add(input, weights, sums[row][panel]);
                        }
                    }
                }
            }
        }
    }
    for position in whole * B::DEPTH..depth {
        for panel in 0..P {
            let block = panels[panel].get(whole);
            let scale = block.scale(isa, position % B::DEPTH / B::GROUP);
            let pair = block.pair(isa, scale, position % B::DEPTH / 2);
            for row in 0..R {
                let input = isa.splat(inputs[row][position]);
                sums[row][panel] = isa.mul_add(input, pair[position % 2], sums[row][panel]);
            }
        }
    }
    sums
}

/// Where a panel's columns are in an output row.
#[derive(Clone, Copy)]
pub(super) struct Place {
    start: usize,
    end: usize,
    columns: usize,
}

impl Place {
    #[inline(always)]
    pub(super) fn new(panel: usize, columns: usize) -> Self {
        let start = panel * LANES;
        Self { start, end: (start + LANES).min(columns), columns }
    }

    #[inline(always)]
    fn of<'a>(self, row: usize, output: SharedMut<'a, f32>) -> &'a mut [f32] {
        let row = row * self.columns;
        // SAFETY: a task owns its panels' columns of every row, and no part outlives the statement
        // that asked for it.
        unsafe { output.part(row + self.start..row + self.end) }
    }

    /// Adds the bias and stores.
    #[inline(always)]
    pub(super) fn finish<S: Isa>(self, isa: S, row: usize, sum: S::F32, rows: LinearRows<'_>) {
        let sum = match rows.bias {
            Some(bias) => isa.add(sum, isa.load_partial(&bias[self.start..self.end], 0.0)),
            None => sum,
        };
        isa.store_partial(sum, self.of(row, rows.output));
    }
}
