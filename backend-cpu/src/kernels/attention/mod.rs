//! Grouped-query attention over paged keys and values.
//!
//! **Arithmetic.** Positions are taken in blocks of [`BLOCK`] absolute positions, whatever the page
//! size. Within a block: each score is one chain of multiply-adds over the head's dimensions, with
//! positions in lanes; the block's greatest score is subtracted before exponentiation; the
//! weighted sum of values is one chain over the block's positions. Blocks are then merged in
//! order, as in online softmax (Milakov and Gimelshein, 2018). A token's result therefore depends
//! on its own query and the keys and values up to it, and on nothing else.
//!
//! **Windows.** Blocks that lie before the window of all of a task's tokens are not visited, and no
//! page is read whose positions have all left it: its entry in the table may be
//! [`PageId::NONE`].
//!
//! **Memory.** How keys and values are read depends on their format: [`elements`] turns elements into
//! f32, [`pairs`] multiplies pairs of bf16. Everything else is the same.
//!
//! **Parts.** The state after the blocks up to some position is the same whoever computed it: the
//! weighted sums, and for each query the greatest score and the sum of exponentials. So tasks can
//! stop after a common run of pages and others go on from there (see `executor/attention.rs`), and blocks can be
//! computed by themselves, to be merged in order later. Neither changes a bit of the result.
//!
//! **Work.** A task is up to [`TOKENS_PER_TASK`] tokens of a row with all query heads of one KV
//! head, so that a block (64 KiB of f32 at 64 dimensions) is read from memory once a task and
//! from the first caches by up to `TILE_QUERIES` queries at a time. Decoding does `2 * heads / kv_heads`
//! flops for each byte of KV divided by two: it is bound by memory bandwidth. A prefill chunk does
//! [`TOKENS_PER_TASK`] times as many and is bound by the multiply-add units.

mod elements;
mod merge;
mod pairs;
#[cfg(test)]
mod tests;

use backend_api::PageId;

pub(crate) use merge::{MergeTask, Partials};

use super::{
    kv::{KvLayer, PageShape},
    math,
};
use crate::{
    isa::{
        Isa, LANES, Op,
        dot::{DotIsa, DotOp},
    },
    shared::SharedMut,
    simd::Simd,
};

/// Positions whose scores share a maximum.
pub(crate) const BLOCK: usize = 128;
/// Tokens of a row that one task attends for.
pub(crate) const TOKENS_PER_TASK: usize = 16;
/// Queries in a register tile, at most.
const MOST_QUERIES: usize = 4;

/// What is the same for all tasks of an attention operation.
#[derive(Clone, Copy)]
pub(crate) struct AttentionLayer<'a> {
    pub(crate) kv: &'a KvLayer,
    /// `[tokens, heads * head_dim]`.
    pub(crate) queries: &'a [f32],
    /// Likewise.
    pub(crate) output: SharedMut<'a, f32>,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) soft_cap: Option<f32>,
    /// `[heads]`.
    pub(crate) sinks: Option<&'a [f32]>,
}

/// Some neighbouring tokens of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryTokens {
    /// The first one's number in the step.
    pub(crate) first_token: usize,
    pub(crate) count: usize,
    /// The first one's position, if they are of one row.
    pub(crate) position: usize,
}

