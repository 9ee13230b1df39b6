//! How many blocks of a kernel a multiprocessor holds at once.
//!
//! The rules are those of the occupancy calculator that NVIDIA publishes with Nsight Compute:
//! registers are given to warps in pieces of 256, each of the four parts of a multiprocessor has a
//! quarter of them; shared memory is given in pieces of 128 bytes.

use serde::Serialize;

use super::{Limits, SHARED_OF_SYSTEM};

/// What a block takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread, from ptxas; none if nobody knows.
    pub registers: Option<u32>,
    /// Bytes of shared memory, static and dynamic.
    pub shared: u32,
}

/// What runs out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Places for warps.
    Warps,
    /// Places for blocks.
    Blocks,
    /// Registers.
    Registers,
    /// Shared memory.
    Shared,
}

/// How full a multiprocessor gets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Occupancy {
    /// Blocks at once; 0 if one alone doesn't fit.
    pub blocks: u32,
    /// Warps of these.
    pub warps: u32,
    /// These as a share of the places for warps.
    pub share: f64,
    /// What runs out first.
    pub limit: Resource,
}

/// In how many turns a grid runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Turns {
    /// Blocks that a device holds at once.
    pub resident: u64,
    /// Turns, the last of which may be short.
    pub count: u64,
}

/// Registers are given to a warp in pieces of this size.
const REGISTERS: u32 = 256;
/// Parts of a multiprocessor, which hold warps and registers of their own.
const PARTS: u32 = 4;
/// Shared memory is given in pieces of this size.
const SHARED: u32 = 128;

/// Blocks of a kernel that a multiprocessor holds at once.
pub fn occupancy(limits: &Limits, demand: &Demand) -> Occupancy {
    let warps = demand.threads.div_ceil(32).max(1);
    let by_registers = demand.registers.map_or(u32::MAX, |registers| {
        let of_warp = registers.saturating_mul(32).next_multiple_of(REGISTERS).max(REGISTERS);
        let places = limits.registers / PARTS / of_warp * PARTS;
        places / warps
    });
    let of_block = demand.shared.saturating_add(SHARED_OF_SYSTEM).checked_next_multiple_of(SHARED);
    let by_shared = if demand.shared > limits.shared_of_block {
        0
    } else {
        of_block.map_or(0, |bytes| limits.shared / bytes)
    };
    let candidates = [
        (limits.warps / warps, Resource::Warps),
        (limits.blocks, Resource::Blocks),
        (by_registers, Resource::Registers),
        (by_shared, Resource::Shared),
    ];
    let (blocks, limit) =
        candidates.into_iter().min_by_key(|(blocks, _)| *blocks).unwrap_or((0, Resource::Warps));
    let held = blocks * warps;
    let share = f64::from(held) / f64::from(limits.warps.max(1));
    Occupancy { blocks, warps: held, share, limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(capability: u32, threads: u32, registers: u32, shared: u32) -> (u32, Resource) {
        let limits = Limits::of(capability).unwrap();
        let found = occupancy(&limits, &Demand { threads, registers: Some(registers), shared });
        (found.blocks, found.limit)
    }

    #[test]
    fn the_scarcest_resource_decides() {
        // Values that NVIDIA's calculator gives.
        assert_eq!(blocks(80, 256, 32, 0), (8, Resource::Warps));
        assert_eq!(blocks(80, 32, 32, 0), (32, Resource::Blocks));
        assert_eq!(blocks(80, 256, 64, 0), (4, Resource::Registers));
        assert_eq!(blocks(80, 256, 65, 0), (3, Resource::Registers));
        assert_eq!(blocks(80, 128, 255, 0), (2, Resource::Registers));
        assert_eq!(blocks(89, 256, 40, 0), (6, Resource::Warps));
        assert_eq!(blocks(90, 128, 32, 81 << 10), (2, Resource::Shared));
        assert_eq!(blocks(86, 1024, 32, 0), (1, Resource::Warps));
    }

    #[test]
    fn what_does_not_fit_alone_does_not_run() {
        assert_eq!(blocks(80, 128, 32, 163 << 10), (1, Resource::Shared));
        assert_eq!(blocks(80, 128, 32, (163 << 10) + 1), (0, Resource::Shared));
        assert_eq!(blocks(80, 1024, 128, 0), (0, Resource::Registers));
        assert_eq!(blocks(80, 1024, 32, u32::MAX), (0, Resource::Shared));
    }
}
