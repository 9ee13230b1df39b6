//! Keys and values in bf16, multiplied in pairs.
//!
//! Queries and weights are rounded to bf16 as well; sums are f32. Scores walk pairs of dimensions
//! with positions in lanes, weighted sums walk pairs of absolute positions with dimensions in
//! lanes: half the instructions and half the memory of f32.

#![allow(clippy::needless_range_loop, reason = "each index is a register of several arrays")]

use super::{BLOCK, KvAccess, KvScratch, Scores, Tile, View};
use crate::{
    isa::{
        LANES,
        dot::{DotIsa, PAIRS},
    },
    kernels::kv::{PageShape, pairs::Pairs},
};

/// Runs of sixteen positions that are scored together.
const RUNS: usize = 4;

impl<S: DotIsa> KvAccess<S> for Pairs {
    #[inline(always)]
    fn shape(&self) -> PageShape {
        Pairs::shape(self)
    }

    #[inline(always)]
    fn begin(&self, isa: S, view: &View<'_>, count: usize, scratch: &mut KvScratch) {
        let pairs = view.shape.head_dim.div_ceil(2);
        scratch.gathered_pairs.resize(pairs, [0; PAIRS]);
        scratch.queries.clear();
        scratch.queries.resize(count * pairs, 0);
        for (query, words) in scratch.queries.chunks_exact_mut(pairs).enumerate() {
            let query = view.layer.queries[view.place(query)].chunks(LANES);
            for (dimensions, words) in query.zip(words.chunks_mut(LANES / 2)) {
                let mut bits = [0; LANES];
                isa.store_bf16(isa.load_partial(dimensions, 0.0), &mut bits);
                for (word, pair) in words.iter_mut().zip(bits.as_chunks::<2>().0) {
                    *word = word_of(*pair);
                }
            }
        }
    }

    #[inline(always)]
    fn score<const Q: usize>(&self, isa: S, tile: &mut Tile<'_>, scores: &mut Scores) {
        let pairs = tile.view.shape.head_dim.div_ceil(2);
        let page_size = tile.view.shape.page_size;
        let runs = tile.runs();
        if page_size < LANES {
            for run in runs {
                gather(self, tile, run);
                let KvScratch { gathered_pairs, queries, .. } = &*tile.scratch;
                let queries = of_tile::<Q>(queries, tile.query, pairs);
                let keys = [gathered_pairs.as_flattened()];
                score_runs::<S, Q, 1>(isa, queries, keys, LANES, run, scores);
            }
            return;
        }
        let queries = of_tile::<Q>(&tile.scratch.queries, tile.query, pairs);
        let mut run = runs.start;
        while run + RUNS <= runs.end {
            let mut some = [keys(self, tile, run); RUNS];
            for (index, keys_of) in some.iter_mut().enumerate().skip(1) {
                *keys_of = keys(self, tile, run + index);
            }
            score_runs::<S, Q, RUNS>(isa, queries, some, page_size, run, scores);
            run += RUNS;
        }
        while run < runs.end {
            score_runs::<S, Q, 1>(isa, queries, [keys(self, tile, run)], page_size, run, scores);
            run += 1;
        }
    }

    /// Rounds weights in place: pairs of them become words, one behind another.
    #[inline(always)]
    fn weights(&self, isa: S, tile: &Tile<'_>, scores: &mut Scores) {
        for scores in &mut scores[..tile.state.len()] {
            for run in tile.runs() {
                let mut bits = [0; LANES];
                if let Some(weights) = scores.as_chunks::<LANES>().0.get(run) {
                    isa.store_bf16(isa.load(weights), &mut bits);
                }
                // Words are half as many, so they lie where weights have been read already.
                let words = &mut scores[run * LANES / 2..][..LANES / 2];
                for (word, pair) in words.iter_mut().zip(bits.as_chunks::<2>().0) {
                    *word = f32::from_bits(word_of(*pair));
                }
            }
        }
    }

