//! How pages leave.

use crate::error::CacheError;
use crate::host::Host;
use crate::residency::Residency;
use crate::tree::NodeIndex;
use crate::types::{PageId, Tier};

impl Residency {
    /// Frees up to `pages` pages of the device that nothing holds.
    pub(crate) fn evict(&mut self, pages: usize, freed: &mut Vec<PageId>) -> usize {
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

    /// Drops everything that nothing holds.
    pub(crate) fn clear(&mut self, freed: &mut Vec<PageId>) {
        self.evict_host(usize::MAX, freed);
        self.evict(self.device.idle(), freed);
        let mut left = Vec::new();
        self.evict_windowed(usize::MAX, &mut left);
        if let Some(group) = &mut self.windowed {
            group.leave(left);
        }
    }

    /// Drops everything, held or not.
    pub(crate) fn reset(&mut self, freed: &mut Vec<PageId>) {
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

    /// A lock that ended at `end` is gone, and what nothing else holds or continues goes with it,
    /// from the end upwards. Returns how many pages were freed.
    pub(crate) fn drop_branch(&mut self, end: NodeIndex, freed: &mut Vec<PageId>) -> usize {
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
        freed.len() - before
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

    /// Takes an unpinned leaf's pages off a tier. Where the other tier has no copy, the leaf is
    /// gone.
    pub(super) fn drop_from(&mut self, leaf: NodeIndex, tier: Tier, freed: &mut Vec<PageId>) {
        let node = *self.tree.node(leaf);
        let (Some(host), true) = (&mut self.host, node.is_on_device() && node.is_on(Tier::Host))
        else {
            return self.remove_leaf(leaf, freed);
        };
        if let Some(log) = &mut self.events {
            log.removed(&self.tree, leaf, 0, tier);
        }
        let parent = match tier {
            Tier::Device => {
                self.device.remove(leaf, &node);
                self.statistics.pages_removed += node.run.pages as u64;
                self.tree.take(leaf, tier, freed)
            }
            Tier::Host => {
                host.residents_mut().remove(leaf, &node);
                self.tree.take(leaf, tier, host.free_mut())
            }
        };
        self.settle(parent);
    }

    /// Removes an unpinned leaf from every tier; its parent may then be a leaf itself.
    fn remove_leaf(&mut self, leaf: NodeIndex, freed: &mut Vec<PageId>) {
        let node = *self.tree.node(leaf);
        self.drop_windowed(leaf, 0);
        for tier in [Tier::Device, Tier::Host].into_iter().filter(|&tier| node.is_on(tier)) {
            if let Some(log) = &mut self.events {
                log.removed(&self.tree, leaf, 0, tier);
            }
        }
        self.device.remove(leaf, &node);
        self.statistics.pages_removed += node.pages_on(Tier::Device) as u64;
        let mut none = Vec::new();
        let host = self.host.as_mut();
        let freed_on_host = host.map_or(&mut none, |host: &mut Host| {
            host.residents_mut().remove(leaf, &node);
            host.free_mut()
        });
        if let Some(parent) = self.tree.remove(leaf, freed, freed_on_host) {
            self.settle(parent);
        }
    }

    /// Frees what follows the first `keep` pages of an unpinned leaf that is on the device alone.
    fn trim_leaf(&mut self, leaf: NodeIndex, keep: u32, freed: &mut Vec<PageId>) {
        let pages = (self.tree.node(leaf).run.pages - keep) as usize;
        self.drop_windowed(leaf, keep);
        if let Some(log) = &mut self.events {
            log.removed(&self.tree, leaf, keep, Tier::Device);
        }
        self.tree.trim(leaf, keep, freed);
        self.device.trim(pages);
        self.statistics.pages_removed += pages as u64;
    }
}
