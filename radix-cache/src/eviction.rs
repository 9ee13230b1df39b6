//! Pins, and the order in which unpinned leaves are evicted.

use crate::bugs::SeededBug;
use crate::cache::RadixCache;
use crate::config::Policy;
use crate::leaf_heap::Rank;
use crate::tree::{Node, NodeIndex};
use crate::types::{PageId, Tier};

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

    pub(crate) fn file(&mut self, leaf: NodeIndex) {
        match self.expected_place(leaf) {
            (false, rank) => self.leaves.insert(leaf, rank),
            (true, rank) => self.retained.insert(leaf, rank),
        }
    }

    /// Takes a node out of the order, if it is in it.
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

    /// Notes a use. Ancestors count as used too; they learn of it when they become leaves,
    /// which is the first time that it matters.
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
            let pages = pinned.run.pages as usize;
            let parent = pinned.parent;
            self.counts.evictable -= pages;
            self.counts.locked += pages;
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
            let pages = unpinned.run.pages as usize;
            let parent = unpinned.parent;
            self.counts.locked -= pages;
            self.counts.evictable += pages;
            self.became_idle(node);
            node = parent;
        }
    }

    /// Files a node that lost its last pin or its last child: a leaf may be evicted from here on,
    /// a root without children has no purpose.
    fn became_idle(&mut self, node: NodeIndex) {
        let idle = self.tree.node(node);
        if idle.pins > 0 || idle.children > 0 {
            return;
        }
        if self.tree.is_root(node) {
            self.drop_root(node);
        } else if self.place_of(node).is_none() {
            self.file(node);
        }
    }

    /// The leaf to evict next: what is retained goes only when nothing else is left.
    pub(crate) fn first_to_go(&self) -> Option<NodeIndex> {
        self.leaves.first().or_else(|| self.retained.first())
    }

    /// Removes an unpinned leaf and returns its parent, which may now be a leaf itself.
    pub(crate) fn remove_leaf(&mut self, leaf: NodeIndex, freed: &mut Vec<PageId>) -> NodeIndex {
        let gone = self.tree.node(leaf);
        let (pages, used) = (gone.run.pages as usize, gone.used);
        self.unfile(leaf);
        self.note_removed(leaf, 0, Tier::Device);
        let parent = self.tree.remove(leaf, freed);
        self.counts.evictable -= pages;
        self.counts.total -= pages;
        self.statistics.pages_removed += pages as u64;
        let heir = self.tree.node_mut(parent);
        heir.used = heir.used.max(used);
        self.became_idle(parent);
        parent
    }

    /// Frees the last `pages` pages of an unpinned leaf that has more of them.
    pub(crate) fn trim_leaf(&mut self, leaf: NodeIndex, pages: usize, freed: &mut Vec<PageId>) {
        let keep = self.tree.node(leaf).run.pages - pages as u32;
        self.note_removed(leaf, keep, Tier::Device);
        self.tree.trim(leaf, pages, freed);
        self.counts.evictable -= pages;
        self.counts.total -= pages;
        self.statistics.pages_removed += pages as u64;
    }

    fn drop_root(&mut self, root: NodeIndex) {
        self.roots.remove(&self.tree.namespace_of(root));
        self.tree.remove(root, &mut Vec::new());
    }
}
