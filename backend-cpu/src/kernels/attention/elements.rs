//! Keys and values that become f32 in registers.
//!
//! Scores have positions in lanes and walk the dimensions; weighted sums have dimensions in lanes
//! and walk the positions. A scale belongs to a position: it multiplies the score of a key, and
//! the weight of a value.

#![allow(clippy::needless_range_loop, reason = "each index is a register of several arrays")]

use super::{BLOCK, KvAccess, KvScratch, MOST_QUERIES, Scores, Tile, View};
use crate::{
    isa::{Isa, LANES},
    kernels::kv::{
        PageShape,
        elements::{Element, Elements},
    },
};

impl<S: Isa, E: Element> KvAccess<S> for Elements<E> {
    #[inline(always)]
    fn shape(&self) -> PageShape {
        Elements::shape(self)
    }

    #[inline(always)]
    fn begin(&self, _: S, view: &View<'_>, _: usize, scratch: &mut KvScratch) {
        scratch.gathered.resize(view.shape.head_dim + 1, [0.0; LANES]);
    }

    #[inline(always)]
    fn score<const Q: usize>(&self, isa: S, tile: &mut Tile<'_>, scores: &mut Scores) {
        let view = tile.view;
        let (page_size, dim) = (view.shape.page_size, view.shape.head_dim);
        let mut queries: [&[f32]; Q] = [&[]; Q];
        for (index, query) in queries.iter_mut().enumerate() {
            *query = &view.layer.queries[view.place(tile.query + index)];
        }
        let runs = tile.runs();
        if page_size < LANES {
            for run in runs {
                gather(isa, self, tile, run);
                let [keys @ .., scales] = &tile.scratch.gathered[..=dim] else { return };
                let keys = [Run::<F32Run> { elements: keys.as_flattened(), scales }];
                score_runs::<S, F32Run, Q, 1>(isa, queries, keys, LANES, run, scores);
            }
            return;
        }
        // Two runs at a time, so that enough chains are under way.
        let mut run = runs.start;
        while run + 2 <= runs.end {
            let keys = [keys(self, tile, run), keys(self, tile, run + 1)];
            score_runs::<S, E, Q, 2>(isa, queries, keys, page_size, run, scores);
            run += 2;
        }
        if run < runs.end {
            let keys = [keys(self, tile, run)];
            score_runs::<S, E, Q, 1>(isa, queries, keys, page_size, run, scores);
        }
    }

    #[inline(always)]
    fn weights(&self, isa: S, tile: &Tile<'_>, scores: &mut Scores) {
        if !E::IS_SCALED {
            return;
        }
        let mut scales = [0.0; BLOCK];
        for (position, scale) in scales.iter_mut().enumerate().take(tile.span.1).skip(tile.span.0) {
            let (page, offset) = tile.page(position);
            *scale = self.scales(page, tile.view.kv_head)[1][offset];
        }
        for scores in &mut scores[..tile.state.len()] {
            let runs = scores.as_chunks_mut::<LANES>().0.iter_mut();
            for (score, scale) in runs.zip(scales.as_chunks::<LANES>().0) {
                isa.store(isa.mul(isa.load(score), isa.load(scale)), score);
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
        let page_size = tile.view.shape.page_size;
        let width = tile.view.shape.value_width();
        let mut fresh = [[isa.splat(0.0); V]; Q];
        let mut position = tile.span.0;
        while position < tile.span.1 {
            let (page, offset) = tile.page(position);
            let count = (page_size - offset).min(tile.span.1 - position);
            let values = self.values(page, tile.view.kv_head);
            let values = values[offset * width..(offset + count) * width].chunks_exact(width);
            for (position, values) in (position..).zip(values) {
                let values = values.as_chunks::<LANES>().0;
                let mut vectors = [isa.splat(0.0); V];
                for vector in 0..V {
                    vectors[vector] = E::load(isa, &values[first_vector + vector]);
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
        fresh
    }
}

/// Gathered keys are f32, with the scales of their format.
#[derive(Clone, Copy, Debug)]
struct F32Run;

impl Element for F32Run {
    type Raw = f32;
    const IS_SCALED: bool = true;

    #[inline(always)]
    fn load<S: Isa>(isa: S, from: &[f32; LANES]) -> S::F32 {
        isa.load(from)
    }

    fn encode(value: f32) -> f32 {
        value
    }
}

/// Keys of sixteen positions, from dimension to dimension a stride apart.
struct Run<'a, E: Element> {
    elements: &'a [E::Raw],
    scales: &'a [f32; LANES],
}

/// What elements without scales have.
const NO_SCALES: [f32; LANES] = [1.0; LANES];

/// Keys from the run's first position on, `page_size` apart from dimension to dimension.
#[inline(always)]
fn keys<'a, E: Element>(kv: &'a Elements<E>, tile: &Tile<'_>, run: usize) -> Run<'a, E> {
    let (page, offset) = tile.page(run * LANES);
    let head = tile.view.kv_head;
    let scales = if E::IS_SCALED {
        kv.scales(page, head)[0][offset..].first_chunk().unwrap_or(&NO_SCALES)
    } else {
        &NO_SCALES
    };
    Run { elements: &kv.keys(page, head)[offset..], scales }
}

/// Collects a run's keys, and their scales, from pages that are smaller than it.
#[inline(always)]
fn gather<S: Isa, E: Element>(isa: S, kv: &Elements<E>, tile: &mut Tile<'_>, run: usize) {
    let PageShape { page_size, head_dim, .. } = tile.view.shape;
    let mut gathered = std::mem::take(&mut tile.scratch.gathered);
    gathered[head_dim] = NO_SCALES;
    for (page, position) in tile.small_pages(run) {
        let head = tile.view.kv_head;
        let lane = position - run * LANES;
        let keys = kv.keys(page, head).chunks_exact(page_size);
        for (keys, to) in keys.zip(gathered.iter_mut()) {
            let mut raw = [<E::Raw as bytemuck::Zeroable>::zeroed(); LANES];
            raw[..page_size].copy_from_slice(keys);
            let mut values = [0.0; LANES];
            isa.store(E::load(isa, &raw), &mut values);
            to[lane..lane + page_size].copy_from_slice(&values[..page_size]);
        }
        if E::IS_SCALED {
            let scales = kv.scales(page, head)[0];
            gathered[head_dim][lane..lane + page_size].copy_from_slice(scales);
        }
    }
    tile.scratch.gathered = gathered;
}

/// Scores of `Q` queries for `R` runs of sixteen positions from `first_run` on.
#[inline(always)]
fn score_runs<S: Isa, E: Element, const Q: usize, const R: usize>(
    isa: S,
    queries: [&[f32]; Q],
    keys: [Run<'_, E>; R],
    stride: usize,
    first_run: usize,
    scores: &mut [[f32; BLOCK]; MOST_QUERIES],
) {
    let mut sums = [[isa.splat(0.0); R]; Q];
    for dimension in 0..queries[0].len() {
        let mut vectors = [isa.splat(0.0); R];
        for run in 0..R {
            let keys = keys[run].elements[dimension * stride..].first_chunk();
            vectors[run] = keys.map_or(vectors[run], |keys| E::load(isa, keys));
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
            let mut sum = sums[query][run];
            if E::IS_SCALED {
                sum = isa.mul(sum, isa.load(keys[run].scales));
            }
            isa.store(sum, &mut scores[first_run + run]);
        }
    }
}
