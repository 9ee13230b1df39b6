//! Attention against a reference in f64, and against itself in other pages and chunks.

use backend_api::{KvFormat, PageId};
use proptest::prelude::*;

use super::{
    AttentionLayer, AttentionScratch, AttentionTask, BLOCK, MergeTask, Part, Partials, QueryTokens,
    TOKENS_PER_TASK,
};
use crate::{
    isa::dot::{bf16_bits, bf16_value},
    kernels::{
        kv::{KvLayer, PageShape},
        linear_tests::noise,
    },
    shared::SharedMut,
    simd::Simd,
};

#[derive(Clone, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    len: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    sinks: Option<Vec<f32>>,
    seed: u64,
}

impl Case {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, len: usize) -> Self {
        Self { heads, kv_heads, head_dim, len, window: None, soft_cap: None, sinks: None, seed: 7 }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Queries `[len, heads * head_dim]`, keys and values `[len, kv_heads * head_dim]`.
    fn inputs(&self) -> [Vec<f32>; 3] {
        let times =
            |factor: f32, values: Vec<f32>| values.into_iter().map(|v| v * factor).collect();
        let kv = self.len * self.kv_heads * self.head_dim;
        [
            times(4.0, noise(self.seed, self.len * self.heads * self.head_dim)),
            times(2.0, noise(self.seed ^ 1, kv)),
            noise(self.seed ^ 2, kv),
        ]
    }

    /// The same as KV in a format has them.
    fn inputs_in(&self, format: KvFormat) -> [Vec<f32>; 3] {
        let [mut queries, mut keys, mut values] = self.inputs();
        let bf16 = |value: &mut f32| *value = bf16_value(bf16_bits(*value));
        match format {
            KvFormat::Bf16 => [&mut queries, &mut keys, &mut values]
                .into_iter()
                .for_each(|it| it.iter_mut().for_each(bf16)),
            KvFormat::F16 => [&mut keys, &mut values].into_iter().for_each(|it| {
                it.iter_mut().for_each(|value| *value = half::f16::from_f32(*value).to_f32());
            }),
            KvFormat::Int8 => [&mut keys, &mut values].into_iter().for_each(|it| {
                for head in it.chunks_mut(self.head_dim) {
                    let scale = head.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
                    head.iter_mut().for_each(|x| *x = (*x / scale).round_ties_even() * scale);
                }
            }),
            _ => {}
        }
        [queries, keys, values]
    }

    /// The result by the definition, in f64.
    fn reference(&self, format: KvFormat) -> Vec<f64> {
        let [queries, keys, values] = self.inputs_in(format);
        let dim = self.head_dim;
        let mut out = Vec::new();
        for token in 0..self.len {
            for head in 0..self.heads {
                let kv_head = head / (self.heads / self.kv_heads);
                let query = &queries[(token * self.heads + head) * dim..][..dim];
                let start = self.window.map_or(0, |window| (token + 1).saturating_sub(window));
                let at = |position: usize| (position * self.kv_heads + kv_head) * dim;
                let scores: Vec<f64> = (start..=token)
                    .map(|position| {
                        let key = &keys[at(position)..][..dim];
                        let pairs = query.iter().zip(key);
                        let dot: f64 = pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        let score = dot * f64::from(self.scale());
                        match self.soft_cap {
                            Some(cap) => f64::from(cap) * (score / f64::from(cap)).tanh(),
                            None => score,
                        }
                    })
                    .collect();
                let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
                let greatest = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
                let total: f64 =
                    scores.iter().copied().chain(sink).map(|score| (score - greatest).exp()).sum();
                out.extend((0..dim).map(|dimension| {
                    let weighted = (start..).zip(&scores).map(|(position, score)| {
                        (score - greatest).exp() * f64::from(values[at(position) + dimension])
                    });
                    weighted.sum::<f64>() / total
                }));
            }
        }
        out
    }

    /// The kernel's result, from pages of `page_size` and in chunks of `chunk` tokens.
    fn attend(&self, simd: Simd, format: KvFormat, page_size: usize, chunk: usize) -> Vec<f32> {
        self.attend_in_parts(simd, format, (page_size, chunk), Parts::None)
    }

