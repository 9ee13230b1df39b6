//! What is on which tier: look-ups over both, and pages that come to one.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::node::{Node, NodeIndex};
use crate::tree::Descent;
use crate::types::{PageId, Tier, Token};

impl RadixCache {
    /// How many tokens behind a descent on the device are on the host and not on their way.
    pub(crate) fn loadable(&self, on_device: &Descent, rest: &[Token]) -> usize {
        if self.host.is_none() || on_device.part.is_some() {
            return 0;
        }
        let on_host = |node: &Node| !node.device && !node.moving;
        let descent = self.tree.descend(on_device.node, rest, on_host, |_, _| {});
        descent.pages * self.page_size()
    }

    /// The end of what matches `tokens` behind `start` on the host alone, made by a split if need
    /// be; `start` itself without a match.
    pub(crate) fn host_part(
        &mut self,
        start: NodeIndex,
        tokens: &[Token],
    ) -> Result<NodeIndex, CacheError> {
        if self.host.is_none() {
            return Ok(start);
        }
        let descent = self.tree.descend(start, tokens, |node| !node.device, |_, _| {});
        self.split_at(&descent)
    }

    /// Puts freshly computed pages in the place of those that are on the host alone, from the end
    /// of `above` to the end of `end`, which is pinned. Returns how many were put.
    pub(crate) fn adopt_path(
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
            self.put_on_device(node, these);
            rest = others;
        }
        pages.len() - rest.len()
    }

    /// Files an unpinned leaf of the host's part, unless it is filed there.
    pub(crate) fn file_on_host(&mut self, leaf: NodeIndex) {
        let place = self.expected_host_place(leaf);
        if let (Some(host), Some(place)) = (&mut self.host, place)
            && host.order.place_of(leaf).is_none()
        {
            host.order.insert(leaf, place);
        }
    }

    /// Free pages of the host, made by eviction if need be. None if that can't be enough.
    pub(super) fn take_host_pages(&mut self, count: usize) -> Option<Vec<PageId>> {
        let host = self.host.as_ref()?;
        if host.free.len() + host.idle < count {
            return None;
        }
        // Only copies without a page on the device are forgotten here: no page of the device is
        // freed.
        self.evict_host(count.saturating_sub(host.free.len()), &mut Vec::new());
        let host = self.host.as_mut()?;
        let kept = host.free.len().checked_sub(count)?;
        Some(host.free.split_off(kept))
    }

    /// A pinned node has a copy on the host from here on.
    pub(super) fn put_on_host(&mut self, node: NodeIndex, pages: &[PageId]) {
        let there = self.tree.node_mut(node);
        there.host = true;
        let (run, parent) = (there.run, there.parent);
        self.tree.store.put_host_pages(run, pages);
        self.tree.node_mut(parent).host_children += 1;
        self.counts.host += pages.len();
        self.note_stored_on(node, Tier::Host);
    }

    /// A pinned node is on the device from here on.
    pub(super) fn put_on_device(&mut self, node: NodeIndex, pages: &[PageId]) {
        let there = self.tree.node_mut(node);
        there.device = true;
        let (run, parent) = (there.run, there.parent);
        self.tree.store.put_pages(run, pages);
        self.tree.node_mut(parent).device_children += 1;
        self.counts.locked += pages.len();
        self.counts.total += pages.len();
        self.note_stored_on(node, Tier::Device);
    }
}
