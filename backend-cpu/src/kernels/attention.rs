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
//! **Work.** A task is up to [`TOKENS_PER_TASK`] tokens of a row with all query heads of one KV
//! head, so that a block (64 KiB of f32 at 64 dimensions) is read from memory once a task and
//! from the first caches by up to `TILE_QUERIES` queries at a time. Decoding does `2 * heads / kv_heads`
//! flops for each byte of KV divided by two: it is bound by memory bandwidth. A prefill chunk does
//! [`TOKENS_PER_TASK`] times as many and is bound by the multiply-add units.

use backend_api::PageId;

use super::{kv::KvLayer, math};
use crate::{
    isa::{Isa, LANES, Op},
    shared::SharedMut,
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

/// Some tokens of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryTokens {
    /// The first one's number in the step.
    pub(crate) first_token: usize,
    pub(crate) count: usize,
    /// The first one's position.
    pub(crate) position: usize,
}

/// Memory that a thread needs while it attends.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    /// `[queries, padded head_dim]`: weighted sums so far.
    sums: Vec<f32>,
    /// By query: the greatest score so far, and the sum of exponentials relative to it.
    softmax: Vec<(f32, f32)>,
    /// Gathered keys, `[dimension]`.
    gathered: Vec<[f32; LANES]>,
}

/// One task: some tokens, the query heads of one KV head.
pub(crate) struct AttentionTask<'a> {
    pub(crate) layer: AttentionLayer<'a>,
    /// The row's page table.
    pub(crate) pages: &'a [PageId],
    pub(crate) tokens: QueryTokens,
    pub(crate) kv_head: usize,
    pub(crate) scratch: &'a mut AttentionScratch,
}

/// Scores of a tile's queries in a block, later their exponentials.
type Scores = [[f32; BLOCK]; MOST_QUERIES];

impl Op for AttentionTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let AttentionScratch { sums, softmax, gathered } = self.scratch;
        let view = View {
            layer: self.layer,
            pages: self.pages,
            tokens: self.tokens,
            kv_head: self.kv_head,
            group: self.layer.heads / self.layer.kv.shape().kv_heads,
        };
        let count = self.tokens.count * view.group;
        let width = self.layer.kv.shape().value_width();
        sums.clear();
        sums.resize(count * width, 0.0);
        softmax.clear();
        softmax.extend((0..count).map(|query| match self.layer.sinks {
            Some(sinks) => (sinks[view.head(query)], 1.0),
            None => (f32::NEG_INFINITY, 0.0),
        }));
        gathered.resize(self.layer.kv.shape().head_dim, [0.0; LANES]);
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
                    let mut step = Tile { view: &view, block, query, span, state, sums, gathered };
                    match tile {
                        4 => step.run::<S, 4>(isa, &mut scores),
                        3 => step.run::<S, 3>(isa, &mut scores),
                        2 => step.run::<S, 2>(isa, &mut scores),
                        _ => step.run::<S, 1>(isa, &mut scores),
                    }
                }
                query += tile;
            }
        }
        view.finish(isa, sums, softmax);
    }
}

/// A task's operands. Its queries are numbered token by token, and head by head in a token.
struct View<'a> {
    layer: AttentionLayer<'a>,
    pages: &'a [PageId],
    tokens: QueryTokens,
    kv_head: usize,
    /// Query heads of a KV head.
    group: usize,
}

