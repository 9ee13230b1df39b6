//! A real model from prompt to last token, on the embedded backend.
//!
//! ```text
//! cargo bench --bench end_to_end
//! ```
//!
//! SmolLM2-135M-Instruct in Q4_1, fetched as the examples fetch it: prompts of 128 tokens that share
//! nothing, and 128 greedy tokens each. One stream tells the speed of decoding (the time from its
//! first token to its last), 32 at once the output of a whole run, prompts included. Then prompts
//! of which three quarters are a common prefix, with the cache and without.
//!
//! Decoding one stream reads all weights once a token (98 MB), so the machine's read bandwidth is
//! printed beside it.

use std::error::Error;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use understory::cpu::{CpuBackend, CpuOptions, measure::read_bandwidth};
use understory::engine::{Engine, EngineOptions};
use understory::prelude::*;

const PROMPT: u32 = 128;
const TOKENS: u32 = 128;
const STREAMS: u32 = 32;
/// Positions of a prompt that all prompts of a group share.
const SHARED: u32 = 96;

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(10));
    let backend = CpuBackend::new();
    let threads = backend.threads();
    let bandwidth = read_bandwidth(&CpuOptions::new().threads(threads))?;
    println!("{}", backend.capabilities().description);
    println!("read bandwidth, {threads} thread(s): {:.1} GB/s", bandwidth * 1e-9);

    let alone = engine(false)?;
    let mut decode_rates = Vec::new();
    let mut whole_rates = Vec::new();
    let mut number = 0;
    let mut prompts = |streams: u32, shared: u32| -> Vec<Vec<Token>> {
        (0..streams)
            .map(|_| {
                number += 1;
                prompt(number, shared)
            })
            .collect()
    };
    let mut group = criterion.benchmark_group("128 in, 128 out");
    group.throughput(Throughput::Elements(u64::from(TOKENS)));
    group.bench_function("1 stream", |bencher| {
        bencher.iter_batched(
            || prompts(1, 0),
            |prompts| decode_rates.extend(run(&alone, prompts).ok()),
            BatchSize::PerIteration,
        );
    });
    group.throughput(Throughput::Elements(u64::from(TOKENS * STREAMS)));
    group.bench_function("32 streams", |bencher| {
        bencher.iter_batched(
            || prompts(STREAMS, 0),
            |prompts| whole_rates.extend(run(&alone, prompts).ok()),
            BatchSize::PerIteration,
        );
    });
    for cache in [true, false] {
        let engine = engine(cache)?;
        let name = if cache { "32 streams, shared prefix" } else { "the same without the cache" };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || prompts(STREAMS, SHARED),
                |prompts| run(&engine, prompts).map(drop),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    criterion.final_summary();

    let decode = decode_rates.iter().map(|rates| rates.decode);
    let whole = whole_rates.iter().map(|rates| rates.whole);
    println!("1 stream: {:.1} tok/s decoding (median of {})", median(decode), decode_rates.len());
    println!("32 streams: {:.1} tok/s over the whole run (median)", median(whole));
    Ok(())
}

/// Tokens a second.
struct Rates {
    /// Between the first token and the last, of the stream that was submitted last.
    decode: f64,
    /// Of all streams, from the first submission to the last token.
    whole: f64,
}

fn engine(cache: bool) -> Result<Engine, Box<dyn Error>> {
    let path = ModelSource::Default.resolve(&FetchOptions::default(), &mut ())?;
    let mut options = EngineOptions::default();
    options.cache = cache;
    let backend = BackendChoice::default().open(&FetchOptions::default(), &mut ())?;
    Ok(Engine::builder().options(options).load(path, backend.as_ref(), &mut ())?)
}

/// A prompt that no other begins like, but for a common prefix.
fn prompt(number: u32, shared: u32) -> Vec<Token> {
    let token = |position: u32| match position < shared {
        true => 1000 + position * 7 % 5000,
        false => 1000 + (number * 7919 + position * 104_729) % 40_000,
    };
    (0..PROMPT).map(token).collect()
}

fn run(engine: &Engine, prompts: Vec<Vec<Token>>) -> Result<Rates, Box<dyn Error>> {
    let mut sampling = SamplingParams::greedy(TOKENS);
    sampling.ignore_eos = true;
    let streams = prompts.len() as f64;
    let start = Instant::now();
    let generations = prompts
        .into_iter()
        .map(|prompt| engine.submit(Request::new(prompt).sampling(sampling.clone())))
        .collect::<Result<Vec<_>, _>>()?;
    let mut decode = 0.0;
    for generation in generations {
        for output in generation.wait()? {
            let usage = output.usage;
            let first = usage.first_token.ok_or("a stream without a token")?;
            let rest = usage.finish.duration_since(first).as_secs_f64();
            decode = f64::from(usage.completion_tokens.saturating_sub(1)) / rest;
        }
    }
    let whole = streams * f64::from(TOKENS) / start.elapsed().as_secs_f64();
    Ok(Rates { decode, whole })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
