//! Uses and pins, and how they move leaves into and out of the orders of eviction.

use crate::cache::RadixCache;
use crate::node::NodeIndex;
use crate::order::{Place, Record};

impl RadixCache {
    /// Where an unpinned leaf of the device's part belongs.
    pub(crate) fn expected_place(&self, leaf: NodeIndex) -> Place {
        Record::of(self.tree.node(leaf)).place(self.policy, self.now)
    }

    /// Where an unpinned leaf of the host's part belongs.
    pub(crate) fn expected_host_place(&self, leaf: NodeIndex) -> Option<Place> {
        let policy = self.host.as_ref()?.tier.policy;
        Some(Record::of(self.tree.node(leaf)).place(policy, self.now))
    }

    /// Files an unpinned leaf of the device's part.
    pub(crate) fn file(&mut self, leaf: NodeIndex) {
        self.leaves.insert(leaf, self.expected_place(leaf));
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
            self.leaves.remove(node);
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
        if idle.device && idle.device_children == 0 && self.leaves.place_of(node).is_none() {
            self.file(node);
        }
        if on_host {
            self.file_on_host(node);
        }
    }
}
