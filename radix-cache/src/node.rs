//! Nodes: what the tree is made of.

use crate::rank_heap::Numbered;
use crate::retention::Retention;
use crate::store::Run;

/// A node's place in the arena. Never leaves the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeIndex(pub(crate) u32);

impl NodeIndex {
    /// The parent of a root.
    pub(crate) const NONE: Self = Self(u32::MAX);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl Numbered for NodeIndex {
    fn number(self) -> usize {
        self.index()
    }
}

/// A run of whole pages that every sequence through it shares.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) parent: NodeIndex,
    pub(crate) run: Run,
    /// Where the run ends: pages from the root to its end.
    pub(crate) end: u32,
    /// Locks that end here, plus children that are pinned. A node is pinned while this is not
    /// zero, so a pinned node's ancestors are pinned too, and the pages of a pinned node stay.
    pub(crate) pins: u32,
    pub(crate) children: u32,
    /// Children that are on the device. A node on the device has its parent there.
    pub(crate) device_children: u32,
    /// Children that are on the host. A node on the host has its parent there.
    pub(crate) host_children: u32,
    /// The hash of (parent, first page) under which the parent's children are found.
    pub(crate) hash: u32,
    pub(crate) live: bool,
    /// Whether its pages are on the device. A node is on the device, on the host, or on both.
    pub(crate) device: bool,
    /// Whether its pages are on the host.
    pub(crate) host: bool,
    /// Whether a transfer copies it from one to the other at the moment.
    pub(crate) moving: bool,
    /// The clock when something here or below was last used. Exact while the node is not pinned:
    /// uses pin, and taking the pin away tells the parent.
    pub(crate) used: u64,
    /// The clock when its pages were inserted.
    pub(crate) created: u64,
    /// How often it was matched, if anything asks for it.
    pub(crate) hits: u32,
    pub(crate) retention: Retention,
}

impl Node {
    pub(crate) fn is_on_device(&self) -> bool {
        self.device
    }

    /// How many of its pages are on the device, and on the host.
    pub(crate) fn pages_by_tier(&self) -> (usize, usize) {
        let on = |tier| if tier { self.run.pages as usize } else { 0 };
        (on(self.device), on(self.host))
    }

    /// Where its run starts: pages from the root.
    pub(crate) fn start(&self) -> u32 {
        self.end - self.run.pages
    }
}
