//! Attention against a reference in f64, and against itself in other pages and chunks.

use backend_api::PageId;
use proptest::prelude::*;

use super::{
    attention::{AttentionLayer, AttentionScratch, AttentionTask, QueryTokens, TOKENS_PER_TASK},
    kv::{KvLayer, PageShape},
    linear_tests::noise,
};
use crate::{shared::SharedMut, simd::Simd};

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

    /// The result by the definition, in f64.
    fn reference(&self) -> Vec<f64> {
        let [queries, keys, values] = self.inputs();
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
    fn attend(&self, simd: Simd, page_size: usize, chunk: usize) -> Vec<f32> {
        let [queries, keys, values] = self.inputs();
        let shape = PageShape { page_size, kv_heads: self.kv_heads, head_dim: self.head_dim };
        let count = self.len.div_ceil(page_size);
        // Pages in reverse order, so that neighbours in the sequence are none in memory.
        let mut table: Vec<PageId> = (0..count as u32).rev().map(PageId).collect();
        let mut kv = KvLayer::new(shape, count);
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
                kv.write(page, offset, &keys[range.clone()], &values[range]);
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
                    simd.run(AttentionTask { layer, pages, tokens, kv_head, scratch });
                }
            }
        }
        output
    }
}

fn assert_close(case: &Case, got: &[f32], expected: &[f64]) {
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(error < 5e-6, "{case:?} at {index}: {got}, not {expected}");
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
        let expected = case.reference();
        for simd in Simd::available() {
            for page_size in [1, 16, 256] {
                for chunk in [1000, 45] {
                    assert_close(&case, &case.attend(simd, page_size, chunk), &expected);
                }
            }
        }
    }
}

#[test]
fn paths_that_fuse_multiply_and_add_agree_bit_for_bit() {
    let case = Case::new(6, 2, 48, 200);
    let fused = Simd::available().filter(|simd| !matches!(simd, Simd::Portable(_)));
    let results: Vec<_> = fused.map(|simd| case.attend(simd, 16, 64)).collect();
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
        seed in any::<u64>(),
    ) {
        let heads = kv_heads * group;
        let sinks = has_sinks.then(|| noise(seed, heads));
        let case = Case { window, sinks, seed, ..Case::new(heads, kv_heads, head_dim, len) };
        for simd in Simd::available() {
            prop_assert_eq!(case.attend(simd, 64, 1000), case.attend(simd, page_size, chunk));
        }
    }
}