    /// The same with each task cut in two ways.
    fn attend_in_parts(
        &self,
        simd: Simd,
        format: KvFormat,
        (page_size, chunk): (usize, usize),
        parts: Parts,
    ) -> Vec<f32> {
        let [queries, keys, values] = self.inputs();
        let shape = PageShape { page_size, kv_heads: self.kv_heads, head_dim: self.head_dim };
        let count = self.len.div_ceil(page_size);
        // Pages in reverse order, so that neighbours in the sequence are none in memory.
        let mut table: Vec<PageId> = (0..count as u32).rev().map(PageId).collect();
        let kv = KvLayer::new(shape, count, format);
        let mut output = vec![f32::NAN; queries.len()];
        let mut scratch = AttentionScratch::default();
        let width = self.kv_heads * self.head_dim;
        for start in (0..self.len).step_by(chunk) {
            let end = (start + chunk).min(self.len);
            // What has left the window of the chunk's first token is gone.
            let oldest = self.window.map_or(0, |window| (start + 1).saturating_sub(window));
            table[..oldest / page_size].fill(PageId::NONE);
            for position in start..end {
                let range = position * width..(position + 1) * width;
                let page = table[position / page_size];
                let offset = position % page_size;
                let heads = keys[range.clone()].chunks(self.head_dim);
                for (head, (key, value)) in
                    heads.zip(values[range].chunks(self.head_dim)).enumerate()
                {
                    // SAFETY: one thread writes, and nobody reads meanwhile.
                    unsafe { kv.write(page, (head, offset), key, value) };
                }
            }
            let layer = AttentionLayer {
                kv: &kv,
                queries: &queries,
                output: SharedMut::new(&mut output),
                heads: self.heads,
                scale: self.scale(),
                window: self.window,
                soft_cap: self.soft_cap,
                sinks: self.sinks.as_deref(),
            };
            for first in (start..end).step_by(TOKENS_PER_TASK) {
                for kv_head in 0..self.kv_heads {
                    let count = TOKENS_PER_TASK.min(end - first);
                    let tokens = QueryTokens { first_token: first, count, position: first };
                    let (pages, scratch) = (&table[..], &mut scratch);
                    let part = Part::Whole;
                    match parts {
                        Parts::None => {
                            AttentionTask { layer, pages, tokens, part, kv_head, scratch }
                                .run(simd);
                        }
                        Parts::Two => self.in_two(simd, layer, pages, tokens, kv_head),
                        Parts::Blocks => self.by_block(simd, layer, pages, tokens, kv_head),
                    }
                }
            }
        }
        output
    }
}

/// How tasks are cut.
#[derive(Clone, Copy, Debug)]
enum Parts {
    None,
    /// Before and after the last whole block that all tokens are beyond.
    Two,
    /// Every block by itself, merged afterwards.
    Blocks,
}

fn assert_close(case: &Case, got: &[f32], expected: &[f64], format: KvFormat) {
    // Weights of bf16 are rounded to eight bits.
    let allowed = if format == KvFormat::Bf16 { 4e-3 } else { 6e-6 };
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(error < allowed, "{case:?} {format} at {index}: {got}, not {expected}");
    }
}

#[test]
fn every_path_and_page_size_is_within_rounding_of_the_reference() {
    let cases = [
        Case::new(3, 1, 64, 300),
        Case::new(9, 3, 64, 140),
        Case::new(4, 4, 8, 33),
        Case::new(8, 2, 20, 130),
        Case::new(2, 1, 96, 129),
        Case::new(5, 1, 128, 40),
        Case { window: Some(50), ..Case::new(4, 2, 16, 300) },
        Case { window: Some(1), ..Case::new(2, 2, 16, 140) },
        Case { window: Some(37), soft_cap: Some(2.0), ..Case::new(4, 1, 24, 700) },
        Case { soft_cap: Some(3.0), ..Case::new(2, 1, 32, 150) },
        Case { sinks: Some(vec![0.5, -3.0, 8.0]), ..Case::new(3, 1, 32, 260) },
    ];
    for case in cases {
        for format in KvFormat::ALL {
            let expected = case.reference(format);
            for simd in Simd::available() {
                for (page_size, chunk) in [(1, 1000), (16, 45), (256, 45)] {
                    let got = case.attend(simd, format, page_size, chunk);
                    assert_close(&case, &got, &expected, format);
                }
            }
        }
    }
}

impl Case {
    /// A task before and after a whole block.
    fn in_two(
        &self,
        simd: Simd,
        layer: AttentionLayer<'_>,
        pages: &[PageId],
        tokens: QueryTokens,
        kv_head: usize,
    ) {
        let end = tokens.position / BLOCK * BLOCK;
        let mut scratch = AttentionScratch::default();
        self.with_partials(tokens, 1, |to| {
            let scratch = &mut scratch;
            let part = Part::Before { end, to };
            AttentionTask { layer, pages, tokens, part, kv_head, scratch: &mut *scratch }.run(simd);
            let part = Part::After { start: end, from: to };
            AttentionTask { layer, pages, tokens, part, kv_head, scratch }.run(simd);
        });
    }

    /// A task block by block.
    fn by_block(
        &self,
        simd: Simd,
        layer: AttentionLayer<'_>,
        pages: &[PageId],
        tokens: QueryTokens,
        kv_head: usize,
    ) {
        let end = (tokens.position + tokens.count).div_ceil(BLOCK);
        let mut scratch = AttentionScratch::default();
        self.with_partials(tokens, end, |partials| {
            for first in (0..end).step_by(2) {
                let part = Part::Blocks { first, end: first + 2, to: partials };
                let scratch = &mut scratch;
                AttentionTask { layer, pages, tokens, part, kv_head, scratch }.run(simd);
            }
            let group = self.heads / self.kv_heads;
            for token in 0..tokens.count {
                for head in kv_head * group..(kv_head + 1) * group {
                    let blocks = (tokens.position + token + 1).div_ceil(BLOCK);
                    let partials = partials.of(3 + token * end, end);
                    let (token, sums) = (tokens.first_token + token, scratch.sums());
                    simd.run(MergeTask { layer, partials, token, head, blocks, sums });
                }
            }
        });
    }