/// What a task does of its tokens' attention.
#[derive(Clone, Copy)]
pub(crate) enum Part<'a> {
    /// All of it.
    Whole,
    /// The blocks before a position, a multiple of [`BLOCK`] that all tokens are beyond: they may be of
    /// several rows that share these pages. The state goes to `to`.
    Before { end: usize, to: Partials<'a> },
    /// The blocks from a position on, starting from a state.
    After { start: usize, from: Partials<'a> },
    /// Some blocks, each by itself.
    Blocks { first: usize, end: usize, to: Partials<'a> },
}

/// Memory that a thread needs while it attends.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    /// `[queries, padded head_dim]`: weighted sums so far.
    sums: Vec<f32>,
    /// By query: the greatest score so far, and the sum of exponentials relative to it.
    softmax: Vec<(f32, f32)>,
    kv: KvScratch,
}

impl AttentionScratch {
    /// Memory for a weighted sum.
    pub(crate) fn sums(&mut self) -> &mut Vec<f32> {
        &mut self.sums
    }
}

/// Memory for reading keys and values.
#[derive(Debug, Default)]
struct KvScratch {
    /// Gathered keys, `[dimension]`, with scales at the end.
    gathered: Vec<[f32; LANES]>,
    /// Gathered keys in pairs, `[pair of dimensions]`.
    gathered_pairs: Vec<[u16; 2 * LANES]>,
    /// `[queries, pair of dimensions]`: queries in bf16.
    queries: Vec<u32>,
}

/// One task: some tokens, the query heads of one KV head.
pub(crate) struct AttentionTask<'a> {
    pub(crate) layer: AttentionLayer<'a>,
    /// The page table of the tokens' row, or of any of their rows.
    pub(crate) pages: &'a [PageId],
    pub(crate) tokens: QueryTokens,
    pub(crate) part: Part<'a>,
    pub(crate) kv_head: usize,
    pub(crate) scratch: &'a mut AttentionScratch,
}

impl AttentionTask<'_> {
    /// Attends.
    pub(crate) fn run(self, simd: Simd) {
        match self.layer.kv {
            KvLayer::F32(kv) => simd.run(Attend { task: self, kv }),
            KvLayer::F16(kv) => simd.run(Attend { task: self, kv }),
            KvLayer::Int8(kv) => simd.run(Attend { task: self, kv }),
            KvLayer::Bf16(kv) => simd.run_dot(Attend { task: self, kv }),
        }
    }
}

/// A task, and the memory that it reads.
struct Attend<'a, K> {
    task: AttentionTask<'a>,
    kv: &'a K,
}

impl<E: super::kv::elements::Element> Op for Attend<'_, super::kv::elements::Elements<E>> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        attend(isa, self.task, self.kv);
    }
}

impl DotOp for Attend<'_, super::kv::pairs::Pairs> {
    type Output = ();

    #[inline(always)]
    fn run<S: DotIsa>(self, isa: S) {
        attend(isa, self.task, self.kv);
    }
}

/// Keys and values as an instruction-set path reads them.
trait KvAccess<S: Isa>: Sync {
    fn shape(&self) -> PageShape;

