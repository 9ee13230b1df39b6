//! How pages leave.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::tree::NodeIndex;
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
        while let Some(missing) = pages.checked_sub(freed.len() - before).filter(|&it| it > 0)
            && let Some(leaf) = self.device.first()
        {
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
        self.evict(self.device.idle(), freed);
        let mut left = Vec::new();
        self.evict_windowed(usize::MAX, &mut left);
        if let Some(group) = &mut self.windowed {
            group.leave(left);
        }
    }

    /// Drops everything, locked or not: the device lost its KV. Every lock and every transfer
    /// is dead from here on, and says so when it is presented. Appends all full pages to `freed`.
    pub fn reset(&mut self, freed: &mut Vec<PageId>) {
        self.locks.remove_all();
        self.tree.remove_all(freed);
        self.statistics.pages_removed += self.device.total() as u64;
        self.device.reset();
        if let Some(host) = &mut self.host {
            host.reset();
        }
        if let Some(group) = &mut self.windowed {
            self.statistics.windowed_removed += group.counts().total as u64;
            group.reset();
        }
        if let Some(log) = &mut self.events {
            log.cleared();
        }
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
        let (end, _) = self.locks.remove(lock)?;
        let before = freed.len();
        if let Some(group) = &mut self.windowed {
            group.close(&self.tree, end, None);
        }
        self.let_go(end);
        let mut node = end;
        while let Some(parent) = self.tree.parent(node) {
            let leaf = self.tree.node(node);
            if leaf.children > 0 || leaf.pins > 0 {
                break;
            }
            self.remove_leaf(node, freed);
            node = parent;
        }
        Ok(freed.len() - before)
    }

    /// Frees the last pages of an unpinned leaf of the device's part: all of them, or as many as
    /// are missing.
    pub(super) fn evict_leaf(
        &mut self,
        leaf: NodeIndex,
        missing: usize,
        freed: &mut Vec<PageId>,
    ) -> Result<(), CacheError> {
        let node = self.tree.node(leaf);
        let keep = node.run.pages.saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX));
        match (keep, node.is_on(Tier::Host)) {
            (0, _) => self.drop_from(leaf, Tier::Device, freed),
            (_, false) => self.trim_leaf(leaf, keep, freed),
            (_, true) => {
                self.tree.split(leaf, keep)?;
                self.drop_from(leaf, Tier::Device, freed);
            }
        }
        Ok(())
    }

    /// Frees up to `pages` pages of the host that nothing holds, in the order of its policy.
    pub(super) fn evict_host(&mut self, pages: usize, freed: &mut Vec<PageId>) {
        let mut missing = pages;
        while missing > 0
            && let Some(leaf) = self.host.as_ref().and_then(|host| host.residents().first())
        {
            let pages = self.tree.node(leaf).run.pages as usize;
            // As in `evict`, the node is dropped whole if it can't be split.
            let split = pages > missing && self.tree.split(leaf, (pages - missing) as u32).is_ok();
            missing -= if split { missing } else { pages.min(missing) };
            self.drop_from(leaf, Tier::Host, freed);
        }
    }
}