    fn with_partials(&self, tokens: QueryTokens, blocks: usize, run: impl FnOnce(Partials<'_>)) {
        let width = self.head_dim.next_multiple_of(16);
        let (first, heads) = (3, self.heads);
        let states = (first + tokens.count * blocks) * heads;
        let (mut sums, mut softmax) = (vec![f32::NAN; states * width], vec![[0.0; 2]; states]);
        let (sums, softmax) = (SharedMut::new(&mut sums), SharedMut::new(&mut softmax));
        run(Partials { sums, softmax, first, blocks, heads, width });
    }
}

#[test]
fn cutting_a_task_in_parts_changes_no_bit() {
    let cases = [
        Case::new(6, 2, 64, 700),
        Case { sinks: Some(vec![0.5, -3.0, 8.0]), ..Case::new(3, 1, 24, 300) },
        Case { soft_cap: Some(3.0), ..Case::new(2, 1, 32, 150) },
    ];
    for case in cases {
        for format in KvFormat::ALL {
            for simd in Simd::available() {
                let whole = case.attend(simd, format, 16, 1000);
                for parts in [Parts::Two, Parts::Blocks] {
                    let cut = case.attend_in_parts(simd, format, (16, 1), parts);
                    assert_eq!(whole, cut, "{case:?} {format} {simd:?} {parts:?}");
                }
            }
        }
    }
}

#[test]
fn what_another_sequence_left_in_a_page_changes_nothing() {
    let case = Case::new(2, 1, 32, 37);
    for format in KvFormat::ALL {
        for page_size in [1, 2, 16] {
            let clean = case.attend(Simd::best(), format, page_size, 1);
            let shape = PageShape { page_size, kv_heads: 1, head_dim: 32 };
            let [queries, keys, values] = case.inputs();
            let kv = KvLayer::new(shape, 40, format);
            for position in 0..40 * page_size {
                let page = PageId((position / page_size) as u32);
                let nothing = [f32::NAN; 32];
                // SAFETY: one thread writes, and nobody reads meanwhile.
                unsafe { kv.write(page, (0, position % page_size), &nothing, &nothing) };
            }
            let table: Vec<PageId> = (0..37).map(PageId).collect();
            let mut output = vec![f32::NAN; queries.len()];
            let mut scratch = AttentionScratch::default();
            for position in 0..37 {
                let (key, value) = (&keys[position * 32..][..32], &values[position * 32..][..32]);
                let place = (0, position % page_size);
                // SAFETY: as above.
                unsafe { kv.write(table[position / page_size], place, key, value) };
                let layer = AttentionLayer {
                    kv: &kv,
                    queries: &queries,
                    output: SharedMut::new(&mut output),
                    heads: 2,
                    scale: case.scale(),
                    window: None,
                    soft_cap: None,
                    sinks: None,
                };
                let tokens = QueryTokens { first_token: position, count: 1, position };
                let (pages, part, scratch) = (&table[..], Part::Whole, &mut scratch);
                AttentionTask { layer, pages, tokens, part, kv_head: 0, scratch }.run(Simd::best());
            }
            assert_eq!(output, clean, "{format}, pages of {page_size}");
        }
    }
}

#[test]
fn paths_that_fuse_multiply_and_add_agree_bit_for_bit() {
    let case = Case::new(6, 2, 48, 200);
    let fused = Simd::available().filter(|simd| !matches!(simd, Simd::Portable(_)));
    let results: Vec<_> = fused.map(|simd| case.attend(simd, KvFormat::F32, 16, 64)).collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_token_does_not_depend_on_page_size_or_chunking(
        kv_heads in 1usize..3,
        group in 1usize..6,
        head_dim in prop::sample::select(vec![4usize, 16, 24, 64]),
        len in 1usize..280,
        window in prop::option::of(1usize..200),
        has_sinks in any::<bool>(),
        page_size in prop::sample::select(vec![1usize, 2, 8, 16, 32, 128, 512]),
        chunk in 1usize..150,
        format in prop::sample::select(KvFormat::ALL.to_vec()),
        seed in any::<u64>(),
    ) {
        let heads = kv_heads * group;
        let sinks = has_sinks.then(|| noise(seed, heads));
        let case = Case { window, sinks, seed, ..Case::new(heads, kv_heads, head_dim, len) };
        for simd in Simd::available() {
            let whole = case.attend(simd, format, 64, 1000);
            prop_assert_eq!(whole, case.attend(simd, format, page_size, chunk));
        }
    }
}