    /// Prepares the queries of a task.
    fn begin(&self, isa: S, view: &View<'_>, count: usize, scratch: &mut KvScratch);

    /// Products of `Q` queries and the keys of the tile's span, by position of the block.
    fn score<const Q: usize>(&self, isa: S, tile: &mut Tile<'_>, scores: &mut Scores);

    /// Makes weights of exponentials: scales or rounds them, in the tile's span.
    fn weights(&self, isa: S, tile: &Tile<'_>, scores: &mut Scores);

    /// The values of `V` vectors of dimensions, weighted and summed over the tile's span.
    fn weigh<const Q: usize, const V: usize>(
        &self,
        isa: S,
        tile: &Tile<'_>,
        first_vector: usize,
        scores: &Scores,
    ) -> [[S::F32; V]; Q];
}

/// Scores of a tile's queries in a block, later their exponentials.
type Scores = [[f32; BLOCK]; MOST_QUERIES];

#[inline(always)]
fn attend<S: Isa, K: KvAccess<S>>(isa: S, task: AttentionTask<'_>, kv: &K) {
    let AttentionScratch { sums, softmax, kv: scratch } = task.scratch;
    let shape = kv.shape();
    let view = View {
        layer: task.layer,
        pages: task.pages,
        tokens: task.tokens,
        part: task.part,
        kv_head: task.kv_head,
        group: task.layer.heads / shape.kv_heads,
        shape,
    };
    let count = task.tokens.count * view.group;
    let width = shape.value_width();
    view.start(count, sums, softmax);
    kv.begin(isa, &view, count, scratch);
    let (start, _) = view.seen(0);
    let (_, end) = view.seen(count - 1);
    let mut scores: Scores = [[0.0; BLOCK]; MOST_QUERIES];
    for block in start / BLOCK..end.div_ceil(BLOCK) {
        let mut query = 0;
        while query < count {
            let tile = S::TILE_QUERIES.min(MOST_QUERIES).min(count - query);
            let span = view.tile_span(block, query, tile);
            if span.0 < span.1 {
                let state = &mut softmax[query..query + tile];
                let sums = &mut sums[query * width..(query + tile) * width];
                let mut step = Tile { view: &view, block, query, span, state, sums, scratch };
                match tile {
                    4 => step.run::<S, K, 4>(isa, kv, &mut scores),
                    3 => step.run::<S, K, 3>(isa, kv, &mut scores),
                    2 => step.run::<S, K, 2>(isa, kv, &mut scores),
                    _ => step.run::<S, K, 1>(isa, kv, &mut scores),
                }
            }
            query += tile;
        }
        if let Part::Blocks { to, .. } = task.part {
            for query in 0..count {
                let sums = &mut sums[query * width..(query + 1) * width];
                let place = to.place(query / view.group, view.head(query), block);
                to.put(place, sums, softmax[query]);
                sums.fill(0.0);
                softmax[query] = NOTHING;
            }
        }
    }
    match task.part {
        Part::Whole | Part::After { .. } => view.finish(isa, sums, softmax),
        Part::Blocks { .. } => {}
        Part::Before { to, .. } => {
            for (query, sums) in sums.chunks_exact(width).enumerate() {
                let place = to.place(query / view.group, view.head(query), 0);
                to.put(place, sums, softmax[query]);
            }
        }
    }
}

/// The state before any block, without a sink.
const NOTHING: (f32, f32) = (f32::NEG_INFINITY, 0.0);

/// A task's operands. Its queries are numbered token by token, and head by head in a token.
struct View<'a> {
    layer: AttentionLayer<'a>,
    pages: &'a [PageId],
    tokens: QueryTokens,
    part: Part<'a>,
    kv_head: usize,
    /// Query heads of a KV head.
    group: usize,
    shape: PageShape,
}

impl View<'_> {
    #[inline(always)]
    fn head(&self, query: usize) -> usize {
        self.kv_head * self.group + query % self.group
    }

    #[inline(always)]
    fn token(&self, query: usize) -> usize {
        self.tokens.first_token + query / self.group
    }

    /// Where the query's dimensions are in a `[tokens, heads * head_dim]` matrix.
    #[inline(always)]
    fn place(&self, query: usize) -> std::ops::Range<usize> {
        let dim = self.shape.head_dim;
        let start = (self.token(query) * self.layer.heads + self.head(query)) * dim;
        start..start + dim
    }

    /// Positions that the query sees, of those that are the task's part.
    #[inline(always)]
    fn seen(&self, query: usize) -> (usize, usize) {
        let end = self.tokens.position + query / self.group + 1;
        let start = self.layer.window.map_or(0, |window| end.saturating_sub(window));
        match self.part {
            Part::Whole => (start, end),
            Part::Before { end, .. } => (0, end),
            Part::After { start: after, .. } => (start.max(after), end),
            Part::Blocks { first, end: last, .. } => {
                (start.max(first * BLOCK), end.min(last * BLOCK))
            }
        }
    }

    /// Positions that the query sees in a block, relative to its start.
    #[inline(always)]
    fn seen_in(&self, block: usize, query: usize) -> (usize, usize) {
        let (start, end) = self.seen(query);
        let first = block * BLOCK;
        (start.saturating_sub(first).min(BLOCK), end.saturating_sub(first).min(BLOCK))
    }

    /// Positions that any of `count` queries sees in a block.
    #[inline(always)]
    fn tile_span(&self, block: usize, query: usize, count: usize) -> (usize, usize) {
        (self.seen_in(block, query).0, self.seen_in(block, query + count - 1).1)
    }

    /// The state that the task starts from.
    #[inline(always)]
    fn start(&self, count: usize, sums: &mut Vec<f32>, softmax: &mut Vec<(f32, f32)>) {
        let width = self.shape.value_width();
        sums.clear();
        sums.resize(count * width, 0.0);
        softmax.clear();
        softmax.resize(count, NOTHING);
        match self.part {
            Part::Blocks { .. } => {}
            Part::Whole | Part::Before { .. } => {
                for (query, state) in softmax.iter_mut().enumerate() {
                    *state = initial(&self.layer, self.head(query));
                }
            }
            Part::After { from, .. } => {
                let states = softmax.iter_mut().zip(sums.chunks_exact_mut(width));
                for (query, (state, sums)) in states.enumerate() {
                    let (before, softmax) =
                        from.get(from.place(query / self.group, self.head(query), 0));
                    sums.copy_from_slice(before);
                    *state = softmax;
                }
            }
        }
    }

    /// Divides by the softmax's denominators and writes the results.
    #[inline(always)]
    fn finish<S: Isa>(&self, isa: S, sums: &[f32], softmax: &[(f32, f32)]) {
        let width = self.shape.value_width();
        for (query, (sums, (_, total))) in sums.chunks_exact(width).zip(softmax).enumerate() {
            // SAFETY: each token and head belongs to one task.
            let output = unsafe { self.layer.output.part(self.place(query)) };
            divide(isa, sums, *total, output);
        }
    }
}

/// The state of a head before any block: its sink counts as a score whose value is zero.
#[inline(always)]
fn initial(layer: &AttentionLayer<'_>, head: usize) -> (f32, f32) {
    layer.sinks.map_or(NOTHING, |sinks| (sinks[head], 1.0))
}

/// `output = sums / total`.
#[inline(always)]
fn divide<S: Isa>(isa: S, sums: &[f32], total: f32, output: &mut [f32]) {
    let factor = isa.splat(1.0 / total);
    for (sum, output) in sums.as_chunks::<LANES>().0.iter().zip(output.chunks_mut(LANES)) {
        isa.store_partial(isa.mul(isa.load(sum), factor), output);
    }
}

/// Some neighbouring queries and a block.
struct Tile<'a> {
    view: &'a View<'a>,
    block: usize,
    /// The first query.
    query: usize,
    /// Positions of the block that any of them sees.
    span: (usize, usize),
    state: &'a mut [(f32, f32)],
    sums: &'a mut [f32],
    scratch: &'a mut KvScratch,
}

