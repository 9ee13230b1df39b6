//! What is counted while a kernel runs.
//!
//! Counts are the same in every run of a kernel whose control flow does not depend on the order
//! of its blocks: they can gate performance where time can't.

mod coalesce;
mod cost;
mod l2;

pub(crate) use coalesce::{Sectors, wavefronts};
pub use cost::{Cost, Excess, TOLERANCE};
pub use l2::CacheModel;
pub(crate) use l2::{L2, WRITTEN};

use serde::{Deserialize, Serialize};

/// The classes of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Class {
    /// Integer arithmetic and bits.
    Integer,
    /// Floating point arithmetic.
    Float,
    /// Approximate functions: the special function units.
    Special,
    /// Conversions between types.
    Convert,
    /// Comparisons, selections and predicates.
    Predicate,
    /// Moves between registers.
    Move,
    /// Loads and stores of device memory.
    Global,
    /// Loads and stores of shared memory.
    Shared,
    /// Loads and stores of local memory, constants and parameters.
    Local,
    /// Atomic operations.
    Atomic,
    /// Asynchronous copies.
    Copy,
    /// Matrix loads.
    MatrixLoad,
    /// Tensor core operations.
    Tensor,
    /// Shuffles, votes and warp reductions.
    Warp,
    /// Barriers and fences.
    Barrier,
    /// Branches, calls and ends.
    Control,
}

/// All classes, in the order of [`Counts::by_class`].
pub const CLASSES: [Class; 16] = [
    Class::Integer,
    Class::Float,
    Class::Special,
    Class::Convert,
    Class::Predicate,
    Class::Move,
    Class::Global,
    Class::Shared,
    Class::Local,
    Class::Atomic,
    Class::Copy,
    Class::MatrixLoad,
    Class::Tensor,
    Class::Warp,
    Class::Barrier,
    Class::Control,
];

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Blocks run.
    pub blocks: u64,
    /// Instructions executed by warps, for each of [`CLASSES`]. Text has them by name.
    #[serde(with = "by_name")]
    pub by_class: [u64; CLASSES.len()],
    /// Instructions executed by threads.
    pub lane_instructions: u64,
    /// Multiplications and additions of tensor cores: two operations for each product.
    pub tensor_operations: u64,
    /// These, each times the bytes of an operand's element: tensor cores work on 8 bits twice as
    /// fast as on 16, and on 32 (TF32) half as fast.
    pub tensor_work: u64,
    /// Bytes that lanes loaded from device memory.
    pub global_bytes_loaded: u64,
    /// Bytes that lanes stored to device memory.
    pub global_bytes_stored: u64,
    /// 32-byte sectors that loads requested.
    pub sectors_loaded: u64,
    /// 32-byte sectors that stores requested.
    pub sectors_stored: u64,
    /// Sectors that the modelled L2 did not have.
    pub l2_misses: u64,
    /// Changed sectors that the modelled L2 wrote back, those left at the end included.
    pub l2_write_backs: u64,
    /// Accesses of shared memory by warps.
    pub shared_accesses: u64,
    /// Passes over the banks that these took.
    pub shared_wavefronts: u64,
    /// Passes that would do without bank conflicts.
    pub shared_wavefronts_ideal: u64,
    /// Barriers that blocks completed.
    pub barriers: u64,
}

impl Counts {
    /// Instructions executed by warps.
    pub fn warp_instructions(&self) -> u64 {
        self.by_class.iter().sum()
    }

    /// Instructions of a class executed by warps.
    pub fn of(&self, class: Class) -> u64 {
        self.by_class.get(class as usize).copied().unwrap_or(0)
    }

    /// Bytes between the modelled L2 and device memory.
    pub fn dram_bytes(&self) -> u64 {
        (self.l2_misses + self.l2_write_backs) * 32
    }

    /// Counts operations of tensor cores on elements of so many bytes.
    pub(crate) fn add_tensor(&mut self, operations: u64, bytes: u64) {
        self.tensor_operations += operations;
        self.tensor_work += operations * bytes;
    }

    /// Adds what another launch or block did.
    pub fn add(&mut self, other: &Self) {
        for (all, one) in self.by_class.iter_mut().zip(other.by_class) {
            *all += one;
        }
        self.blocks += other.blocks;
        self.lane_instructions += other.lane_instructions;
        self.tensor_operations += other.tensor_operations;
        self.tensor_work += other.tensor_work;
        self.global_bytes_loaded += other.global_bytes_loaded;
        self.global_bytes_stored += other.global_bytes_stored;
        self.sectors_loaded += other.sectors_loaded;
        self.sectors_stored += other.sectors_stored;
        self.l2_misses += other.l2_misses;
        self.l2_write_backs += other.l2_write_backs;
        self.shared_accesses += other.shared_accesses;
        self.shared_wavefronts += other.shared_wavefronts;
        self.shared_wavefronts_ideal += other.shared_wavefronts_ideal;
        self.barriers += other.barriers;
    }
}

/// Numbers of the classes by their names, those of none left out.
mod by_name {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{CLASSES, Class};

    pub(super) fn serialize<S: Serializer>(
        counts: &[u64; CLASSES.len()],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let all: BTreeMap<Class, u64> =
            CLASSES.into_iter().zip(*counts).filter(|(_, count)| *count > 0).collect();
        all.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u64; CLASSES.len()], D::Error> {
        let all = BTreeMap::<Class, u64>::deserialize(deserializer)?;
        Ok(CLASSES.map(|class| all.get(&class).copied().unwrap_or(0)))
    }
}

/// What is counted beyond instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counting {
    /// Bytes and sectors of device memory, passes over shared memory.
    pub memory: bool,
    /// The L2 cache that sectors go through, if any.
    pub l2: Option<CacheModel>,
}

impl Default for Counting {
    fn default() -> Self {
        Self { memory: true, l2: None }
    }
}

impl Counting {
    /// Instructions only.
    pub fn none() -> Self {
        Self { memory: false, l2: None }
    }
}
