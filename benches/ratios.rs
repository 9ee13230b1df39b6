//! What reduced precision gains, and how engines share a machine: ratios within one run.
//!
//!     cargo bench --bench ratios [-- THREADS]
//!
//! SmolLM2-135M-Instruct in Q4_1, fetched as the examples fetch it. Four workloads, each in turns in
//! exact precision and in what `auto` chooses, so that a busy machine slows both down alike. Then the
//! same work beside a thread that never rests, and by two engines at once with half the threads
//! each, against one after the other.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use understory::cpu::{CpuBackend, CpuOptions};
use understory::prelude::*;

/// Each workload: name, requests, prompt tokens that all share, and of their own, answer tokens.
const WORKLOADS: [(&str, u32, u32, u32, u32); 4] = [
    ("prefill 8 x 1,024", 8, 0, 1024, 1),
    ("32 requests, 128 in, 128 out", 32, 0, 128, 128),
    ("32 x (512 shared + 32), 32 out", 32, 512, 32, 32),
    ("1 stream, 128 in, 128 out", 1, 0, 128, 128),
];
/// Turns, of which the fastest counts.
const TURNS: u32 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo passes `--bench` along.
    let threads = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let threads = threads.unwrap_or_else(|| CpuBackend::new().threads());
    let mut numbers = 0..;
    let mut time = |engine: &Engine, workload: (&str, u32, u32, u32, u32)| {
        run(engine, workload, numbers.next().unwrap_or_default())
    };
    let engines = [engine(threads, Compute::Exact)?, engine(threads, Compute::Auto)?];
    println!("{}, {threads} threads", CpuBackend::new().capabilities().description);
    println!("| workload | exact, s | auto, s | exact / auto |");
    println!("| --- | --- | --- | --- |");
    for workload in WORKLOADS {
        let mut best = [f64::INFINITY; 2];
        for _ in 0..TURNS {
            for (best, engine) in best.iter_mut().zip(&engines) {
                *best = best.min(time(engine, workload)?);
            }
        }
        let [exact, auto] = best;
        println!("| {} | {exact:.2} | {auto:.2} | {:.2} |", workload.0, exact / auto);
    }

    let [_, fast] = engines;
    let (mut alone, mut beside) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..TURNS {
        alone = alone.min(time(&fast, WORKLOADS[1])?);
        beside = beside.min(beside_a_busy_thread(|| time(&fast, WORKLOADS[1]))?);
    }
    println!("beside a busy thread: {:.2} times as long", beside / alone);

    let half = (threads / 2).max(1);
    let pair = [engine(half, Compute::Auto)?, engine(half, Compute::Auto)?];
    let (mut apart, mut together) = (f64::INFINITY, f64::INFINITY);
    for turn in 0..TURNS {
        let mut sum = 0.0;
        for _ in 0..2 {
            sum += time(&fast, WORKLOADS[1])?;
        }
        apart = apart.min(sum);
        let started = Instant::now();
        thread::scope(|scope| {
            let both = [0, 1].map(|index| {
                let engine = &pair[index];
                scope.spawn(move || {
                    let number = 1_000_000 + 2 * turn + index as u32;
                    run(engine, WORKLOADS[1], number).map_err(|error| error.to_string())
                })
            });
            both.into_iter().try_for_each(|one| one.join().map_err(|_| "a panic")?.map(drop))
        })?;
        together = together.min(started.elapsed().as_secs_f64());
    }
    println!(
        "two engines with {half} thread(s) each: {:.2} times the two runs after each other",
        together / apart
    );
    Ok(())
}

fn engine(threads: usize, compute: Compute) -> Result<Engine, Box<dyn Error>> {
    let path = ModelSource::Default.resolve(&FetchOptions::default(), &mut ())?;
    let options = EngineOptions::default().compute(compute).kv_memory(KvMemory::Bytes(1 << 30));
    let backend = CpuBackend::with_options(&CpuOptions::new().threads(threads))?;
    Ok(Engine::builder().options(options).load(path, &backend, &mut ())?)
}

/// Seconds from the first submission to the last token. Runs of different numbers share no prompt.
fn run(
    engine: &Engine,
    (_, requests, shared, own, tokens): (&str, u32, u32, u32, u32),
    number: u32,
) -> Result<f64, Box<dyn Error>> {
    let mut sampling = SamplingParams::greedy(tokens);
    sampling.ignore_eos = true;
    let token = |of: u32, position: u32| 1000 + (of * 7919 + position * 104_729) % 40_000;
    let first = 1 + number * 64;
    let started = Instant::now();
    let generations = (1..=requests).map(|request| {
        let common = (0..shared).map(|position| token(first, position));
        let rest = (shared..shared + own).map(|position| token(first + request, position));
        engine.submit(
            Request::new(common.chain(rest).collect::<Vec<Token>>()).sampling(sampling.clone()),
        )
    });
    let generations = generations.collect::<Result<Vec<_>, _>>()?;
    for generation in generations {
        generation.wait()?;
    }
    Ok(started.elapsed().as_secs_f64())
}

fn beside_a_busy_thread<T>(work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}