impl Tile<'_> {
    #[inline(always)]
    fn run<S: Isa, K: KvAccess<S>, const Q: usize>(&mut self, isa: S, kv: &K, scores: &mut Scores) {
        kv.score::<Q>(isa, self, scores);
        let mut factors = [(0.0, 0.0); Q];
        for (query, factors) in factors.iter_mut().enumerate() {
            *factors = self.exponentiate(isa, query, &mut scores[query]);
        }
        kv.weights(isa, self, scores);
        let mut start = 0;
        let vectors = self.view.shape.value_width() / LANES;
        while start < vectors {
            if vectors - start >= 4 && S::TILE_QUERIES >= 4 {
                self.weigh::<S, K, Q, 4>(isa, kv, start, scores, &factors);
                start += 4;
            } else if vectors - start >= 2 {
                self.weigh::<S, K, Q, 2>(isa, kv, start, scores, &factors);
                start += 2;
            } else {
                self.weigh::<S, K, Q, 1>(isa, kv, start, scores, &factors);
                start += 1;
            }
        }
    }

    /// The row's page that has a position of the block, and the position's place in it.
    #[inline(always)]
    fn page(&self, position: usize) -> (PageId, usize) {
        let (absolute, page_size) = (self.block * BLOCK + position, self.view.shape.page_size);
        (self.view.pages[absolute / page_size], absolute % page_size)
    }

    /// Where the runs of sixteen positions that the span touches begin and end.
    #[inline(always)]
    fn runs(&self) -> std::ops::Range<usize> {
        self.span.0 / LANES..self.span.1.div_ceil(LANES)
    }

    /// The pages that have positions of the span in a run: each with its first position in the
    /// block, and how many positions of the run it has. For pages smaller than a run.
    #[inline(always)]
    fn small_pages(&self, run: usize) -> impl Iterator<Item = (PageId, usize)> + '_ {
        let page_size = self.view.shape.page_size;
        // Pages before the window may be gone.
        let first = (run * LANES).max(self.span.0 / page_size * page_size);
        let end = self.span.1.min((run + 1) * LANES);
        (first..end).step_by(page_size).map(|position| (self.page(position).0, position))
    }

    /// Turns a query's scores into exponentials, brings what was summed so far to the new maximum, and
    /// returns the factors of the old and the new sum.
    #[inline(always)]
    fn exponentiate<S: Isa>(
        &mut self,
        isa: S,
        query: usize,
        scores: &mut [f32; BLOCK],
    ) -> (f32, f32) {
        let layer = &self.view.layer;
        let (start, end) = self.view.seen_in(self.block, self.query + query);
        let scores = scores.as_chunks_mut::<LANES>().0;
        let runs = self.runs();
        if start >= end {
            for scores in &mut scores[runs] {
                isa.store(isa.splat(0.0), scores);
            }
            return (1.0, 0.0);
        }
        let scale = isa.splat(layer.scale);
        let mut greatest = isa.splat(f32::NEG_INFINITY);
        for run in runs.clone() {
            let mut score = isa.mul(isa.load(&scores[run]), scale);
            if let Some(cap) = layer.soft_cap {
                score = math::soft_cap(isa, score, cap);
            }
            let score = keep(isa, score, run, start, end, f32::NEG_INFINITY);
            isa.store(score, &mut scores[run]);
            greatest = isa.max(greatest, score);
        }
        let greatest = isa.greatest(greatest);
        let shift = isa.splat(greatest);
        let mut total = isa.splat(0.0);
        for run in runs {
            let power = math::exp(isa, isa.sub(isa.load(&scores[run]), shift));
            let power = keep(isa, power, run, start, end, 0.0);
            isa.store(power, &mut scores[run]);
            total = isa.add(total, power);
        }
        let total = isa.sum(total);
        let (merged, factors) = merge::factors(isa, self.state[query], (greatest, total));
        self.state[query] = merged;
        factors
    }

    /// Adds the weighted values of `V` vectors of dimensions.
    #[inline(always)]
    fn weigh<S: Isa, K: KvAccess<S>, const Q: usize, const V: usize>(
        &mut self,
        isa: S,
        kv: &K,
        first_vector: usize,
        scores: &Scores,
        factors: &[(f32, f32); Q],
    ) {
        let width = self.view.shape.value_width();
        let fresh = kv.weigh::<Q, V>(isa, self, first_vector, scores);
        for query in 0..Q {
            let sums = self.sums[query * width..(query + 1) * width].as_chunks_mut::<LANES>().0;
            for vector in 0..V {
                let sum = &mut sums[first_vector + vector];
                isa.store(
                    merge::sum(isa, isa.load(sum), fresh[query][vector], factors[query]),
                    sum,
                );
            }
        }
    }
}

/// Keeps the lanes of a run whose positions are in `start..end`, and fills the others.
#[inline(always)]
fn keep<S: Isa>(isa: S, value: S::F32, run: usize, start: usize, end: usize, fill: f32) -> S::F32 {
    let first = run * LANES;
    let mut value = value;
    if first + LANES > end {
        value = isa.keep_first(value, end.saturating_sub(first), fill);
    }
    if first < start {
        // What lies before `start` is replaced by keeping the first lanes of the filling.
        let mut lanes = [0.0; LANES];
        isa.store(value, &mut lanes);
        lanes[..(start - first).min(LANES)].fill(fill);
        value = isa.load(&lanes);
    }
    value
}