    #[inline(always)]
    fn weigh<const Q: usize, const V: usize>(
        &self,
        isa: S,
        tile: &Tile<'_>,
        first_vector: usize,
        scores: &Scores,
    ) -> [[S::F32; V]; Q] {
        let (page_size, width) = (tile.view.shape.page_size, tile.view.shape.value_width());
        let mut fresh = [[isa.splat(0.0); V]; Q];
        let end = tile.span.1;
        let mut position = tile.span.0 / 2 * 2;
        if page_size == 1 {
            while position < end {
                for vector in 0..V {
                    let values = pair_of_pages(self, tile, position, first_vector + vector);
                    let values = isa.load_pairs(&values);
                    for query in 0..Q {
                        let weights = scores[query][position / 2].to_bits();
                        fresh[query][vector] = isa.dot_pairs(fresh[query][vector], values, weights);
                    }
                }
                position += 2;
            }
            return fresh;
        }
        while position < end {
            let (page, offset) = tile.page(position);
            let count = (page_size - offset).min(end - position).div_ceil(2);
            let values = self.values(page, tile.view.kv_head);
            let values = values[offset * width..][..2 * count * width].chunks_exact(2 * width);
            for (pair, values) in values.enumerate() {
                let values = values.as_chunks::<PAIRS>().0;
                let mut vectors = [isa.load_pairs(&values[first_vector]); V];
                for vector in 1..V {
                    vectors[vector] = isa.load_pairs(&values[first_vector + vector]);
                }
                for query in 0..Q {
                    let weights = scores[query][position / 2 + pair].to_bits();
                    for vector in 0..V {
                        fresh[query][vector] =
                            isa.dot_pairs(fresh[query][vector], vectors[vector], weights);
                    }
                }
            }
            position += 2 * count;
        }
        fresh
    }
}

/// Two bf16 as [`DotIsa::dot_pairs`] takes them.
#[inline(always)]
fn word_of([first, second]: [u16; 2]) -> u32 {
    u32::from(first) | u32::from(second) << 16
}

/// The queries of a tile, `[pair of dimensions]` each.
#[inline(always)]
fn of_tile<const Q: usize>(queries: &[u32], first: usize, pairs: usize) -> [&[u32]; Q] {
    let mut some: [&[u32]; Q] = [&[]; Q];
    for (index, query) in some.iter_mut().enumerate() {
        *query = &queries[(first + index) * pairs..][..pairs];
    }
    some
}

/// Keys from the run's first position on, `2 * page_size` apart from pair to pair of dimensions.
#[inline(always)]
fn keys<'a>(kv: &'a Pairs, tile: &Tile<'_>, run: usize) -> &'a [u16] {
    let (page, offset) = tile.page(run * LANES);
    &kv.keys(page, tile.view.kv_head)[2 * offset..]
}

/// Collects a run's keys from pages that are smaller than it.
#[inline(always)]
fn gather(kv: &Pairs, tile: &mut Tile<'_>, run: usize) {
    let mut gathered = std::mem::take(&mut tile.scratch.gathered_pairs);
    let size = 2 * tile.view.shape.page_size;
    for (page, position) in tile.small_pages(run) {
        let lane = 2 * (position - run * LANES);
        let keys = kv.keys(page, tile.view.kv_head).chunks_exact(size);
        for (keys, to) in keys.zip(gathered.iter_mut()) {
            to[lane..lane + size].copy_from_slice(keys);
        }
    }
    tile.scratch.gathered_pairs = gathered;
}

/// A vector of values of two neighbouring positions that are in two pages; zero where a position
/// is not in the span.
#[inline(always)]
fn pair_of_pages(kv: &Pairs, tile: &Tile<'_>, position: usize, vector: usize) -> [u16; PAIRS] {
    let mut pairs = [0; PAIRS];
    for half in 0..2 {
        let position = position + half;
        if (tile.span.0..tile.span.1).contains(&position) {
            let values = kv.values(tile.page(position).0, tile.view.kv_head);
            let values = &values[vector * LANES..][..LANES];
            for (pair, value) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                pair[half] = *value;
            }
        }
    }
    pairs
}

/// Scores of `Q` queries for `R` runs of sixteen positions from `first_run` on.
#[inline(always)]
fn score_runs<S: DotIsa, const Q: usize, const R: usize>(
    isa: S,
    queries: [&[u32]; Q],
    keys: [&[u16]; R],
    stride: usize,
    first_run: usize,
    scores: &mut [[f32; BLOCK]; super::MOST_QUERIES],
) {
    const NOTHING: [u16; PAIRS] = [0; PAIRS];
    let mut sums = [[isa.splat(0.0); R]; Q];
    for pair in 0..queries[0].len() {
        let mut vectors = [isa.load_pairs(&NOTHING); R];
        for run in 0..R {
            if let Some(keys) = keys[run][2 * pair * stride..].first_chunk() {
                vectors[run] = isa.load_pairs(keys);
            }
        }
        for query in 0..Q {
            let factor = queries[query][pair];
            for run in 0..R {
                sums[query][run] = isa.dot_pairs(sums[query][run], vectors[run], factor);
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
