//! What a check tells.

use std::fmt;

use serde::Serialize;

use super::global::Access;

/// How bad a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The kernel could be faster.
    Advice,
    /// The kernel does what is seldom meant; its results are defined.
    Warning,
    /// The kernel is wrong; it went on.
    Error,
    /// The kernel was stopped.
    Fault,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Problem {
    /// An access outside of what is allocated.
    #[error("{access} of {bytes} bytes at {address:#x}, {place}")]
    OutOfBounds {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The address within its space.
        address: u64,
        /// Size of the access.
        bytes: u64,
        /// Where that is, in words.
        place: String,
    },
    /// An access of memory that was freed.
    #[error("{access} of {bytes} bytes at {address:#x}, inside of {size} bytes that were freed")]
    UseAfterFree {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The address.
        address: u64,
        /// Size of the access.
        bytes: u64,
        /// Size of the allocation.
        size: u64,
    },
    /// An address that isn't a multiple of the access size.
    #[error("{access} of {bytes} bytes at {address:#x}, which is not a multiple of {bytes}")]
    Misaligned {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The address within its space.
        address: u64,
        /// Size of the access.
        bytes: u64,
    },
    /// A store to constant memory or parameters.
    #[error("store to {address:#x}, which kernels may only read")]
    ReadOnly {
        /// The address.
        address: u64,
    },
    /// A read of shared memory that nobody wrote.
    #[error("read of {bytes} bytes of shared memory at {offset}, not all of them written")]
    UninitializedShared {
        /// The offset into shared memory.
        offset: u64,
        /// Size of the access.
        bytes: u64,
    },
    /// A read of device memory that nobody wrote.
    #[error("read of {bytes} bytes of device memory at {address:#x}, not all of them written")]
    UninitializedGlobal {
        /// The address.
        address: u64,
        /// Size of the access.
        bytes: u64,
    },
    /// Two warps use shared memory with no barrier between.
    #[error("{access} of shared memory at {offset} races with a {earlier} by warp {warp}")]
    SharedRace {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The offset into shared memory.
        offset: u64,
        /// What the other warp did.
        earlier: &'static str,
        /// The other warp.
        warp: u32,
    },
    /// Shared memory that a bulk copy wrote is used without waiting for the copy's mbarrier.
    #[error(
        "{access} of shared memory at {offset}, which a bulk copy wrote whose mbarrier this warp did not wait for"
    )]
    CopyRace {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The offset into shared memory.
        offset: u64,
    },
    /// Two blocks use device memory with nothing that orders them.
    #[error("{access} of device memory at {address:#x} races with a {earlier} by block {block}")]
    GlobalRace {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The address.
        address: u64,
        /// What the other block did.
        earlier: &'static str,
        /// The other block's number in the grid.
        block: u32,
    },
    /// Shared memory is used while an asynchronous copy to it is on its way.
    #[error(
        "{access} of shared memory at {offset}, where an asynchronous copy that was not waited for writes"
    )]
    AsyncCopyPending {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The offset into shared memory.
        offset: u64,
    },
    /// Shared memory changes while an asynchronous operation reads it.
    #[error(
        "{access} of shared memory at {offset}, which a bulk store or wgmma that was not waited for reads"
    )]
    AsyncReadPending {
        /// "store" or "atomic".
        access: &'static str,
        /// The offset into shared memory.
        offset: u64,
    },
    /// An asynchronous operation reads what an ordinary store wrote.
    #[error(
        "asynchronous read of shared memory at {offset}, which ordinary stores wrote with no fence.proxy.async since"
    )]
    ProxyFence {
        /// The offset into shared memory.
        offset: u64,
    },
    /// An mbarrier is used where none was initialized.
    #[error("no mbarrier was initialized at offset {offset} of shared memory")]
    MbarrierUninitialized {
        /// The offset into shared memory.
        offset: u64,
    },
    /// An mbarrier is initialized where there is one.
    #[error("the mbarrier at offset {offset} of shared memory is initialized again")]
    MbarrierInitializedTwice {
        /// The offset into shared memory.
        offset: u64,
    },
    /// The bytes of an mbarrier are used as if they were data.
    #[error("{access} of the mbarrier at offset {offset} of shared memory as if it were data")]
    MbarrierTouched {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The offset into shared memory.
        offset: u64,
    },
    /// More arrivals than a phase of an mbarrier expects.
    #[error(
        "{count} arrivals at the mbarrier at offset {offset}, whose phase expects {pending} more"
    )]
    MbarrierOverrun {
        /// The offset into shared memory.
        offset: u64,
        /// The arrivals.
        count: u32,
        /// How many the phase still expects.
        pending: u32,
    },
    /// A count that mbarriers can't have.
    #[error("mbarrier at offset {offset}: {what} of {value}, which is not from {least} to {most}")]
    MbarrierCount {
        /// The offset into shared memory.
        offset: u64,
        /// What is counted.
        what: &'static str,
        /// The value.
        value: i64,
        /// The least that is allowed.
        least: i64,
        /// The most that is allowed.
        most: i64,
    },
    /// A copy signals an mbarrier whose initialization it may not see.
    #[error(
        "an asynchronous copy signals the mbarrier at offset {offset}, whose initialization was not fenced"
    )]
    MbarrierUnfenced {
        /// The offset into shared memory.
        offset: u64,
    },
    /// A phase of an mbarrier that is waited for does not end.
    #[error(
        "deadlock: {waiting} warps wait for phase {phase} of the mbarrier at offset {offset}, which lacks {arrivals} arrivals and {bytes} bytes"
    )]
    MbarrierDeadlock {
        /// The offset into shared memory.
        offset: u64,
        /// The phase, counted from 0 after the initialization.
        phase: u64,
        /// Arrivals that are missing.
        arrivals: u32,
        /// Bytes of copies that are missing; below 0 if more came than were expected.
        bytes: i64,
        /// How many warps of the cluster wait.
        waiting: usize,
    },
    /// A thread or block ends while bulk copies are on their way.
    #[error("{count} bulk copies were not waited for at the end")]
    BulkCopyLeft {
        /// How many.
        count: usize,
    },
    /// Operands that a bulk copy doesn't take.
    #[error("bulk copy: {reason}")]
    BulkCopy {
        /// What is wrong.
        reason: String,
    },
    /// A register is used while a `wgmma` uses it.
    #[error("a register that a wgmma which was not waited for uses is touched")]
    WgmmaPending,
    /// A register was touched since the last `wgmma.fence`, or there was none.
    #[error("wgmma uses registers that were touched since the last wgmma.fence")]
    WgmmaFence,
    /// The warps of a warpgroup execute different `wgmma`.
    #[error("the four warps of the warpgroup do not execute the same wgmma")]
    WgmmaDivergent,
    /// A warp ends while its `wgmma` are on their way.
    #[error("the warp ends with {count} wgmma not waited for")]
    WgmmaLeft {
        /// How many.
        count: usize,
    },
    /// A matrix descriptor that `wgmma` doesn't take.
    #[error("wgmma: matrix descriptor {descriptor:#x}: {reason}")]
    WgmmaDescriptor {
        /// The descriptor.
        descriptor: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A block of a rank that the cluster doesn't have.
    #[error("block {rank} of a cluster of {size}")]
    ClusterRank {
        /// The rank.
        rank: u32,
        /// Blocks of the cluster.
        size: u32,
    },
    /// Shared memory of another block is used before it is known to run.
    #[error("{access} of shared memory of block {rank} of the cluster, which may not have begun")]
    ClusterNotBegun {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The block's rank.
        rank: u32,
    },
    /// Shared memory of a block is used after its end, or with nothing that keeps it from ending.
    #[error("{access} of shared memory of block {rank} of the cluster, which may have ended")]
    ClusterEnded {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The block's rank.
        rank: u32,
    },
    /// `barrier.cluster.arrive` and `.wait` don't take turns.
    #[error("barrier.cluster.{operation} out of turn")]
    ClusterBarrier {
        /// "arrive" or "wait".
        operation: &'static str,
    },
    /// A call through a pointer to no function, or to one with other parameters.
    #[error("call of {address:#x}, where no function with such parameters is")]
    CallTarget {
        /// The address.
        address: u64,
    },
    /// Functions called each other too deep.
    #[error("more than {limit} bytes of stack of a thread")]
    StackOverflow {
        /// The most.
        limit: usize,
    },
    /// A thread ends while its `cp.async` are on their way.
    #[error("the thread ends with {count} cp.async not waited for")]
    AsyncCopyLeft {
        /// How many.
        count: usize,
    },
    /// Lanes of a warp store the same value to the same place at once.
    #[error(
        "lanes {lanes:#010x} store to {address:#x} at once, where a lower lane stores the same value"
    )]
    RedundantStore {
        /// Where: an address of device memory or an offset into shared memory.
        address: u64,
        /// The lanes that could be spared, of this address and others.
        lanes: u32,
    },
    /// Lanes of a warp store different values to the same place at once.
    #[error("lanes {first} and {second} store different values to {address:#x} at once")]
    ConflictingStore {
        /// Where: an address of device memory or an offset into shared memory.
        address: u64,
        /// A lane.
        first: u32,
        /// One that stores something else.
        second: u32,
    },
    /// Lanes that the mask names don't execute the instruction.
    #[error("lanes {missing:#010x} are named by the mask {mask:#010x} but do not take part")]
    LanesMissing {
        /// The mask.
        mask: u32,
        /// The lanes of it that are elsewhere.
        missing: u32,
    },
    /// A lane executes an instruction whose mask doesn't name it.
    #[error("lane takes part although the mask {mask:#010x} does not name it")]
    LaneNotNamed {
        /// The mask.
        mask: u32,
    },
    /// A barrier that a part of a warp executes.
    #[error("barrier executed by lanes {lanes:#010x} of {live:#010x}")]
    DivergentBarrier {
        /// The lanes that execute the barrier.
        lanes: u32,
        /// The lanes that have not ended.
        live: u32,
    },
    /// Warps meet at barriers that stand at different places.
    #[error("barrier {barrier} is met at different places of the kernel")]
    MismatchedBarrier {
        /// The barrier's number.
        barrier: u32,
    },
    /// A warp arrives at a barrier where it has arrived before.
    #[error("the warp arrives again at barrier {barrier}, which has not completed since")]
    RepeatedArrival {
        /// The barrier's number.
        barrier: u32,
    },
    /// Nobody can go on.
    #[error("deadlock: {waiting} warps wait at barriers that will not complete")]
    Deadlock {
        /// How many warps wait.
        waiting: usize,
    },
    /// A barrier that doesn't exist or counts threads that it can't.
    #[error(
        "barrier {barrier} with {threads} threads: there are 16 barriers, and they count whole warps"
    )]
    InvalidBarrier {
        /// The barrier's number.
        barrier: u32,
        /// The number of threads.
        threads: u32,
    },
    /// An integer division by zero, whose result PTX doesn't define.
    #[error("integer division by zero")]
    DivisionByZero,
    /// An indirect branch beyond its table.
    #[error("branch to entry {index} of a table of {entries}")]
    BranchIndex {
        /// The index.
        index: u32,
        /// Size of the table.
        entries: usize,
    },
    /// `assert` failed on the device.
    #[error("assertion failed")]
    Assertion,
    /// `trap` was executed.
    #[error("trap")]
    Trap,
    /// The launch ran longer than it may.
    #[error("no end after {instructions} warp instructions")]
    Timeout {
        /// How many were executed.
        instructions: u64,
    },
    /// What a library writes lies on what it reads.
    #[error("{what} share bytes")]
    Overlap {
        /// The operands.
        what: String,
    },
    /// Ranks of a communicator make calls that don't belong together.
    #[error("{what}")]
    RankMismatch {
        /// Which calls of which ranks.
        what: String,
    },
    /// A rank of a communicator doesn't come.
    #[error("{what}")]
    RankMissing {
        /// Which rank, and what the others wait for.
        what: String,
    },
    /// A call of a library was refused.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// Shared memory accesses take more cycles than they need.
    #[error(
        "bank conflicts: {wavefronts} wavefronts instead of {ideal} over {executions} executions"
    )]
    BankConflicts {
        /// Passes over shared memory.
        wavefronts: u64,
        /// Passes without conflicts.
        ideal: u64,
        /// How often a warp executed the instruction.
        executions: u64,
    },
    /// Device memory accesses touch more sectors than they need.
    #[error(
        "uncoalesced: {sectors} sectors of 32 bytes instead of {ideal} over {executions} executions"
    )]
    Uncoalesced {
        /// Sectors touched.
        sectors: u64,
        /// Sectors that the bytes would fit into.
        ideal: u64,
        /// How often a warp executed the instruction.
        executions: u64,
    },
}

