//! Uses and pins, and the order in which unpinned leaves are evicted.

use crate::bugs::SeededBug;
use crate::cache::RadixCache;
use crate::config::Policy;
use crate::leaf_heap::Rank;
use crate::tree::{Node, NodeIndex};

/// Where a leaf stands in the order of a policy.
fn rank(policy: Policy, leaf: &Node) -> Rank {
    let first = match policy {
        Policy::Lru => 0,
        Policy::Lfu => u64::from(leaf.hits),
        Policy::Fifo => leaf.created,
        Policy::Mru => return (0, !leaf.used),
        // The order of the signed numbers, kept in unsigned ones.
        Policy::Priority => u64::from(leaf.retention.priority.cast_unsigned() ^ 1 << 31),
        Policy::SegmentedLru => u64::from(leaf.hits > 0),
    };
    (first, leaf.used)
}

/// A leaf's place in the order of eviction: whether among the retained ones, and where.
pub(crate) type Place = (bool, Rank);

impl RadixCache {
    /// Where an unpinned leaf belongs.
    pub(crate) fn expected_place(&self, leaf: NodeIndex) -> Place {
        let leaf = self.tree.node(leaf);
        let until = leaf.retention.until;
        if until > self.now { (true, (until, leaf.used)) } else { (false, rank(self.policy, leaf)) }
    }

    /// Where a node was filed, if it was.
    pub(crate) fn place_of(&self, node: NodeIndex) -> Option<Place> {
        let plain = self.leaves.rank_of(node).map(|rank| (false, rank));
        plain.or_else(|| self.retained.rank_of(node).map(|rank| (true, rank)))
    }

    /// Where an unpinned leaf of the host's part belongs.
    pub(crate) fn expected_host_place(&self, leaf: NodeIndex) -> Option<Rank> {
        self.host.as_ref().map(|host| rank(host.tier.policy, self.tree.node(leaf)))
    }

    pub(crate) fn file(&mut self, leaf: NodeIndex) {
        match self.expected_place(leaf) {
            (false, rank) => self.leaves.insert(leaf, rank),
            (true, rank) => self.retained.insert(leaf, rank),
        }
    }

    /// Takes a node out of the device's order, if it is in it.
    pub(crate) fn unfile(&mut self, node: NodeIndex) {
        if !self.leaves.remove(node) {
            self.retained.remove(node);
        }
    }

    /// Counts a match of everything down to `end`, none of which is filed at the moment.
    pub(crate) fn count_hit(&mut self, end: NodeIndex) {
        let mut node = end;
        while let Some(hit) = self.tree.get_mut(node) {
            hit.hits = hit.hits.saturating_add(1);
            node = hit.parent;
        }
    }

    /// Notes a use of a node that is pinned or about to be. Its ancestors count as used too; they
    /// learn of it when the pin is taken away, and can't be evicted before.
    pub(crate) fn touch(&mut self, node: NodeIndex) {
        self.clock += 1;
        self.tree.node_mut(node).used = self.clock;
    }

    /// Adds a pin. A node that had none pins its parent in turn.
    pub(crate) fn pin(&mut self, mut node: NodeIndex) {
        while let Some(pinned) = self.tree.get_mut(node) {
            pinned.pins += 1;
            if pinned.pins > 1 {
                return;
            }
            let (device, host) = pinned.pages_by_tier();
            let parent = pinned.parent;
            self.counts.evictable -= device;
            self.counts.locked += device;
            if let Some(tier) = &mut self.host {
                tier.idle -= host;
                tier.order.remove(node);
            }
            if !self.tree.planted.is(SeededBug::EvictLocked) {
                self.unfile(node);
            }
            node = parent;
        }
    }

    /// Takes a pin away. A node that has none left takes one from its parent in turn.
    pub(crate) fn unpin(&mut self, mut node: NodeIndex) {
        while let Some(unpinned) = self.tree.get_mut(node) {
            unpinned.pins -= 1;
            if unpinned.pins > 0 {
                return;
            }
            let (device, host) = unpinned.pages_by_tier();
            let (parent, used) = (unpinned.parent, unpinned.used);
            if let Some(above) = self.tree.get_mut(parent) {
                above.used = above.used.max(used);
            }
            self.counts.locked -= device;
            self.counts.evictable += device;
            if let Some(tier) = &mut self.host {
                tier.idle += host;
            }
            self.settle(node);
            node = parent;
        }
    }

    /// Files a node that may have lost its last pin or its last child: a leaf may be evicted from
    /// here on, a root without children has no purpose.
    pub(crate) fn settle(&mut self, node: NodeIndex) {
        let idle = self.tree.node(node);
        if idle.pins > 0 {
            return;
        }
        if self.tree.is_root(node) {
            if idle.children == 0 {
                self.drop_root(node);
            }
            return;
        }
        let on_host = idle.host && idle.host_children == 0;
        if idle.device && idle.device_children == 0 && self.place_of(node).is_none() {
            self.file(node);
        }
        if on_host && let Some(rank) = self.expected_host_place(node) {
            self.file_on_host(node, rank);
        }
    }

    /// The leaf to evict next: what is retained goes only when nothing else is left.
    pub(crate) fn first_to_go(&self) -> Option<NodeIndex> {
        self.leaves.first().or_else(|| self.retained.first())
    }
}
