//! Copies between the tiers: ordered, then confirmed or failed.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::node::{Node, NodeIndex};
use crate::retention::Retention;
use crate::store::NO_PAGE;
use crate::tiers::{Direction, Transfer, TransferId, UnderWay, WritePolicy};
use crate::types::{LockId, Namespace, PageId, Token};

impl RadixCache {
    /// Orders a copy to the host of what a lock holds and the host doesn't have yet, as far as the
    /// [`WritePolicy`] asks for it. To be called when a sequence ends, before its release. None if
    /// there is nothing to copy, no room, or a part of it is under way already.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::Full`] when 32 bits can't number another lock.
    pub fn save(&mut self, lock: LockId) -> Result<Option<Transfer>, CacheError> {
        let end = self.locks.end(lock)?;
        let Some(host) = &self.host else {
            return Ok(None);
        };
        let hits = match host.tier.write {
            WritePolicy::Through => 0,
            WritePolicy::ThroughAfterHits(hits) => hits,
            WritePolicy::Back => return Ok(None),
        };
        let often = self.tree.path(end).find(|&node| self.tree.node(node).hits >= hits);
        match often {
            Some(end) => self.order_copy_to_host(end, None),
            None => Ok(None),
        }
    }

    /// Makes room for `pages` pages on the device without forgetting them: frees what the host has
    /// copies of, and orders copies of the rest, whose pages are freed by
    /// [`confirm`](Self::confirm). In the order in which [`evict`](Self::evict) would take them.
    /// Returns how many pages are free or will be: fewer than asked for when nothing evictable
    /// is left or the host is full of what is held.
    ///
    /// # Errors
    ///
    /// [`CacheError::Full`] when 32 bits can't number another node or lock.
    pub fn demote(
        &mut self,
        pages: usize,
        freed: &mut Vec<PageId>,
        transfers: &mut Vec<Transfer>,
    ) -> Result<usize, CacheError> {
        let mut made = 0;
        while made < pages {
            let Some(leaf) = self.leaves.first() else {
                break;
            };
            let node = self.tree.node(leaf);
            let length = (node.run.pages as usize).min(pages - made);
            if node.host {
                self.evict_leaf(leaf, length, freed)?;
            } else {
                let keep = node.run.pages - length as u32;
                let leaves_from = node.start() + keep;
                if keep > 0 {
                    self.tree.reserve(0)?;
                    self.tree.split(leaf, keep)?;
                }
                match self.order_copy_to_host(leaf, Some(leaves_from))? {
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
    /// [`CacheError::ReservedPage`]; [`CacheError::Full`] when 32 bits can't number another node or
    /// lock.
    pub fn load(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
        pages: &[PageId],
    ) -> Result<Option<Transfer>, CacheError> {
        if pages.contains(&NO_PAGE) {
            return Err(CacheError::ReservedPage);
        }
        let Some(&root) = self.roots.get(&namespace) else {
            return Ok(None);
        };
        let page_size = self.page_size();
        let on_device = self.tree.descend(root, tokens, Node::is_on_device, |_, _| {});
        let rest = &tokens[on_device.pages * page_size..];
        let count = (self.loadable(&on_device, rest) / page_size).min(pages.len());
        if count == 0 {
            return Ok(None);
        }
        self.tree.reserve(0)?;
        self.locks.check_room()?;
        let from = self.tree.node(on_device.node).end;
        let end = self.host_part(on_device.node, &rest[..count * page_size])?;
        let lock = self.locks.create(end, Retention::default())?;
        self.pin(end);
        let mut host = Vec::with_capacity(count);
        for node in self.tree.range(from, end) {
            self.tree.node_mut(node).moving = true;
            self.tree.store.copy_host_pages(self.tree.node(node).run, &mut host);
        }
        let device = pages[..count].to_vec();
        let under_way = UnderWay {
            lock,
            from,
            direction: Direction::ToDevice,
            pages: device.clone(),
            leaves_from: None,
        };
        let id = self.set_out(under_way);
        Ok(id.map(|id| Transfer { id, direction: Direction::ToDevice, device, host }))
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
        let (done, end) = self.finish(transfer)?;
        for node in self.tree.range(done.from, end) {
            let there = self.tree.node(node);
            let first = (there.start() - done.from) as usize;
            let pages = &done.pages[first..first + there.run.pages as usize];
            match done.direction {
                Direction::ToHost => self.put_on_host(node, pages),
                Direction::ToDevice if there.device => freed.extend_from_slice(pages),
                Direction::ToDevice => self.put_on_device(node, pages),
            }
        }
        self.unpin(end);
        if let Some(from) = done.leaves_from {
            let leaving = self.tree.range(from, end);
            for node in leaving.into_iter().rev() {
                let leaf = self.tree.node(node);
                if leaf.pins > 0 || leaf.device_children > 0 {
                    break;
                }
                self.drop_device(node, freed);
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
        let (failed, end) = self.finish(transfer)?;
        match (&mut self.host, failed.direction) {
            (Some(host), Direction::ToHost) => host.free.extend(failed.pages),
            _ => freed.extend(failed.pages),
        }
        self.unpin(end);
        Ok(())
    }
}

impl RadixCache {
    fn order_copy_to_host(
        &mut self,
        end: NodeIndex,
        leaves_from: Option<u32>,
    ) -> Result<Option<Transfer>, CacheError> {
        self.locks.check_room()?;
        let missing = self.tree.path(end).take_while(|&node| !self.tree.node(node).host);
        let Some(first) = missing.last() else {
            return Ok(None);
        };
        let from = self.tree.node(first).start();
        let range = self.tree.range(from, end);
        if range.iter().any(|&node| self.tree.node(node).moving) {
            return Ok(None);
        }
        // Held first, so that making room can't take what is to be copied, or its ancestors.
        self.pin(end);
        let count = (self.tree.node(end).end - from) as usize;
        let Some(host) = self.take_host_pages(count) else {
            self.unpin(end);
            return Ok(None);
        };
        let lock = self.locks.create(end, Retention::default())?;
        let mut device = Vec::with_capacity(count);
        for node in range {
            let moving = self.tree.node_mut(node);
            moving.moving = true;
            let run = moving.run;
            self.tree.store.copy_pages(run, run.pages, &mut device);
        }
        let direction = Direction::ToHost;
        let under_way = UnderWay { lock, from, direction, pages: host.clone(), leaves_from };
        let id = self.set_out(under_way);
        Ok(id.map(|id| Transfer { id, direction, device, host }))
    }

    fn set_out(&mut self, under_way: UnderWay) -> Option<TransferId> {
        let host = self.host.as_mut()?;
        let id = TransferId(host.next);
        host.next += 1;
        host.under_way.insert(id, under_way);
        Some(id)
    }

    /// Ends a transfer; what it held stays pinned once, for the caller to let go.
    fn finish(&mut self, transfer: TransferId) -> Result<(UnderWay, NodeIndex), CacheError> {
        let under_way = self.host.as_mut().and_then(|host| host.under_way.remove(&transfer));
        let under_way = under_way.ok_or(CacheError::UnknownTransfer { transfer })?;
        let end = self.locks.remove(under_way.lock)?;
        for node in self.tree.range(under_way.from, end) {
            self.tree.node_mut(node).moving = false;
        }
        Ok((under_way, end))
    }
}
