//! What can go wrong, with its operands.

use crate::types::{LockId, PageId, TransferId};

/// A refused call. The cache is as it was before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The page size is not a power of two between 1 and 512.
    #[error("page size {page_size} is not a power of two between 1 and 512")]
    PageSize {
        /// The size that was asked for, in tokens.
        page_size: usize,
    },
    /// A window of no positions was asked for. The smallest is 1: a token attends to itself.
    #[error("a window of 0 tokens leaves a token nothing to attend to")]
    EmptyWindow,
    /// A windowed group and a host tier were asked for together. Transfers copy full pages alone, so
    /// a prefix that was loaded back would lack its window.
    #[error("a cache with a windowed group has no host tier, which copies full pages alone")]
    WindowWithHostTier,
    /// The cache was built without a windowed group.
    #[error("the cache has no windowed group")]
    NoWindowedGroup,
    /// More windowed pages were presented than there are pages before the lock's end.
    #[error("{pages} windowed pages reach beyond the start of a lock of {held} pages")]
    WindowedBeyondStart {
        /// Pages presented.
        pages: usize,
        /// Pages that the lock holds.
        held: usize,
    },
    /// The lock was released before, or died with the tree it belonged to.
    #[error("{lock} is not held: it was released, or the cache was reset")]
    UnknownLock {
        /// The id that was presented.
        lock: LockId,
    },
    /// The transfer was confirmed or failed before, or died with the tree it belonged to.
    #[error("{transfer} is not under way: it has ended, or the cache was reset")]
    UnknownTransfer {
        /// The id that was presented.
        transfer: TransferId,
    },
    /// The tokens of a run do not fill its pages exactly.
    #[error("{tokens} tokens do not fill {pages} pages of {page_size} tokens")]
    RaggedRun {
        /// Tokens presented.
        tokens: usize,
        /// Pages presented.
        pages: usize,
        /// Tokens a page holds.
        page_size: usize,
    },
    /// The caller offered a page that the cache already owns at that very place, which would
    /// give it two owners.
    #[error("{page} is already cached there and can't be inserted again")]
    PageAlreadyCached {
        /// The offending page.
        page: PageId,
    },
    /// A page has the number that stands for no page, [`u32::MAX`].
    #[error("page number {} stands for no page", u32::MAX)]
    ReservedPage,
    /// A snapshot does not describe a cache.
    #[error("node {node} of the snapshot {what}")]
    Snapshot {
        /// The node's place in the snapshot.
        node: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The cache would have to number more pages, nodes or locks than 32 bits can.
    #[error("the cache can't hold {pages} more pages")]
    Full {
        /// Pages that were to be added.
        pages: usize,
    },
}

/// A broken invariant, found by [`check_invariants`](crate::RadixCache::check_invariants): a
/// bug in this crate, never a caller's mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("radix cache invariant broken: {what}")]
pub struct InvariantViolation {
    /// What does not hold, and where.
    pub what: String,
}

/// Returns an [`InvariantViolation`] unless something holds.
macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err($crate::error::InvariantViolation { what: format!($($what)+) });
        }
    };
}

pub(crate) use ensure;
