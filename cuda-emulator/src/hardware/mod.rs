//! What is known of real devices: limits of a multiprocessor, occupancy, and roofline estimates.

mod occupancy;
mod roofline;

use serde::Serialize;

pub use occupancy::{Demand, Occupancy, Resource, Turns, occupancy};
pub use roofline::{Bound, Estimate, estimate};

/// What a multiprocessor of a compute capability has, from the tables of the CUDA C++ programming
/// guide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Warps at once.
    pub warps: u32,
    /// Blocks at once.
    pub blocks: u32,
    /// Registers of 32 bits.
    pub registers: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    /// Bytes of shared memory of one block, its static part included.
    pub shared_of_block: u32,
}

/// Bytes of shared memory that each block takes for the system, from compute capability 8.0 on.
const SHARED_OF_SYSTEM: u32 = 1 << 10;

impl Limits {
    /// Those of a compute capability, written as in 89; none for one that isn't in the table.
    pub fn of(capability: u32) -> Option<Self> {
        let (warps, blocks, shared) = match capability {
            80 => (64, 32, 164 << 10),
            86 => (48, 16, 100 << 10),
            87 => (48, 16, 164 << 10),
            89 => (48, 24, 100 << 10),
            90 | 100 | 103 => (64, 32, 228 << 10),
            120 | 121 => (48, 24, 100 << 10),
            _ => return None,
        };
        let shared_of_block = shared - SHARED_OF_SYSTEM;
        Some(Self { warps, blocks, registers: 1 << 16, shared, shared_of_block })
    }
}

/// A real device. Rates are those of its data sheet, without sparsity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gpu {
    /// Its name.
    pub name: &'static str,
    /// Its compute capability, written as in 89.
    pub capability: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Cycles a second of a multiprocessor, boosted.
    pub clock: f64,
    /// Bytes a second of device memory.
    pub bandwidth: f64,
    /// Bytes of the L2 cache.
    pub l2: u64,
    /// Operations a second of tensor cores on f16 and bf16 with sums in f32.
    pub tensor: f64,
    /// Warp instructions that a multiprocessor begins in a cycle, by pipe: f32 arithmetic.
    pub float_rate: f64,
}

/// The devices that estimates are made for.
pub const GPUS: [Gpu; 6] = [
    Gpu {
        name: "A100",
        capability: 80,
        multiprocessors: 108,
        clock: 1.41e9,
        bandwidth: 2.039e12,
        l2: 40 << 20,
        tensor: 312e12,
        float_rate: 2.0,
    },
    Gpu {
        name: "H100",
        capability: 90,
        multiprocessors: 132,
        clock: 1.98e9,
        bandwidth: 3.35e12,
        l2: 50 << 20,
        tensor: 989.4e12,
        float_rate: 4.0,
    },
    Gpu {
        name: "H200",
        capability: 90,
        multiprocessors: 132,
        clock: 1.98e9,
        bandwidth: 4.8e12,
        l2: 50 << 20,
        tensor: 989.4e12,
        float_rate: 4.0,
    },
    Gpu {
        name: "B200",
        capability: 100,
        multiprocessors: 148,
        clock: 1.965e9,
        bandwidth: 8e12,
        l2: 126 << 20,
        tensor: 2250e12,
        float_rate: 4.0,
    },
    Gpu {
        name: "L4",
        capability: 89,
        multiprocessors: 58,
        clock: 2.04e9,
        bandwidth: 300e9,
        l2: 48 << 20,
        tensor: 121e12,
        float_rate: 4.0,
    },
    Gpu {
        name: "RTX 4090",
        capability: 89,
        multiprocessors: 128,
        clock: 2.52e9,
        bandwidth: 1.008e12,
        l2: 72 << 20,
        tensor: 165.2e12,
        float_rate: 4.0,
    },
];

impl Gpu {
    /// What one of its multiprocessors has.
    pub fn limits(&self) -> Limits {
        // Every device of the list is in the table, as a test says.
        Limits::of(self.capability).unwrap_or(Limits {
            warps: 48,
            blocks: 16,
            registers: 1 << 16,
            shared: 100 << 10,
            shared_of_block: 99 << 10,
        })
    }

    /// The architecture that ptxas compiles PTX of a target for, to run on this device; none if the
    /// target can't run on it. Targets with a letter run on their own architecture only.
    pub fn architecture(&self, target: &str) -> Option<String> {
        let number = target.strip_prefix("sm_")?;
        let own = self.capability;
        if let Some(number) = number.strip_suffix('a') {
            return (number.parse() == Ok(own)).then(|| target.to_owned());
        }
        let family = number.strip_suffix('f');
        let wanted: u32 = family.unwrap_or(number).parse().ok()?;
        if family.is_some() {
            return (wanted / 10 == own / 10 && wanted <= own).then(|| target.to_owned());
        }
        (wanted <= own).then(|| format!("sm_{own}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_its_limits() {
        for gpu in GPUS {
            assert_eq!(Limits::of(gpu.capability), Some(gpu.limits()), "{}", gpu.name);
        }
    }

    #[test]
    fn rates_agree_with_the_data_sheets() {
        // f32 operations a second, two for each lane of a multiplication with an addition.
        for (name, published) in
            [("A100", 19.5e12), ("H100", 66.9e12), ("L4", 30.3e12), ("RTX 4090", 82.6e12)]
        {
            let gpu = GPUS.iter().find(|gpu| gpu.name == name).unwrap();
            let found = f64::from(gpu.multiprocessors) * gpu.clock * gpu.float_rate * 32.0 * 2.0;
            assert!((found / published - 1.0).abs() < 0.01, "{name}: {found:e}");
        }
    }

    #[test]
    fn targets_run_on_their_own_devices_and_newer_ones() {
        let [a100, h100, ..] = GPUS;
        assert_eq!(a100.architecture("sm_80").as_deref(), Some("sm_80"));
        assert_eq!(h100.architecture("sm_80").as_deref(), Some("sm_90"));
        assert_eq!(h100.architecture("sm_90a").as_deref(), Some("sm_90a"));
        assert_eq!(a100.architecture("sm_90"), None);
        assert_eq!(GPUS[3].architecture("sm_90a"), None);
    }
}
