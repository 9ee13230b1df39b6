//! The host tier: copies between the tiers, ordered, then confirmed or failed.

use crate::cache::RadixCache;
use crate::config::WritePolicy;
use crate::error::CacheError;
use crate::host::UnderWay;
use crate::tree::{Node, NodeIndex};
use crate::types::{LockId, Namespace, PageId, Tier, Token, Transfer, TransferId};

impl RadixCache {
    /// Orders a copy to the host of what a lock holds and the host doesn't have yet, as far as the
    /// [`WritePolicy`] asks for it. To be called when a sequence ends, before its release. None if
    /// there is nothing to copy, no room, or a part of it is under way already.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn save(&mut self, lock: LockId) -> Result<Option<Transfer>, CacheError> {
        let (end, _) = self.locks.get(lock)?;
        let Some(host) = &self.host else {
            return Ok(None);
        };
        let hits = match host.write_policy() {
            WritePolicy::Through => 0,
            WritePolicy::ThroughAfterHits(hits) => hits,
            WritePolicy::Back => return Ok(None),
        };
        let often = self.tree.path(end).find(|&node| self.tree.node(node).record.hits >= hits);
        Ok(often.and_then(|end| self.order_copy_to_host(end, None)))
    }

    /// Makes room for `pages` pages on the device without forgetting them: frees what the host has
    /// copies of, and orders copies of the rest, whose pages are freed by
    /// [`confirm`](Self::confirm). In the order in which [`evict`](Self::evict) would take them.
    /// Returns how many pages are free or will be: fewer than asked for when nothing evictable
    /// is left or the host is full of what is held.
    ///
    /// # Errors
    ///
    /// [`CacheError::Full`] when 32 bits can't number another node.
    pub fn demote(
        &mut self,
        pages: usize,
        freed: &mut Vec<PageId>,
        transfers: &mut Vec<Transfer>,
    ) -> Result<usize, CacheError> {
        let mut made = 0;
        while made < pages
            && let Some(leaf) = self.device.first()
        {
            let node = self.tree.node(leaf);
            let length = (node.run.pages as usize).min(pages - made);
            if node.is_on(Tier::Host) {
                self.evict_leaf(leaf, length, freed)?;
            } else {
                let keep = node.run.pages - length as u32;
                let leaves_from = node.start() + keep;
                if keep > 0 {
                    self.tree.reserve(0)?;
                    self.tree.split(leaf, keep)?;
                }
                match self.order_copy_to_host(leaf, Some(leaves_from)) {
                    Some(transfer) => transfers.push(transfer),
                    None => break,
                }
            }
            made += length;
        }
        Ok(made)
    }

    /// Orders a copy back to the device of what follows the [match](Self::probe) of `tokens`
    /// there and is on the host: as many pages as `pages` has, at most
    /// [`host_tokens`](crate::Match::host_tokens). The cache takes the pages that the transfer
    /// names; the others stay the caller's. They can be matched once the transfer is confirmed.
    /// None if there is nothing to load, or it is under way already.
    ///
    /// # Errors
    ///
    /// [`CacheError::ReservedPage`]; [`CacheError::Full`] when 32 bits can't number another node.
    pub fn load(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
        pages: &[PageId],
    ) -> Result<Option<Transfer>, CacheError> {
        if pages.contains(&PageId::NONE) {
            return Err(CacheError::ReservedPage);
        }
        let Some(root) = self.tree.find_root(namespace) else {
            return Ok(None);
        };
        let page_size = self.tree.page_size();
        let on_device = self.tree.descend(root, tokens, Node::is_on_device, |_, _| {});
        let rest = &tokens[on_device.pages * page_size..];
        let count = self.loadable(&on_device, rest).min(pages.len());
        if count == 0 {
            return Ok(None);
        }
        self.tree.reserve(0)?;
        let from = self.tree.node(on_device.node).end;
        let end = self.host_part(on_device.node, &rest[..count * page_size])?;
        self.hold(end);
        let host = self.set_moving(from, end, Tier::Host);
        let device = pages[..count].to_vec();
        let (to, pages) = (Tier::Device, device.clone());
        let under_way = UnderWay { end, from, to, pages, leaves_from: None };
        let id = self.host.as_mut().map(|host| host.set_out(under_way));
        Ok(id.map(|id| Transfer { id, to, device, host }))
    }

    /// A transfer has been executed: its copies count from here on. Appends pages of the device
    /// to `freed` that are free now: those that were demoted, and those that nobody needs since
    /// the same prefix was [inserted](Self::insert) while they were loaded.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownTransfer`], also when it is confirmed a second time.
    pub fn confirm(
        &mut self,
        transfer: TransferId,
        freed: &mut Vec<PageId>,
    ) -> Result<(), CacheError> {
        let done = self.finish(transfer)?;
        for node in self.tree.range(done.from, done.end) {
            let there = self.tree.node(node);
            let first = (there.start() - done.from) as usize;
            let pages = &done.pages[first..first + there.run.pages as usize];
            match done.to {
                Tier::Host => self.put_on(node, Tier::Host, pages),
                Tier::Device if there.is_on_device() => freed.extend_from_slice(pages),
                Tier::Device => self.put_on(node, Tier::Device, pages),
            }
        }
        self.let_go(done.end);
        if let Some(from) = done.leaves_from {
            for node in self.tree.range(from, done.end).into_iter().rev() {
                if !self.tree.node(node).is_idle_leaf(Tier::Device) {
                    break;
                }
                self.drop_from(node, Tier::Device, freed);
            }
        }
        Ok(())
    }

    /// A transfer was cancelled or went wrong: the tree goes on as if it had never been ordered.
    /// Appends the pages to `freed` that were to be loaded into.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownTransfer`], also when it was confirmed before.
    pub fn fail(
        &mut self,
        transfer: TransferId,
        freed: &mut Vec<PageId>,
    ) -> Result<(), CacheError> {
        let failed = self.finish(transfer)?;
        match (&mut self.host, failed.to) {
            (Some(host), Tier::Host) => host.free_mut().extend(failed.pages),
            _ => freed.extend(failed.pages),
        }
        self.let_go(failed.end);
        Ok(())
    }

    fn order_copy_to_host(&mut self, end: NodeIndex, leaves_from: Option<u32>) -> Option<Transfer> {
        let tree = &self.tree;
        let missing = tree.path(end).take_while(|&node| !tree.node(node).is_on(Tier::Host));
        let from = tree.node(missing.last()?).start();
        if tree.range(from, end).iter().any(|&node| tree.node(node).moving) {
            return None;
        }
        // Held first, so that making room can't take what is to be copied, or its ancestors.
        self.hold(end);
        let Some(host) = self.take_host_pages((self.tree.node(end).end - from) as usize) else {
            self.let_go(end);
            return None;
        };
        let device = self.set_moving(from, end, Tier::Device);
        let (to, pages) = (Tier::Host, host.clone());
        let under_way = UnderWay { end, from, to, pages, leaves_from };
        let id = self.host.as_mut()?.set_out(under_way);
        Some(Transfer { id, to, device, host })
    }

    /// Free pages of the host, made by eviction if need be. None if that can't be enough.
    fn take_host_pages(&mut self, count: usize) -> Option<Vec<PageId>> {
        let missing = self.host.as_ref()?.missing(count)?;
        // Only copies without a page on the device are forgotten here: no page of the device is
        // freed.
        self.evict_host(missing, &mut Vec::new());
        self.host.as_mut()?.take(count)
    }

    /// Nodes are copied from here on. Returns the pages on the tier that they are read from.
    fn set_moving(&mut self, from: u32, end: NodeIndex, tier: Tier) -> Vec<PageId> {
        let mut pages = Vec::new();
        for node in self.tree.range(from, end) {
            self.tree.set_moving(node, true);
            let run = self.tree.node(node).run;
            self.tree.store().copy_pages(run, tier, run.pages, &mut pages);
        }
        pages
    }

    /// Ends a transfer; what it held stays pinned once, for the caller to let go.
    fn finish(&mut self, transfer: TransferId) -> Result<UnderWay, CacheError> {
        let unknown = CacheError::UnknownTransfer { transfer };
        let ended = self.host.as_mut().ok_or(unknown)?.finish(transfer)?;
        for node in self.tree.range(ended.from, ended.end) {
            self.tree.set_moving(node, false);
        }
        Ok(ended)
    }
}
