//! What sampling a row costs on the host, by pipeline and by size of the vocabulary.
//!
//! ```text
//! cargo bench --bench sampling
//! ```

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use engine_core::backend::SlotSampling;
use engine_core::sample::{RowSampler, TokenCounts};

/// Sizes of the vocabularies of SmolLM2 and Qwen3.
const VOCABULARIES: [usize; 2] = [49_152, 151_936];

/// Logits that spread as a model's do: a bell of width 2, and a few tokens far above it.
fn logits(count: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let mut bell = || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    let mut logits: Vec<f32> = (0..count).map(|_| 2.0 * bell()).collect();
    for likely in 0..20 {
        logits[likely * 997 % count] = 12.0 - 0.3 * likely as f32;
    }
    logits
}

fn setting(change: impl FnOnce(&mut SlotSampling)) -> SlotSampling {
    let mut sampling = SlotSampling::greedy();
    change(&mut sampling);
    sampling
}

fn rows(criterion: &mut Criterion) {
    let settings = [
        ("greedy", setting(|_| {})),
        ("temperature 0.8", setting(|it| it.temperature = 0.8)),
        ("top-k 50", setting(|it| (it.temperature, it.top_k) = (0.8, 50))),
        ("top-p 0.95", setting(|it| (it.temperature, it.top_p) = (0.8, 0.95))),
        ("top-p 0.95, hot", setting(|it| (it.temperature, it.top_p) = (1.5, 0.95))),
        ("min-p 0.05", setting(|it| (it.temperature, it.min_p) = (0.8, 0.05))),
        ("greedy, 5 log probabilities", setting(|it| it.logprobs = Some(5))),
    ];
    for vocabulary in VOCABULARIES {
        let original = logits(vocabulary);
        let mut row = original.clone();
        let mut group = criterion.benchmark_group(format!("a row of {vocabulary} logits"));
        // The sampler overwrites the row, so each time starts with a copy.
        group.bench_function("copy alone", |bencher| {
            bencher.iter(|| row.copy_from_slice(black_box(&original)));
        });
        for (name, sampling) in &settings {
            let mut sampler = RowSampler::default();
            let (counts, mut top) = (TokenCounts::default(), Vec::new());
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                let mut position = 0;
                bencher.iter(|| {
                    row.copy_from_slice(black_box(&original));
                    top.clear();
                    position += 1;
                    sampler.sample(&mut row, sampling, &counts, position, None, &mut top)
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).without_plots();
    targets = rows
}
criterion_main!(benches);
