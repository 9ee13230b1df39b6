//! What is in the tree and where, kept in step: every page comes and goes through here, so that
//! counts, orders of eviction, windows and events follow.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::host::Host;
use crate::residents::Residents;
use crate::tree::{Descent, Node, NodeIndex};
use crate::types::{PageGroup, PageId, Tier, Token};

impl RadixCache {
    /// Makes room for `pages` more pages and for the nodes that one call can add.
    pub(super) fn reserve(&mut self, pages: usize) -> Result<(), CacheError> {
        self.tree.reserve(pages)?;
        if let Some(group) = &mut self.windowed {
            group.grow(self.tree.store().slots_in_all());
        }
        Ok(())
    }

    /// Adds a pin. A node that had none pins its parent in turn.
    pub(super) fn hold(&mut self, mut node: NodeIndex) {
        while self.tree.pin(node) {
            let pinned = self.tree.node(node);
            self.device.hold(node, pinned);
            if let Some(host) = &mut self.host {
                host.residents_mut().hold(node, pinned);
            }
            let Some(parent) = self.tree.parent(node) else { return };
            node = parent;
        }
    }

    /// Takes a pin away. A node that has none left takes one from its parent in turn.
    pub(super) fn let_go(&mut self, mut node: NodeIndex) {
        while self.tree.unpin(node) {
            let (unpinned, parent) = (self.tree.node(node), self.tree.parent(node));
            self.device.let_go(unpinned);
            if let Some(host) = &mut self.host {
                host.residents_mut().let_go(unpinned);
            }
            self.settle(node);
            let Some(parent) = parent else { return };
            node = parent;
        }
    }

    /// Files a node that may have lost its last pin or its last child: a leaf may be evicted from
    /// here on, a root without children has no purpose.
    pub(super) fn settle(&mut self, index: NodeIndex) {
        let node = self.tree.node(index);
        if self.tree.is_root(index) {
            if node.pins == 0 && node.children == 0 {
                self.tree.remove(index, &mut Vec::new(), &mut Vec::new());
            }
            return;
        }
        self.device.settle(index, node);
        if let Some(host) = &mut self.host {
            host.residents_mut().settle(index, node);
        }
    }

    /// A node that is held is on a tier from here on.
    pub(super) fn put_on(&mut self, node: NodeIndex, tier: Tier, pages: &[PageId]) {
        self.tree.put(node, tier, pages);
        if let Some(residents) = self.residents_mut(tier) {
            residents.add(pages.len(), true);
        }
        if let Some(log) = &mut self.events {
            let all = 0..self.tree.node(node).run.pages;
            log.stored(&self.tree, node, all, (tier, PageGroup::Full));
        }
    }

    /// Hashes pages of a node from `from` on, which are new, and tells of them.
    pub(super) fn note_new(&mut self, node: NodeIndex, from: u32) {
        if let Some(log) = &mut self.events {
            self.tree.hash_pages(node, from);
            let new = from..self.tree.node(node).run.pages;
            log.stored(&self.tree, node, new, (Tier::Device, PageGroup::Full));
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
    pub(super) fn remove_leaf(&mut self, leaf: NodeIndex, freed: &mut Vec<PageId>) {
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
    pub(super) fn trim_leaf(&mut self, leaf: NodeIndex, keep: u32, freed: &mut Vec<PageId>) {
        let pages = (self.tree.node(leaf).run.pages - keep) as usize;
        self.drop_windowed(leaf, keep);
        if let Some(log) = &mut self.events {
            log.removed(&self.tree, leaf, keep, Tier::Device);
        }
        self.tree.trim(leaf, keep, freed);
        self.device.trim(pages);
        self.statistics.pages_removed += pages as u64;
    }

    /// Lets the windowed pages go that belong to an unpinned node's pages from `from` on, which
    /// are about to leave the cache.
    pub(super) fn drop_windowed(&mut self, node: NodeIndex, from: u32) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        if let Some(log) = &mut self.events {
            let leaving = group.pages_in(&self.tree, node).skip_while(|(place, _)| *place < from);
            let slots = leaving.map(|(_, page)| page.slot as usize);
            log.windowed_removed(&self.tree, self.tree.root_of(node), slots);
        }
        self.statistics.windowed_removed += group.drop_from(&self.tree, node, from) as u64;
    }

    /// How many pages behind a descent on the device are on the host and not on their way.
    pub(super) fn loadable(&self, on_device: &Descent, rest: &[Token]) -> usize {
        if self.host.is_none() || on_device.part.is_some() {
            return 0;
        }
        let on_host = |node: &Node| !node.is_on_device() && !node.moving;
        self.tree.descend(on_device.node, rest, on_host, |_, _| {}).pages
    }

    /// The end of what matches `tokens` behind `start` on the host alone, made by a split if need
    /// be; `start` itself without a match.
    pub(super) fn host_part(
        &mut self,
        start: NodeIndex,
        tokens: &[Token],
    ) -> Result<NodeIndex, CacheError> {
        if self.host.is_none() {
            return Ok(start);
        }
        let descent = self.tree.descend(start, tokens, |node| !node.is_on_device(), |_, _| {});
        self.tree.split_at(&descent)
    }

    /// Puts freshly computed pages in the place of those that are on the host alone, from the end
    /// of `above` to the end of `end`, which is held. Returns how many were put.
    pub(super) fn adopt_path(
        &mut self,
        above: NodeIndex,
        end: NodeIndex,
        pages: &[PageId],
    ) -> usize {
        if above == end {
            return 0;
        }
        let mut rest = pages;
        for node in self.tree.range(self.tree.node(above).end, end) {
            let (these, others) = rest.split_at(self.tree.node(node).run.pages as usize);
            self.put_on(node, Tier::Device, these);
            rest = others;
        }
        pages.len() - rest.len()
    }

    /// The pages of a tier, if there is one.
    pub(super) fn residents(&self, tier: Tier) -> Option<&Residents> {
        match tier {
            Tier::Device => Some(&self.device),
            Tier::Host => self.host.as_ref().map(Host::residents),
        }
    }

    /// The pages of a tier, if there is one.
    fn residents_mut(&mut self, tier: Tier) -> Option<&mut Residents> {
        match tier {
            Tier::Device => Some(&mut self.device),
            Tier::Host => self.host.as_mut().map(Host::residents_mut),
        }
    }
}
