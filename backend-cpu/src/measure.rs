//! What the machine can do, and how near a kernel comes: for benchmarks.
//!
//! ```
//! use backend_cpu::{CpuOptions, measure::LinearKernel};
//! use backend_api::{Compute, weights::Format};
//!
//! let mut kernel = LinearKernel::new((Format::Q4_1, Compute::Int8), 64, 128, 4, &CpuOptions::new().threads(1))?;
//! kernel.run()?;
//! assert_eq!(kernel.flops(), 2 * 64 * 128 * 4);
//! # Ok::<(), backend_api::BackendError>(())
//! ```

use std::time::Instant;

use backend_api::{
    BackendError, Compute,
    weights::{Format, Shape, Tensor},
};

use crate::{
    CpuBackend, CpuOptions,
    isa::{Isa, LANES, Op},
    kernels::{
        linear::{LinearRows, Product, multiply},
        matrix::{LinearScratch, Matrix},
    },
    pool::Pool,
    shared::SharedMut,
    simd::Simd,
};

/// A linear operation with made-up weights, ready to be run again and again.
pub struct LinearKernel {
    matrix: Matrix,
    simd: Simd,
    pool: Pool,
    rows: usize,
    input: Vec<f32>,
    output: Vec<f32>,
    scratch: LinearScratch,
}

impl LinearKernel {
    /// `rows` rows of `depth` inputs times a matrix of `columns` outputs in `format`,
    /// computed in a precision.
    ///
    /// # Errors
    /// Options that make no sense; a depth that is not a whole number of blocks; a format that
    /// the backend can't compute with.
    pub fn new(
        (format, compute): (Format, Compute),
        depth: usize,
        columns: usize,
        rows: usize,
        options: &CpuOptions,
    ) -> Result<Self, BackendError> {
        let invalid = |reason: String| BackendError::Option { option: "depth", reason };
        let values: Vec<f32> =
            (0..depth * columns).map(|i| ((i * 7919) % 257) as f32 / 128.0 - 1.0).collect();
        let tensor = Tensor::from_f32(format, Shape::matrix(columns, depth), &values)
            .map_err(|error| invalid(error.to_string()))?;
        let matrix = Matrix::pack(&tensor, compute).map_err(|error| invalid(error.to_string()))?;
        let backend = CpuBackend::with_options(options)?;
        let pool = backend.pool()?;
        Ok(Self {
            matrix,
            simd: backend.simd(),
            rows,
            input: (0..rows * depth).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect(),
            output: vec![0.0; rows * columns],
            scratch: LinearScratch::new(pool.threads()),
            pool,
        })
    }

    /// Computes the product once.
    ///
    /// # Errors
    /// If the kernel panicked.
    pub fn run(&mut self) -> Result<(), BackendError> {
        let output = SharedMut::new(&mut self.output);
        let rows = LinearRows { input: &self.input, rows: self.rows, output, bias: None };
        let product = Product { matrix: &self.matrix, rows };
        multiply(&mut self.pool, self.simd, &[product], &mut self.scratch).map_err(|panic| {
            BackendError::Device { context: "running a kernel".to_owned(), message: panic.message }
        })
    }

    /// Floating point operations of a run.
    pub fn flops(&self) -> u64 {
        2 * (self.rows * self.matrix.depth() * self.matrix.columns()) as u64
    }

    /// Bytes of weights, which a run reads once.
    pub fn weight_bytes(&self) -> u64 {
        self.matrix.bytes() as u64
    }
}

impl std::fmt::Debug for LinearKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinearKernel")
            .field("matrix", &self.matrix)
            .field("rows", &self.rows)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// Bytes a second that `options.threads` threads read from memory: the best of a few passes over
/// 256 MiB.
///
/// # Errors
/// Options that make no sense; threads that the operating system refuses.
pub fn read_bandwidth(options: &CpuOptions) -> Result<f64, BackendError> {
    const VALUES: usize = 64 << 20;
    const TASK: usize = 1 << 20;
    let backend = CpuBackend::with_options(options)?;
    let (simd, mut pool) = (backend.simd(), backend.pool()?);
    let memory = vec![1.0f32; VALUES];
    let mut sums = vec![0.0f32; VALUES / TASK];
    let mut best = 0.0f64;
    for _ in 0..8 {
        let shared = SharedMut::new(&mut sums);
        let started = Instant::now();
        let done = pool.run(VALUES / TASK, &|_, task| {
            // SAFETY: each task has its own element.
            let sum = unsafe { shared.part(task..task + 1) };
            sum[0] = simd.run(Sum(&memory[task * TASK..(task + 1) * TASK]));
        });
        done.map_err(|panic| BackendError::Device {
            context: "reading memory".to_owned(),
            message: panic.message,
        })?;
        best = best.max(size_of_val(&memory[..]) as f64 / started.elapsed().as_secs_f64());
        // So that the reading can't be left out.
        std::hint::black_box(&sums);
    }
    Ok(best)
}

/// The sum of many values, in independent chains.
struct Sum<'a>(&'a [f32]);

impl Op for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) -> f32 {
        let mut sums = [isa.splat(0.0); 8];
        for values in self.0.as_chunks::<{ 8 * LANES }>().0 {
            for (sum, values) in sums.iter_mut().zip(values.as_chunks::<LANES>().0) {
                *sum = isa.add(*sum, isa.load(values));
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += isa.sum(sum);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_memory_takes_time() {
        let rate = read_bandwidth(&CpuOptions::new().threads(1)).unwrap();
        assert!(rate.is_finite() && rate > 0.0);
    }

    #[test]
    fn a_depth_that_cuts_a_block_is_refused() {
        let error =
            LinearKernel::new((Format::Q4_0, Compute::Exact), 33, 16, 1, &CpuOptions::new());
        assert!(matches!(error, Err(BackendError::Option { option: "depth", .. })));
    }
}