impl Problem {
    /// Whether the problem ends a launch.
    pub fn severity(&self) -> Severity {
        match self {
            Self::UninitializedShared { .. }
            | Self::UninitializedGlobal { .. }
            | Self::SharedRace { .. }
            | Self::CopyRace { .. }
            | Self::GlobalRace { .. }
            | Self::AsyncCopyPending { .. }
            | Self::AsyncCopyLeft { .. }
            | Self::AsyncReadPending { .. }
            | Self::ProxyFence { .. }
            | Self::MbarrierInitializedTwice { .. }
            | Self::MbarrierTouched { .. }
            | Self::MbarrierUnfenced { .. }
            | Self::BulkCopyLeft { .. }
            | Self::WgmmaPending
            | Self::WgmmaFence
            | Self::WgmmaDivergent
            | Self::WgmmaLeft { .. }
            | Self::ClusterNotBegun { .. }
            | Self::MismatchedBarrier { .. }
            | Self::Overlap { .. }
            | Self::Refused { .. }
            | Self::RepeatedArrival { .. }
            | Self::ConflictingStore { .. }
            | Self::DivisionByZero => Severity::Error,
            Self::RedundantStore { .. } => Severity::Warning,
            Self::BankConflicts { .. } | Self::Uncoalesced { .. } => Severity::Advice,
            _ => Severity::Fault,
        }
    }
}

