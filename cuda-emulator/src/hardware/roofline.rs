//! The least time that a launch takes on a real device, from its counts.
//!
//! The model: every unit of a device works at the rate of the data sheet, all of them at once; the
//! unit that takes longest is the bound (the roofline model of Williams, Waterman and Patterson,
//! 2009, with more than two roofs). A grid runs in turns; multiprocessors without a block do
//! nothing, so rates of multiprocessors are scaled by the share of places that blocks fill.
//!
//! The error: the time is a lower bound. Latencies, clocks below boost, dependences, launches and
//! what ptxas makes of the PTX are not in it. The best published kernels take a third longer than
//! their bound: FlashAttention-2 reaches 73 % of the tensor rate of an A100 (Dao, 2023),
//! FlashAttention-3 75 % of an H100's (Shah and others, 2024). A kernel with few warps or a single
//! turn is further away.

use serde::Serialize;

use super::{Demand, Gpu, Occupancy, Turns, occupancy};
use crate::count::{Class, Counts};

/// What a launch waits for most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Device memory.
    Memory,
    /// The way from the L2 cache to multiprocessors.
    L2,
    /// Tensor cores.
    Tensor,
    /// Schedulers: every warp instruction is begun by one.
    Issue,
    /// f32 arithmetic.
    Float,
    /// Integer arithmetic, comparisons and conversions.
    Integer,
    /// Special functions.
    Special,
    /// Shared memory.
    Shared,
}

/// An estimate for a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The device's name.
    pub gpu: &'static str,
    /// Blocks at once on a multiprocessor.
    pub occupancy: Occupancy,
    /// In how many turns the grid runs.
    pub turns: Turns,
    /// The least time in microseconds.
    pub microseconds: f64,
    /// What it is made of.
    pub bound: Bound,
    /// The time of every unit in microseconds, the longest first.
    pub units: Vec<(Bound, f64)>,
}

/// Bytes that a multiprocessor gets from the L2 cache in a cycle.
const L2_BYTES: f64 = 64.0;
/// Warp instructions that a multiprocessor begins in a cycle, in all and by pipe.
const ISSUE: f64 = 4.0;
const INTEGER: f64 = 2.0;
const SPECIAL: f64 = 0.5;
/// Passes over shared memory in a cycle.
const SHARED: f64 = 1.0;

/// The least time of a launch of `blocks` blocks with these counts. The counts should come from a
/// run with an L2 cache of the device's size; without one all sectors count as device memory's.
/// None if a block doesn't fit the device.
pub fn estimate(gpu: &Gpu, counts: &Counts, demand: &Demand, blocks: u64) -> Option<Estimate> {
    let held = occupancy(&gpu.limits(), demand);
    let resident = u64::from(held.blocks) * u64::from(gpu.multiprocessors);
    if resident == 0 || blocks == 0 {
        return None;
    }
    let turns = Turns { resident, count: blocks.div_ceil(resident) };
    // The busiest multiprocessor's blocks, over what each would have if they were spread evenly.
    let multiprocessors = f64::from(gpu.multiprocessors);
    let busiest = blocks.div_ceil(u64::from(gpu.multiprocessors)) as f64;
    let filled = blocks as f64 / (busiest * multiprocessors);
    let cycles = |amount: f64, rate: f64| amount / (rate * multiprocessors * filled * gpu.clock);
    let of = |class| counts.of(class) as f64;
    let sectors = counts.sectors_loaded + counts.sectors_stored;
    let dram = if counts.dram_bytes() > 0 { counts.dram_bytes() } else { sectors * 32 } as f64;
    let active = (blocks as f64).min(multiprocessors);
    let bandwidth = gpu.bandwidth.min(active * L2_BYTES * gpu.clock);
    let integer = of(Class::Integer) + of(Class::Convert) + of(Class::Predicate);
    let mut units = vec![
        (Bound::Memory, dram / bandwidth),
        (Bound::L2, cycles(sectors as f64 * 32.0, L2_BYTES)),
        // The rate is that of elements of 2 bytes.
        (Bound::Tensor, counts.tensor_work as f64 / (2.0 * gpu.tensor * filled)),
        (Bound::Issue, cycles(counts.warp_instructions() as f64, ISSUE)),
        (Bound::Float, cycles(of(Class::Float), gpu.float_rate)),
        (Bound::Integer, cycles(integer, INTEGER)),
        (Bound::Special, cycles(of(Class::Special), SPECIAL)),
        (Bound::Shared, cycles(counts.shared_wavefronts as f64, SHARED)),
    ];
    for (_, time) in &mut units {
        *time *= 1e6;
    }
    units.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (bound, microseconds) = units.first().copied()?;
    Some(Estimate { gpu: gpu.name, occupancy: held, turns, microseconds, bound, units })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::GPUS;

    const DEMAND: Demand = Demand { threads: 256, registers: Some(32), shared: 0 };

    #[test]
    fn a_copy_is_bound_by_device_memory() {
        // A gigabyte read and written by many blocks.
        let counts = Counts {
            sectors_loaded: 1 << 25,
            sectors_stored: 1 << 25,
            l2_misses: 1 << 25,
            l2_write_backs: 1 << 25,
            ..Counts::default()
        };
        let found = estimate(&GPUS[0], &counts, &DEMAND, 1 << 20).unwrap();
        assert_eq!(found.bound, Bound::Memory);
        let expected = f64::from(1u32 << 31) / 2.039e12 * 1e6;
        assert!((found.microseconds / expected - 1.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn attention_is_bound_by_tensor_cores_and_the_best_kernels_take_a_third_longer() {
        // FlashAttention-2, forward, 16 heads of 128 dimensions, 16,384 tokens: 4 n^2 d operations a
        // head. Its paper measures up to 230 Tflop/s on an A100.
        let operations: u64 = 4 * 16_384 * 16_384 * 128 * 16;
        let counts = Counts { tensor_work: 2 * operations, ..Counts::default() };
        let blocks = 16_384 / 128 * 16;
        let demand = Demand { threads: 128, registers: Some(255), shared: 80 << 10 };
        let found = estimate(&GPUS[0], &counts, &demand, blocks).unwrap();
        assert_eq!(found.bound, Bound::Tensor);
        let published = operations as f64 / 230e12 * 1e6;
        let ratio = published / found.microseconds;
        assert!((1.25..1.45).contains(&ratio), "{ratio}");
    }

    #[test]
    fn few_blocks_use_few_multiprocessors() {
        let counts = Counts { tensor_work: 1 << 41, ..Counts::default() };
        let all = estimate(&GPUS[0], &counts, &DEMAND, 108).unwrap();
        let one = estimate(&GPUS[0], &counts, &DEMAND, 1).unwrap();
        assert!((one.microseconds / all.microseconds - 108.0).abs() < 1e-6);
        let uneven = estimate(&GPUS[0], &counts, &DEMAND, 109).unwrap();
        assert!((uneven.microseconds / all.microseconds - 216.0 / 109.0).abs() < 1e-6);
        assert_eq!(uneven.turns.count, 1);
    }

    #[test]
    fn a_block_that_does_not_fit_has_no_estimate() {
        let demand = Demand { shared: 200 << 10, ..DEMAND };
        assert_eq!(estimate(&GPUS[0], &Counts::default(), &demand, 1), None);
        assert!(estimate(&GPUS[1], &Counts::default(), &demand, 1).is_some());
    }
}
