//! Nodes: what the tree is made of.

use crate::order::Record;
use crate::rank_heap::Numbered;
use crate::store::Run;
use crate::types::Tier;

/// A node's place in the arena. Never leaves the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeIndex(pub(super) u32);

impl NodeIndex {
    /// The parent of a root.
    pub(super) const NONE: Self = Self(u32::MAX);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl Numbered for NodeIndex {
    fn number(self) -> usize {
        self.index()
    }
}

/// A run of whole pages that every sequence through it shares. Only the [tree](super::Tree) changes
/// one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) parent: NodeIndex,
    pub(crate) run: Run,
    /// Where the run ends: pages from the root to its end.
    pub(crate) end: u32,
    /// Locks and transfers that end here, plus children that are pinned. A node is pinned while
    /// this is not zero, so a pinned node's ancestors are pinned too, and the pages of a pinned
    /// node stay.
    pub(crate) pins: u32,
    pub(crate) children: u32,
    /// Children on each tier. A node on a tier has its parent there.
    pub(crate) children_on: [u32; 2],
    /// The hash of (parent, first page) under which the parent's children are found.
    pub(super) hash: u32,
    pub(crate) live: bool,
    /// Whether its pages are on the device, and on the host: on one of them or on both.
    pub(super) on: [bool; 2],
    /// Whether a transfer copies it from one to the other at the moment.
    pub(crate) moving: bool,
    /// What decides when it goes. The last use of anything here or below is exact while the node
    /// is not pinned: uses pin, and taking the pin away tells the parent.
    pub(crate) record: Record,
}

impl Node {
    pub(crate) fn is_on(&self, tier: Tier) -> bool {
        self.on[tier as usize]
    }

    pub(crate) fn is_on_device(&self) -> bool {
        self.is_on(Tier::Device)
    }

    /// How many of its pages are on a tier.
    pub(crate) fn pages_on(&self, tier: Tier) -> usize {
        if self.is_on(tier) { self.run.pages as usize } else { 0 }
    }

    /// Whether it is a leaf of a tier's part that nothing pins.
    pub(crate) fn is_idle_leaf(&self, tier: Tier) -> bool {
        self.pins == 0 && self.is_on(tier) && self.children_on[tier as usize] == 0
    }

    /// Where its run starts: pages from the root.
    pub(crate) fn start(&self) -> u32 {
        self.end - self.run.pages
    }
}
