//! How pages leave the cache.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::node::NodeIndex;
use crate::types::{LockId, PageId, Tier};

impl RadixCache {
    /// Frees up to `pages` evictable pages of the device, from the tails of unlocked leaves in the
    /// order of the policy. Appends them to `freed` and returns how many they are: fewer than
    /// asked for only when nothing evictable is left.
    ///
    /// Pages that have a copy on the host stay in the tree and can be
    /// [loaded](Self::load) again; the others are forgotten. Nothing waits for a copy here:
    /// [`demote`](Self::demote) does. Windowed pages of the same positions leave with them, and
    /// are [taken](Self::take_freed_windowed) separately.
    pub fn evict(&mut self, pages: usize, freed: &mut Vec<PageId>) -> usize {
        let before = freed.len();
        loop {
            let missing = pages - (freed.len() - before);
            if missing == 0 {
                break;
            }
            let Some(leaf) = self.leaves.first() else {
                break;
            };
            // Only a full arena can refuse to split, and nothing was changed then.
            if self.evict_leaf(leaf, missing, freed).is_err() {
                break;
            }
        }
        freed.len() - before
    }

    /// Drops everything that is not locked, on the device, on the host and in the windowed group.
    /// Appends the device's full pages to `freed`.
    pub fn clear(&mut self, freed: &mut Vec<PageId>) {
        self.evict_host(usize::MAX, freed);
        self.evict(self.counts.evictable, freed);
        self.clear_windowed();
    }

    /// Drops everything, locked or not: the device lost its KV. Every lock and every transfer
    /// is dead from here on, and says so when it is presented. Appends all full pages to `freed`.
    pub fn reset(&mut self, freed: &mut Vec<PageId>) {
        self.tree.remove_all(freed);
        self.roots.clear();
        self.note_cleared();
        self.locks.remove_all();
        self.leaves.clear();
        if let Some(host) = &mut self.host {
            host.reset();
        }
        if let Some(group) = &mut self.windowed {
            self.statistics.windowed_removed += group.counts().total as u64;
            group.reset();
        }
        self.statistics.pages_removed += self.counts.total as u64;
        self.counts = Default::default();
    }

    /// Lets go of a lock and frees what then nobody holds or continues, from its end upwards:
    /// what an engine does at the end of a sequence when caching is switched off. Appends the
    /// freed pages to `freed` and returns how many they are.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn release_and_drop(
        &mut self,
        lock: LockId,
        freed: &mut Vec<PageId>,
    ) -> Result<usize, CacheError> {
        let before = freed.len();
        let mut node = self.locks.remove(lock)?;
        self.close_window(node, None);
        self.unpin(node);
        while let Some(leaf) = self.tree.get(node) {
            if leaf.children > 0 || leaf.pins > 0 || self.tree.is_root(node) {
                break;
            }
            node = self.remove_leaf(node, freed);
        }
        Ok(freed.len() - before)
    }

    /// Frees the last pages of an unpinned leaf of the device's part: all of them, or as many as
    /// are missing.
    pub(crate) fn evict_leaf(
        &mut self,
        leaf: NodeIndex,
        missing: usize,
        freed: &mut Vec<PageId>,
    ) -> Result<(), CacheError> {
        let node = self.tree.node(leaf);
        let (pages, on_host) = (node.run.pages as usize, node.host);
        match (pages.checked_sub(missing).filter(|&keep| keep > 0), on_host) {
            (None, false) => drop(self.remove_leaf(leaf, freed)),
            (None, true) => self.drop_device(leaf, freed),
            (Some(_), false) => self.trim_leaf(leaf, missing, freed),
            (Some(keep), true) => {
                self.tree.split(leaf, keep as u32)?;
                self.drop_device(leaf, freed);
            }
        }
        Ok(())
    }

    /// Frees up to `pages` pages of the host that nobody holds, in the order of its policy.
    pub(crate) fn evict_host(&mut self, pages: usize, freed: &mut Vec<PageId>) {
        let mut missing = pages;
        while missing > 0 {
            let Some(leaf) = self.host.as_ref().and_then(|host| host.order.first()) else {
                return;
            };
            let pages = self.tree.node(leaf).run.pages as usize;
            // As in `evict`, the node is dropped whole if it can't be split.
            let split = pages > missing && self.tree.split(leaf, (pages - missing) as u32).is_ok();
            missing -= if split { missing } else { pages.min(missing) };
            self.drop_host(leaf, freed);
        }
    }

    /// Removes an unpinned leaf from every tier and returns its parent, which may now be a leaf
    /// itself.
    pub(crate) fn remove_leaf(&mut self, leaf: NodeIndex, freed: &mut Vec<PageId>) -> NodeIndex {
        let (device, host) = self.tree.node(leaf).pages_by_tier();
        self.leaves.remove(leaf);
        self.drop_windowed(leaf, 0);
        self.note_removed(leaf);
        let parent = match &mut self.host {
            None => self.tree.remove(leaf, freed, &mut Vec::new()),
            Some(tier) => {
                tier.order.remove(leaf);
                tier.idle -= host;
                self.tree.remove(leaf, freed, &mut tier.free)
            }
        };
        self.counts.evictable -= device;
        self.counts.total -= device;
        self.counts.host -= host;
        self.statistics.pages_removed += device as u64;
        self.settle(parent);
        parent
    }

    /// Takes an unpinned leaf's pages off the device; their copies on the host stay.
    pub(crate) fn drop_device(&mut self, leaf: NodeIndex, freed: &mut Vec<PageId>) {
        self.leaves.remove(leaf);
        self.note_removed_from(leaf, 0, Tier::Device);
        let node = self.tree.node_mut(leaf);
        node.device = false;
        let (run, parent) = (node.run, node.parent);
        self.tree.store.take_pages(run, freed);
        self.tree.node_mut(parent).device_children -= 1;
        let pages = run.pages as usize;
        self.counts.evictable -= pages;
        self.counts.total -= pages;
        self.statistics.pages_removed += pages as u64;
        self.settle(parent);
    }

    /// Takes an unpinned leaf's pages off the host; without a copy on the device it is gone.
    fn drop_host(&mut self, leaf: NodeIndex, freed: &mut Vec<PageId>) {
        if !self.tree.node(leaf).device {
            self.remove_leaf(leaf, freed);
            return;
        }
        self.note_removed_from(leaf, 0, Tier::Host);
        let node = self.tree.node_mut(leaf);
        node.host = false;
        let (run, parent) = (node.run, node.parent);
        if let Some(tier) = &mut self.host {
            tier.order.remove(leaf);
            tier.idle -= run.pages as usize;
            self.tree.store.take_host_pages(run, &mut tier.free);
        }
        self.tree.node_mut(parent).host_children -= 1;
        self.counts.host -= run.pages as usize;
        self.settle(parent);
    }

    /// Frees the last `pages` pages of an unpinned leaf that has more of them, all on the device
    /// alone.
    fn trim_leaf(&mut self, leaf: NodeIndex, pages: usize, freed: &mut Vec<PageId>) {
        let keep = self.tree.node(leaf).run.pages - pages as u32;
        self.drop_windowed(leaf, keep);
        self.note_removed_from(leaf, keep, Tier::Device);
        self.tree.trim(leaf, pages, freed);
        self.counts.evictable -= pages;
        self.counts.total -= pages;
        self.statistics.pages_removed += pages as u64;
    }

    pub(crate) fn drop_root(&mut self, root: NodeIndex) {
        self.roots.remove(&self.tree.namespace_of(root));
        self.tree.remove(root, &mut Vec::new(), &mut Vec::new());
    }
}
