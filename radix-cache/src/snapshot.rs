//! The structure of a cache as plain data, for replicas that restart and for tests.

use crate::types::{Namespace, PageId, Retention, Token};

/// Everything a cache knows, except its locks, which belong to sequences, and its copies on the
/// host, which belong to the process: neither survives a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// Tokens a page holds.
    pub page_size: usize,
    /// The cache's own clock: the number of uses so far.
    pub clock: u64,
    /// The windowed group's own clock; 0 without one.
    #[cfg_attr(feature = "serde", serde(default))]
    pub windowed_clock: u64,
    /// The caller's clock, in ticks.
    pub now: u64,
    /// Nodes, parents first.
    pub nodes: Vec<SnapshotNode>,
}

/// One node of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SnapshotNode {
    /// Whose it is.
    pub namespace: Namespace,
    /// The place of its parent in the list; none for the start of a prompt.
    pub parent: Option<usize>,
    /// Its tokens, `page_size` for each page.
    pub tokens: Vec<Token>,
    /// Its pages.
    pub pages: Vec<PageId>,
    /// When it was last used, by the cache's own clock.
    pub used: u64,
    /// When it was inserted, by the cache's own clock.
    pub created: u64,
    /// How often it was matched, if the policy asks for it.
    pub hits: u32,
    /// How it is retained.
    pub retention: Retention,
    /// Those of its pages that have a windowed page too.
    #[cfg_attr(feature = "serde", serde(default))]
    pub windowed: Vec<SnapshotWindowedPage>,
}

/// One page of the windowed group, in a [`SnapshotNode`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SnapshotWindowedPage {
    /// Which of the node's pages it belongs to, counted from 0.
    pub place: u32,
    /// The page.
    pub page: PageId,
    /// Whether a sequence or a match ended so that it was in its window.
    pub near_end: bool,
    /// When a window last left it, by the group's own clock.
    pub used: u64,
    /// When it was put, by the group's own clock.
    pub created: u64,
    /// How often a match ended with it in its window.
    pub hits: u32,
    /// How it is retained.
    pub retention: Retention,
}