/// A place in a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Site {
    /// The source file, with `-lineinfo`.
    pub file: Option<String>,
    /// The line of the source file, with `-lineinfo`.
    pub line: Option<u32>,
    /// The line of the PTX text.
    pub ptx_line: u32,
    /// The instruction's name with its modifiers.
    pub instruction: String,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            write!(f, "{file}:{line} ")?;
        }
        if self.ptx_line == 0 {
            // A library's call: the operand.
            return f.write_str(&self.instruction);
        }
        write!(f, "(PTX line {}, {})", self.ptx_line, self.instruction)
    }
}

/// A problem, where it was found, and how often.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What is wrong.
    #[serde(flatten)]
    pub problem: Problem,
    /// How bad that is.
    pub severity: Severity,
    /// The kernel's name.
    pub kernel: String,
    /// The first block that had the problem; none for advice.
    pub block: Option<[u32; 3]>,
    /// The first thread that had the problem; none for advice.
    pub thread: Option<[u32; 3]>,
    /// Where it was found.
    pub site: Site,
    /// Where the other access of a race stands.
    pub other: Option<Site>,
    /// How often.
    pub count: u64,
}

impl Report {
    /// The report as one line of JSON, with the hint.
    pub fn to_json(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("hint".to_owned(), self.problem.hint().into());
            object.insert("text".to_owned(), self.problem.to_string().into());
        }
        value.to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Advice => "advice",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Fault => "fault",
        };
        writeln!(f, "{severity}: {}: {}", self.kernel, self.problem)?;
        write!(f, "  at {}", self.site)?;
        if let (Some([bx, by, bz]), Some([tx, ty, tz])) = (self.block, self.thread) {
            write!(f, ", block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz})")?;
        }
        if self.count > 1 {
            write!(f, ", {} times", self.count)?;
        }
        if let Some(other) = &self.other {
            write!(f, "\n  the other access: {other}")?;
        }
        write!(f, "\n  hint: {}", self.problem.hint())
    }
}

impl Access {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read | Self::Observe => "load",
            Self::Write => "store",
            Self::Atomic => "atomic",
        }
    }
}
