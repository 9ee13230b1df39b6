//! How fast kernels run: lane instructions a second on one host thread and on all, with all checks
//! and without.
//!
//!     cargo run --release -p cuda-emulator --example speed -- [KERNEL]
//!
//! With one thread the rate is that of a second of processor time where Linux tells it, so that other
//! work of the machine doesn't count; with several it is that of the clock.
//!
//! The decode kernel runs at batch 4, context 2,048 and 32 heads (8 KV heads); the prefill kernel on
//! tensor cores at 128 new tokens.

use std::time::Instant;

use cuda_emulator::check::Checks;
use cuda_emulator::count::Counting;
use cuda_emulator::{Arguments, Kernel, Launch, Memory, Options, Program, launch};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let only = std::env::args().nth(1);
    let cores = std::thread::available_parallelism()?.get();
    println!("{cores} cores");
    println!(
        "{:<10} {:<22} {:>8} {:>14} {:>10}",
        "kernel", "checks", "threads", "lane instr/s", "seconds"
    );
    for (name, case) in [("decode", decode()?), ("prefill", prefill()?), ("norm", norm()?)] {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let all = Options::default();
        let no_shadow =
            Options { checks: Checks::none(), counting: Counting::none(), ..Options::default() };
        for (what, options) in [("all, and counts", all), ("none", no_shadow)] {
            for threads in [1, cores] {
                let options = Options { threads: Some(threads), ..options.clone() };
                let (mut best, mut busy, mut lanes) = (f64::MAX, f64::MAX, 0);
                // The best of as many runs as fit into a second.
                let begin = Instant::now();
                while best == f64::MAX || begin.elapsed().as_secs() < 1 {
                    let (start, processor) = (Instant::now(), processor_seconds());
                    let outcome = launch(
                        &case.kernel,
                        &case.memory,
                        &case.shape,
                        case.arguments.bytes(),
                        &options,
                    )?;
                    best = best.min(start.elapsed().as_secs_f64());
                    busy = match (processor, processor_seconds()) {
                        (Some(from), Some(to)) if threads == 1 => busy.min(to - from),
                        _ => best,
                    };
                    lanes = outcome.counts.lane_instructions;
                    if let Some(error) = outcome.errors().next() {
                        return Err(error.to_string().into());
                    }
                }
                println!(
                    "{name:<10} {what:<22} {threads:>8} {:>12.0} M {best:>10.3}",
                    lanes as f64 / busy / 1e6
                );
            }
        }
    }
    Ok(())
}

/// Time that this thread has had a processor for.
fn processor_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = text.split(' ').next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

struct Case {
    memory: Memory,
    kernel: std::sync::Arc<Kernel>,
    shape: Launch,
    arguments: Arguments,
}

fn numbers(count: usize) -> Vec<u16> {
    // bf16 between 0.5 and 2, in no order.
    (0..count as u32).map(|i| 0x3f00 | (i.wrapping_mul(2_654_435_761) >> 25) as u16).collect()
}

fn pages(sequences: usize, pages: usize) -> Vec<i32> {
    (0..(sequences * pages) as i32).collect()
}

fn decode() -> Result<Case, Box<dyn std::error::Error>> {
    let (batch, context, kv_heads, group, head, page) =
        (4usize, 2048usize, 8usize, 4usize, 128, 16);
    let mut memory = Memory::default();
    let program = Program::load(include_str!("../fixtures/decode.ptx"), &mut memory)?;
    let cached = batch * context * kv_heads * head;
    let queries = numbers(batch * kv_heads * group * head);
    let arguments = Arguments::new()
        .with(memory.allocate(queries.len() as u64 * 2)?)
        .with(memory.upload(&queries)?)
        .with(memory.upload(&numbers(cached))?)
        .with(memory.upload(&numbers(cached))?)
        .with(memory.upload(&pages(batch, context / page))?)
        .with(memory.upload(&vec![context as i32; batch])?)
        .with(kv_heads as i32)
        .with(page as i32)
        .with((context / page) as i32)
        .with(0.088f32)
        .with(0.0f32)
        .with(0i32);
    let shape = Launch {
        grid: [kv_heads as u32, batch as u32, 1],
        block: [128, 1, 1],
        dynamic_shared: 0,
        cluster: None,
    };
    Ok(Case { kernel: program.kernel("decode")?, memory, shape, arguments })
}

fn prefill() -> Result<Case, Box<dyn std::error::Error>> {
    let (tokens, heads, kv_heads, head, page) = (128usize, 16usize, 4usize, 64usize, 16usize);
    let mut memory = Memory::default();
    let program = Program::load(include_str!("../fixtures/prefill.ptx"), &mut memory)?;
    let queries = numbers(tokens * heads * head);
    let cached = tokens * kv_heads * head;
    let arguments = Arguments::new()
        .with(memory.allocate(queries.len() as u64 * 2)?)
        .with(memory.upload(&queries)?)
        .with(memory.upload(&numbers(cached))?)
        .with(memory.upload(&numbers(cached))?)
        .with(memory.upload(&pages(1, tokens / page))?)
        .with(memory.upload(&[0, tokens as i32])?)
        .with(memory.upload(&[tokens as i32])?)
        .with(heads as i32)
        .with(kv_heads as i32)
        .with(page as i32)
        .with((tokens / page) as i32)
        .with(0.125f32)
        .with(0.0f32)
        .with(0i32);
    let shape = Launch {
        grid: [(tokens / 64) as u32, heads as u32, 1],
        block: [128, 1, 1],
        dynamic_shared: 0,
        cluster: None,
    };
    Ok(Case { kernel: program.kernel("prefill")?, memory, shape, arguments })
}

fn norm() -> Result<Case, Box<dyn std::error::Error>> {
    let (rows, width) = (256usize, 4096usize);
    let mut memory = Memory::default();
    let program = Program::load(include_str!("../fixtures/norm.ptx"), &mut memory)?;
    let arguments = Arguments::new()
        .with(memory.allocate((rows * width * 2) as u64)?)
        .with(memory.upload(&vec![1f32; rows * width])?)
        .with(memory.upload(&numbers(rows * width))?)
        .with(memory.upload(&numbers(width))?)
        .with(width as i32)
        .with(1e-5f32);
    let shape =
        Launch { grid: [rows as u32, 1, 1], block: [256, 1, 1], dynamic_shared: 0, cluster: None };
    Ok(Case { kernel: program.kernel("rms_norm")?, memory, shape, arguments })
}
