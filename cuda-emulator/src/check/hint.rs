//! What to look at, for each problem.

use super::report::Problem;

impl Problem {
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
            Self::CopyRace { .. } => {
                "wait for the mbarrier, or for a barrier that a warp arrives at after waiting for it"
            }
            Self::GlobalRace { .. } => {
                "two blocks use the same element: look at how the grid divides the data, or use atomics"
            }
            Self::AsyncCopyPending { .. } => {
                "wait first: cp.async.wait_group with a number small enough, or for bulk copies the mbarrier, and then a barrier for other warps"
            }
            Self::AsyncReadPending { .. } => {
                "wait first: cp.async.bulk.wait_group.read for bulk stores, wgmma.wait_group for wgmma, and then a barrier for other warps"
            }
            Self::ProxyFence { .. } => {
                "fence.proxy.async must stand between the stores and the barrier that the asynchronous operation waits for"
            }
            Self::MbarrierUninitialized { .. } | Self::MbarrierInitializedTwice { .. } => {
                "one thread runs mbarrier.init once, and a barrier keeps the others from coming earlier"
            }
            Self::MbarrierTouched { .. } => {
                "only mbarrier instructions may use an mbarrier until mbarrier.inval: look for an overrun of the array beside it"
            }
            Self::MbarrierOverrun { .. } | Self::MbarrierCount { .. } => {
                "the count of mbarrier.init must be that of the threads which arrive in each phase"
            }
            Self::MbarrierUnfenced { .. } => {
                "fence.mbarrier_init.release.cluster or fence.proxy.async must follow mbarrier.init"
            }
            Self::MbarrierDeadlock { .. } => {
                "look at the arrivals, at the bytes of expect_tx, and at the parity that is waited for"
            }
            Self::BulkCopyLeft { .. } => {
                "wait for loads at their mbarrier, and for stores with commit_group and wait_group"
            }
            Self::BulkCopy { .. } => "look at the tensor map and at the copy's operands",
            Self::WgmmaPending => {
                "wgmma.commit_group and wgmma.wait_group must come first, with a number small enough"
            }
            Self::WgmmaFence => {
                "wgmma.fence must come between the last use of the registers and wgmma"
            }
            Self::WgmmaDivergent => "the branch around wgmma must be the same for all four warps",
            Self::WgmmaLeft { .. } => "wgmma.wait_group 0 must come before the end",
            Self::WgmmaDescriptor { .. } => {
                "look at the start address, the offsets, and the swizzle mode in bits 62 and 63"
            }
            Self::ClusterRank { .. } => "look at the launch's cluster size and at mapa's operand",
            Self::ClusterNotBegun { .. } => "barrier.cluster.arrive and wait must come first",
            Self::ClusterEnded { .. } => {
                "barrier.cluster.arrive and wait must stand between the last access and the end"
            }
            Self::ClusterBarrier { .. } => "each thread arrives once and then waits once",
            Self::CallTarget { .. } => "look at where the pointer comes from",
            Self::StackOverflow { .. } => "look at what ends the recursion",
            Self::AsyncCopyLeft { .. } => {
                "wait for the copies, or do not issue them: the last loop passes are suspect"
            }
            Self::RedundantStore { .. } | Self::ConflictingStore { .. } => {
                "let one lane store, as in if (lane == 0): look for a test that is missing or turned round, or an index that does not tell lanes apart"
            }
            Self::LanesMissing { .. } | Self::LaneNotNamed { .. } => {
                "the instruction stands in a divergent branch or its mask is wrong: move it out, or use the mask of those who take part"
            }
            Self::DivergentBarrier { .. } | Self::MismatchedBarrier { .. } => {
                "__syncthreads() must be reached by all threads of the block, at the same place"
            }
            Self::RepeatedArrival { .. } => {
                "bar.arrive and bar.sync of the same barrier must take turns"
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
