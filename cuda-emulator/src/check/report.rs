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
    /// Shared memory is used while a `cp.async` to it is on its way.
    #[error(
        "{access} of shared memory at {offset}, where a cp.async that was not waited for writes"
    )]
    AsyncCopyPending {
        /// "load", "store" or "atomic".
        access: &'static str,
        /// The offset into shared memory.
        offset: u64,
    },
    /// A thread ends while its `cp.async` are on their way.
    #[error("the thread ends with {count} cp.async not waited for")]
    AsyncCopyLeft {
        /// How many.
        count: usize,
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
            | Self::GlobalRace { .. }
            | Self::AsyncCopyPending { .. }
            | Self::AsyncCopyLeft { .. }
            | Self::MismatchedBarrier { .. }
            | Self::Overlap { .. }
            | Self::Refused { .. }
            | Self::DivisionByZero => Severity::Error,
            Self::BankConflicts { .. } | Self::Uncoalesced { .. } => Severity::Advice,
            _ => Severity::Fault,
        }
    }

    /// What to look at.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::OutOfBounds { .. } => {
                "look at the bounds test of the index, the launch's grid, and the sizes and order of the arguments"
            }
            Self::UseAfterFree { .. } => {
                "look at what frees the memory: it must wait for the stream that the kernel runs on"
            }
            Self::Misaligned { .. } => {
                "vector accesses need an index that is a multiple of the vector's length, and a base that is aligned"
            }
            Self::ReadOnly { .. } => {
                "look at the pointer: it points to constant memory or parameters"
            }
            Self::UninitializedShared { .. } => {
                "look for the thread that should write these bytes, and for the bounds of its loop"
            }
            Self::UninitializedGlobal { .. } => {
                "look for a missing copy, memset or launch before this one, or an index into padding"
            }
            Self::SharedRace { .. } => "a __syncthreads() is missing between the two accesses",
            Self::GlobalRace { .. } => {
                "two blocks use the same element: look at how the grid divides the data, or use atomics"
            }
            Self::AsyncCopyPending { .. } => {
                "cp.async.wait_group must come first, with a number small enough, and then a barrier for other warps"
            }
            Self::AsyncCopyLeft { .. } => {
                "wait for the copies, or do not issue them: the last loop passes are suspect"
            }
            Self::LanesMissing { .. } | Self::LaneNotNamed { .. } => {
                "the instruction stands in a divergent branch or its mask is wrong: move it out, or use the mask of those who take part"
            }
            Self::DivergentBarrier { .. } | Self::MismatchedBarrier { .. } => {
                "__syncthreads() must be reached by all threads of the block, at the same place"
            }
            Self::Deadlock { .. } => "some warps never reach the barrier that the others wait at",
            Self::InvalidBarrier { .. } => "look at the barrier's operands",
            Self::DivisionByZero => "the result is undefined: look at the divisor's argument",
            Self::BranchIndex { .. } => "look at the switch that this is compiled from",
            Self::Assertion | Self::Trap => "the kernel found a violation of its own rules",
            Self::Timeout { .. } => {
                "an endless loop: look at its condition, or at spinning on a lane of the same warp"
            }
            Self::Overlap { .. } => {
                "give the result memory of its own; D may only be C itself, in the same layout"
            }
            Self::RankMismatch { .. } => {
                "all ranks make the same calls in the same order, with the same counts, types and roots"
            }
            Self::RankMissing { .. } => {
                "look for the rank that ended early, or that makes its calls in another order"
            }
            Self::Refused { .. } => "look at the arguments of the call",
            Self::BankConflicts { .. } => "pad the rows or swizzle the columns",
            Self::Uncoalesced { .. } => "let neighbouring lanes use neighbouring addresses",
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
