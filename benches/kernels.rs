//! Linear operations of the embedded backend, against what the machine can do.
//!
//!     cargo bench --bench kernels
//!
//! First prints the read bandwidth that was measured, then times a product of SmolLM2's widest kind
//! (576 inputs, 49,152 outputs: weights that don't fit in the caches) in every format, for batches
//! of 1, 8 and 32 rows. Criterion reports the throughput in bytes of weights for one row, as that is
//! bound by memory, and in flops (as "elements") for more.

use std::{error::Error, hint::black_box, time::Duration};

use backend_cpu::{
    CpuBackend, CpuOptions,
    measure::{LinearKernel, read_bandwidth},
};
use criterion::{BenchmarkId, Criterion, Throughput};
use engine_core::{
    backend::{Backend, Compute},
    weights::Format,
};

const DEPTH: usize = 576;
const COLUMNS: usize = 49_152;

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    let options = CpuOptions::new();
    let backend = CpuBackend::with_options(&options)?;
    println!("{}", backend.capabilities().description);
    for threads in [1, backend.threads()] {
        let rate = read_bandwidth(&CpuOptions::new().threads(threads))?;
        println!("read bandwidth, {threads} thread(s): {:.1} GB/s", rate * 1e-9);
    }
    for rows in [1, 8, 32] {
        let mut group = criterion.benchmark_group(format!("linear/{rows} rows"));
        for format in Format::ALL {
            let mut kernel =
                LinearKernel::new((format, Compute::Exact), DEPTH, COLUMNS, rows, &options)?;
            group.throughput(match rows {
                1 => Throughput::Bytes(kernel.weight_bytes()),
                _ => Throughput::Elements(kernel.flops()),
            });
            let mut failed = None;
            group.bench_function(BenchmarkId::from_parameter(format), |bencher| {
                bencher.iter(|| {
                    if let Err(error) = black_box(&mut kernel).run() {
                        failed = Some(error);
                    }
                });
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
