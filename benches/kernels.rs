//! Linear operations of the embedded backend, against what the machine was just measured to do.
//!
//!     cargo bench --bench kernels [-- THREADS]
//!
//! First measures how fast the machine reads memory and multiplies, in each precision, by small
//! probes. Then times the products of three models' shapes, in the formats and precisions that they
//! are used in, for 1 to 512 rows. For each: the least time, bytes of weights a second, operations a
//! second (a multiply-add is two), and the shares of what memory gives and of what the multipliers do.
//! Weights that fit the caches are read faster than memory: shares of more than 100 %.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use backend_cpu::{
    CpuBackend, CpuOptions,
    measure::{LinearKernel, multiply_peak, read_bandwidth},
};
use engine_core::{
    backend::{Backend, Compute},
    weights::Format,
};

/// Model, operation, inputs, outputs. Operations on the same input are one product.
const SHAPES: [(&str, &str, usize, usize); 12] = [
    ("SmolLM2-135M", "q, k, v", 576, 960),
    ("SmolLM2-135M", "gate, up", 576, 3072),
    ("SmolLM2-135M", "down", 1536, 576),
    ("SmolLM2-135M", "logits", 576, 49_152),
    ("Qwen3-0.6B", "q, k, v", 1024, 4096),
    ("Qwen3-0.6B", "gate, up", 1024, 6144),
    ("Qwen3-0.6B", "down", 3072, 1024),
    ("Qwen3-0.6B", "logits", 1024, 151_936),
    ("Qwen3-8B", "q, k, v", 4096, 6144),
    ("Qwen3-8B", "out", 4096, 4096),
    ("Qwen3-8B", "gate, up", 4096, 24_576),
    ("Qwen3-8B", "down", 12_288, 4096),
];
const MODES: [(Format, Compute); 4] = [
    (Format::Q4_1, Compute::Exact),
    (Format::Q4_1, Compute::Int8),
    (Format::Q8_0, Compute::Int8),
    (Format::BF16, Compute::Bf16),
];
const ROWS: [usize; 5] = [1, 8, 32, 256, 512];
/// Time for a row of the table.
const TIME: Duration = Duration::from_millis(150);

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = CpuOptions::new();
    // Cargo passes `--bench` along.
    options.threads = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let backend = CpuBackend::with_options(&options)?;
    println!("{}", backend.capabilities().description);
    let bandwidth = read_bandwidth(&options)?;
    println!("reads {:.1} GB/s", bandwidth * 1e-9);
    let mut peaks = Vec::new();
    for compute in [Compute::Exact, Compute::Bf16, Compute::Int8] {
        let peak = multiply_peak(compute, &options)?;
        println!("multiplies {:.2} Tops/s in {compute}", peak * 1e-12);
        peaks.push((compute, peak));
    }
    println!(
        "| model | operation | weights | compute | rows | µs | GB/s | Tops/s | of reading | of multiplying |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (model, operation, depth, columns) in SHAPES {
        for (format, compute) in MODES {
            let peak = peaks.iter().find(|(known, _)| *known == compute);
            let peak = peak.map_or(f64::INFINITY, |(_, peak)| *peak);
            for rows in ROWS {
                let weights = (format, compute);
                let mut kernel = LinearKernel::new(weights, depth, columns, rows, &options)?;
                let seconds = least(&mut kernel)?;
                let (bytes, flops) = (kernel.weight_bytes() as f64, kernel.flops() as f64);
                println!(
                    "| {model} | {operation} | {format} | {compute} | {rows} | {:.0} | {:.1} | {:.3} | {:.0} % | {:.0} % |",
                    seconds * 1e6,
                    bytes / seconds * 1e-9,
                    flops / seconds * 1e-12,
                    100.0 * bytes / bandwidth / seconds,
                    100.0 * flops / peak / seconds,
                );
            }
        }
    }
    Ok(())
}

/// The least time of some runs, in seconds.
fn least(kernel: &mut LinearKernel) -> Result<f64, Box<dyn Error>> {
    kernel.run()?;
    let (mut least, mut runs) = (f64::INFINITY, 0);
    let started = Instant::now();
    while runs < 5 || started.elapsed() < TIME {
        let run = Instant::now();
        kernel.run()?;
        least = least.min(run.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(least)
}
