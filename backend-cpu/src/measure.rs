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
    isa::{
        Isa, LANES, Op,
        dot::{DotIsa, DotOp, PAIRS, QUADS},
        tiles::{RowBlock, TILE_ROWS, TileInputs, Tiles},
    },
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
        let product = Product { matrix: &self.matrix, first: 0, rows };
        let scratch = &mut self.scratch;
        multiply(&mut self.pool, self.simd, &self.input, &[product], scratch).map_err(|panic| {
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

/// Operations a second that `options.threads` threads multiply and add in a precision, two for each
/// multiply-add, on numbers in registers (matrix units: in the first cache): the best of a few runs.
///
/// # Errors
/// Options that make no sense; threads that the operating system refuses.
pub fn multiply_peak(compute: Compute, options: &CpuOptions) -> Result<f64, BackendError> {
    let backend = CpuBackend::with_options(options)?;
    let (simd, mut pool) = (backend.simd(), backend.pool()?);
    let tasks = pool.threads() * 8;
    let mut results = vec![0.0f32; tasks];
    let mut best = 0.0f64;
    for _ in 0..8 {
        let shared = SharedMut::new(&mut results);
        let started = Instant::now();
        let done = pool.run(tasks, &|_, task| {
            // SAFETY: each task has its own element.
            let result = unsafe { shared.part(task..task + 1) };
            result[0] = match simd.tiles() {
                Some(tiles) if compute != Compute::Exact => tile_peak(compute, tiles),
                _ => simd.run_dot(VectorPeak(compute)),
            };
        });
        done.map_err(|panic| BackendError::Device {
            context: "multiplying".to_owned(),
            message: panic.message,
        })?;
        let tiled = compute != Compute::Exact && simd.tiles().is_some();
        let each = if tiled { tile_operations() } else { vector_operations(compute) };
        best = best.max((tasks * each) as f64 / started.elapsed().as_secs_f64());
        std::hint::black_box(&results);
    }
    Ok(best)
}

/// Turns of the loop of a task.
const TURNS: usize = 20_000;
/// Independent chains, as many as hide the latency of every unit.
const CHAINS: usize = 16;
/// Blocks of 32 inputs that a matrix unit multiplies at once.
const TILE_BLOCKS: usize = 4;

fn vector_operations(compute: Compute) -> usize {
    let each = match compute {
        Compute::Int8 => 8,
        Compute::Bf16 => 2,
        _ => 1,
    };
    TURNS * CHAINS * LANES * 2 * each
}

fn tile_operations() -> usize {
    TURNS / 32 * TILE_BLOCKS * 4 * 2 * 16 * 16 * 32
}

/// Multiplies and adds numbers in registers.
struct VectorPeak(Compute);

impl DotOp for VectorPeak {
    type Output = f32;

    #[inline(always)]
    fn run<S: DotIsa>(self, isa: S) -> f32 {
        let factor = std::hint::black_box(0.999_f32);
        let bytes = isa.load_bytes(&std::hint::black_box([3; QUADS]));
        let pairs = isa.load_pairs(&std::hint::black_box([0x3f80; PAIRS]));
        let words = std::hint::black_box([0x0102_0304, 0x0403_0201]);
        let mut sums = [isa.splat(factor); CHAINS];
        let mut dots = [isa.splat_i32(words[0]); CHAINS];
        for _ in 0..TURNS {
            match self.0 {
                Compute::Int8 => {
                    for dot in &mut dots {
                        *dot = isa.dot_bytes(*dot, [bytes; 2], words);
                    }
                }
                Compute::Bf16 => {
                    for sum in &mut sums {
                        *sum = isa.dot_pairs(*sum, pairs, words[0].cast_unsigned());
                    }
                }
                _ => {
                    for sum in &mut sums {
                        *sum = isa.mul_add(*sum, isa.splat(factor), isa.splat(factor));
                    }
                }
            }
        }
        let mut total = 0.0;
        for (sum, dot) in sums.into_iter().zip(dots) {
            total += isa.sum(isa.add(sum, isa.to_f32(dot)));
        }
        total
    }
}

/// Multiplies tiles.
fn tile_peak<T: Tiles>(compute: Compute, tiles: T) -> f32 {
    let mut total = 0.0;
    if compute == Compute::Int8 {
        let rows = vec![RowBlock::default(); TILE_ROWS * TILE_BLOCKS];
        let weights = vec![[[1; QUADS]; 8]; TILE_BLOCKS];
        let inputs = TileInputs { tiles: [&rows[..]; 2], count: 2, stride: TILE_BLOCKS };
        let mut sums = [[[[[0; LANES]; TILE_ROWS]; 2]; 2]; TILE_BLOCKS];
        for _ in 0..TURNS / 32 {
            tiles.bytes(inputs, [&weights[..]; 2], &mut sums);
            total += sums[0][0][0][0][0] as f32;
        }
        return total;
    }
    let rows = vec![0x3f80; TILE_ROWS * TILE_BLOCKS * PAIRS];
    let weights = vec![[[0x3f80; PAIRS]; 16]; TILE_BLOCKS];
    let inputs = TileInputs { tiles: [&rows[..]; 2], count: 2, stride: TILE_BLOCKS * PAIRS };
    let mut sums = [[[[0.0; LANES]; TILE_ROWS]; 2]; 2];
    for _ in 0..TURNS / 32 {
        tiles.pairs(inputs, [&weights[..]; 2], 1, TILE_BLOCKS, &mut sums);
        total += sums[0][0][0][0];
    }
    total
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
    fn multiplying_takes_time_in_every_precision() {
        for compute in [Compute::Exact, Compute::Bf16, Compute::Int8] {
            let rate = multiply_peak(compute, &CpuOptions::new().threads(1)).unwrap();
            assert!(rate.is_finite() && rate > 0.0);
        }
    }

    #[test]
    fn a_depth_that_cuts_a_block_is_refused() {
        let error =
            LinearKernel::new((Format::Q4_0, Compute::Exact), 33, 16, 1, &CpuOptions::new());
        assert!(matches!(error, Err(BackendError::Option { option: "depth", .. })));
    }
}
