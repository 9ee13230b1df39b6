//! Known bugs that the test suite has to catch. Without the feature `seeded-bugs` the switch
//! is a constant and nothing of it is left in the code.

/// A bug that can be planted in one cache.
#[cfg_attr(not(feature = "seeded-bugs"), allow(dead_code, unreachable_pub))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SeededBug {
    /// Every namespace is namespace 0.
    IgnoreNamespace,
    /// `insert` puts the caller's page where another one was already present.
    ReplaceOnInsert,
    /// `insert` lets go of the old end before it attaches and locks the new one.
    UnlockBeforeLock,
    /// The upper part of a split node starts without the locks of its lower part.
    SplitForgetsLockCount,
    /// `evict` takes leaves that are locked.
    EvictLocked,
    /// Children are told apart by the hash of their first page alone.
    TrustHash,
    /// A transfer that failed counts as done.
    TrustFailedTransfer,
    /// A match needs no windowed pages.
    MatchIgnoresWindow,
    /// `insert` lets go of as many windowed pages as it should, at the wrong end.
    InsertUnlocksWrongWindow,
    /// `evict_windowed` takes pages that a lock's window covers.
    EvictWindowInUse,
    /// `put_windowed` puts the caller's page where another one was already present.
    PutReplacesWindowed,
}

#[cfg(feature = "seeded-bugs")]
impl SeededBug {
    /// Every bug there is.
    pub const ALL: [Self; 11] = [
        Self::IgnoreNamespace,
        Self::ReplaceOnInsert,
        Self::UnlockBeforeLock,
        Self::SplitForgetsLockCount,
        Self::EvictLocked,
        Self::TrustHash,
        Self::TrustFailedTransfer,
        Self::MatchIgnoresWindow,
        Self::InsertUnlocksWrongWindow,
        Self::EvictWindowInUse,
        Self::PutReplacesWindowed,
    ];
}

/// The bug planted in a cache, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planted {
    #[cfg(feature = "seeded-bugs")]
    pub(crate) bug: Option<SeededBug>,
}

impl Planted {
    #[cfg(feature = "seeded-bugs")]
    pub(crate) fn is(self, bug: SeededBug) -> bool {
        self.bug == Some(bug)
    }

    #[cfg(not(feature = "seeded-bugs"))]
    #[inline(always)]
    pub(crate) fn is(self, _: SeededBug) -> bool {
        false
    }
}