impl View<'_> {
    #[inline(always)]
    fn head(&self, query: usize) -> usize {
        self.kv_head * self.group + query % self.group
    }

    /// Where the query's dimensions are in a `[tokens, heads * head_dim]` matrix.
    #[inline(always)]
    fn place(&self, query: usize) -> std::ops::Range<usize> {
        let dim = self.layer.kv.shape().head_dim;
        let token = self.tokens.first_token + query / self.group;
        let start = (token * self.layer.heads + self.head(query)) * dim;
        start..start + dim
    }

    /// Positions that the query sees.
    #[inline(always)]
    fn seen(&self, query: usize) -> (usize, usize) {
        let end = self.tokens.position + query / self.group + 1;
        (self.layer.window.map_or(0, |window| end.saturating_sub(window)), end)
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

    /// Divides by the softmax's denominators and writes the results.
    #[inline(always)]
    fn finish<S: Isa>(&self, isa: S, sums: &[f32], softmax: &[(f32, f32)]) {
        let width = self.layer.kv.shape().value_width();
        for (query, (sums, (_, total))) in sums.chunks_exact(width).zip(softmax).enumerate() {
            // SAFETY: each token and head belongs to one task.
            let output = unsafe { self.layer.output.part(self.place(query)) };
            let factor = isa.splat(1.0 / total);
            for (sum, output) in sums.as_chunks::<LANES>().0.iter().zip(output.chunks_mut(LANES)) {
                isa.store_partial(isa.mul(isa.load(sum), factor), output);
            }
        }
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
    gathered: &'a mut [[f32; LANES]],
}

impl Tile<'_> {
    #[inline(always)]
    fn run<S: Isa, const Q: usize>(&mut self, isa: S, scores: &mut Scores) {
        self.score::<S, Q>(isa, scores);
        let mut weights = [(0.0, 0.0); Q];
        for (query, weights) in weights.iter_mut().enumerate() {
            *weights = self.exponentiate(isa, query, &mut scores[query]);
        }
        let mut start = 0;
        let vectors = self.view.layer.kv.shape().value_width() / LANES;
        while start < vectors {
            if vectors - start >= 4 && S::TILE_QUERIES >= 4 {
                start += self.weigh::<S, Q, 4>(isa, start, scores, &weights);
            } else if vectors - start >= 2 {
                start += self.weigh::<S, Q, 2>(isa, start, scores, &weights);
            } else {
                start += self.weigh::<S, Q, 1>(isa, start, scores, &weights);
            }
        }
    }

    /// Products of queries and keys, sixteen positions at a time.
    #[inline(always)]
    fn score<S: Isa, const Q: usize>(&mut self, isa: S, scores: &mut Scores) {
        let page_size = self.view.layer.kv.shape().page_size;
        let mut queries: [&[f32]; Q] = [&[]; Q];
        for (index, query) in queries.iter_mut().enumerate() {
            *query = &self.view.layer.queries[self.view.place(self.query + index)];
        }
        let mut run = self.span.0 / LANES;
        let end = self.span.1.div_ceil(LANES);
        if page_size < LANES {
            for run in run..end {
                self.gather(run);
                let keys = [self.gathered.as_flattened()];
                score_runs::<S, Q, 1>(isa, queries, keys, LANES, run, scores);
            }
            return;
        }
        // Two runs at a time, so that enough chains are under way.
        while run + 2 <= end {
            let keys = [self.keys(run), self.keys(run + 1)];
            score_runs::<S, Q, 2>(isa, queries, keys, page_size, run, scores);
            run += 2;
        }
        if run < end {
            score_runs::<S, Q, 1>(isa, queries, [self.keys(run)], page_size, run, scores);
        }
    }

    /// Keys from the run's first position on, `page_size` apart from dimension to dimension.
    #[inline(always)]
    fn keys(&self, run: usize) -> &[f32] {
        let page_size = self.view.layer.kv.shape().page_size;
        let position = self.block * BLOCK + run * LANES;
        let page = self.view.pages[position / page_size];
        &self.view.layer.kv.keys(page, self.view.kv_head)[position % page_size..]
    }

    /// Collects a run's keys from pages that are smaller than it.
    #[inline(always)]
    fn gather(&mut self, run: usize) {
        let page_size = self.view.layer.kv.shape().page_size;
        let first = self.block * BLOCK + run * LANES;
        let (seen, end) = (self.block * BLOCK + self.span.0, self.block * BLOCK + self.span.1);
        // Pages before the window may be gone.
        let first_page = first.max(seen / page_size * page_size);
        for start in (first_page..end.min(first + LANES)).step_by(page_size) {
            let page = self.view.pages[start / page_size];
            let keys = self.view.layer.kv.keys(page, self.view.kv_head);
            for (keys, to) in keys.chunks_exact(page_size).zip(self.gathered.iter_mut()) {
                to[start - first..start - first + page_size].copy_from_slice(keys);
            }
        }
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
        let runs = self.span.0 / LANES..self.span.1.div_ceil(LANES);
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
        let (old_greatest, old_total) = self.state[query];
        if old_total == 0.0 {
            self.state[query] = (greatest, total);
            return (0.0, 1.0);
        }
        let new_greatest = if greatest > old_greatest { greatest } else { old_greatest };
        let mut factors = [0.0; LANES];
        factors[0] = old_greatest - new_greatest;
        factors[1] = greatest - new_greatest;
        let powers = math::exp(isa, isa.load(&factors));
        isa.store(powers, &mut factors);
        let [old, new, ..] = factors;
        self.state[query] = (new_greatest, old_total * old + total * new);
        (old, new)
    }

    /// Adds the weighted values of `V` vectors of dimensions. Returns `V`.
    #[inline(always)]
    fn weigh<S: Isa, const Q: usize, const V: usize>(
        &mut self,
        isa: S,
        first_vector: usize,
        scores: &Scores,
        factors: &[(f32, f32); Q],
    ) -> usize {
        let shape = self.view.layer.kv.shape();
        let width = shape.value_width();
        let mut fresh = [[isa.splat(0.0); V]; Q];
        let mut position = self.span.0;
        while position < self.span.1 {
            let absolute = self.block * BLOCK + position;
            let offset = absolute % shape.page_size;
            let count = (shape.page_size - offset).min(self.span.1 - position);
            let page = self.view.pages[absolute / shape.page_size];
            let values = self.view.layer.kv.values(page, self.view.kv_head);
            let values = values[offset * width..(offset + count) * width].chunks_exact(width);
            for (position, values) in (position..).zip(values) {
                let values = values.as_chunks::<LANES>().0;
                let mut vectors = [isa.splat(0.0); V];
                for vector in 0..V {
                    vectors[vector] = isa.load(&values[first_vector + vector]);
                }
                for query in 0..Q {
                    let weight = isa.splat(scores[query][position]);
                    for vector in 0..V {
                        fresh[query][vector] =
                            isa.mul_add(weight, vectors[vector], fresh[query][vector]);
                    }
                }
            }
            position += count;
        }
        for query in 0..Q {
            let (old, new) = factors[query];
            let sums = self.sums[query * width..(query + 1) * width].as_chunks_mut::<LANES>().0;
            for vector in 0..V {
                let sum = &mut sums[first_vector + vector];
                let kept = isa.mul(isa.load(sum), isa.splat(old));
                isa.store(isa.mul_add(fresh[query][vector], isa.splat(new), kept), sum);
            }
        }
        V
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

/// Scores of `Q` queries for `R` runs of sixteen positions from `first_run` on.
#[inline(always)]
fn score_runs<S: Isa, const Q: usize, const R: usize>(
    isa: S,
    queries: [&[f32]; Q],
    keys: [&[f32]; R],
    stride: usize,
    first_run: usize,
    scores: &mut Scores,
) {
    let mut sums = [[isa.splat(0.0); R]; Q];
    for dimension in 0..queries[0].len() {
        let mut vectors = [isa.splat(0.0); R];
        for run in 0..R {
            let keys = &keys[run][dimension * stride..][..LANES];
            vectors[run] = isa.load_partial(keys, 0.0);
        }
        for query in 0..Q {
            let factor = isa.splat(queries[query][dimension]);
            for run in 0..R {
                sums[query][run] = isa.mul_add(factor, vectors[run], sums[query][run]);
            }
        }
    }
    for query in 0..Q {
        let scores = scores[query].as_chunks_mut::<LANES>().0;
        for run in 0..R {
            isa.store(sums[query][run], &mut scores[first_run + run]);
        }
    }
}
