//! The second tier: copies of pages in the memory of the host.
//!
//! The cache only decides. It returns [`Transfer`]s, copies between numbered pages, which the
//! engine executes and then [confirms](RadixCache::confirm) or [fails](RadixCache::fail). What a
//! transfer reads and writes is locked until then, so neither end of it can be evicted under way.
//! The pages of the host are numbered by the cache itself.
//!
//! Two rules keep every node reachable: a node on the device has its parent on the device, and a
//! node on the host has its parent on the host. Copies to the host therefore start at the first
//! ancestor that is not there yet.

use core::fmt;

use hashbrown::HashMap;

use crate::bugs::SeededBug;
use crate::cache::RadixCache;
use crate::config::Policy;
use crate::error::CacheError;
use crate::order::LeafOrder;
use crate::retention::Retention;
use crate::store::NO_PAGE;
use crate::tree::{Descent, Node, NodeIndex};
use crate::types::{LockId, Namespace, PageId, Tier, Token};

/// The host's part of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct HostTier {
    pub(crate) pages: u32,
    pub(crate) policy: Policy,
    pub(crate) write: WritePolicy,
}

impl HostTier {
    /// Room for so many pages, least recently used first, written through.
    pub fn new(pages: u32) -> Self {
        Self { pages, policy: Policy::default(), write: WritePolicy::default() }
    }

    /// Which pages the host loses first. [Retained](Retention::until) ones go last there too.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Which pages are copied to it, and when.
    pub fn write(mut self, write: WritePolicy) -> Self {
        self.write = write;
        self
    }
}

/// When pages are copied to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WritePolicy {
    /// As soon as they are [saved](RadixCache::save). Evicting them then costs nothing.
    #[default]
    Through,
    /// When they are [saved](RadixCache::save) after so many hits, which spares the copies of
    /// prompts that never come back.
    ThroughAfterHits(u32),
    /// When they are [demoted](RadixCache::demote), which spares all copies but those of pages
    /// that have to go.
    Back,
}

/// A transfer that was ordered. Ids are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(u64);

impl fmt::Display for TransferId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "transfer {}", self.0)
    }
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Direction {
    /// From the device to the host.
    ToHost,
    /// From the host to the device.
    ToDevice,
}

/// Pages to be copied: each of `device` to or from the one at the same place in `host`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "its pages stay locked until it is confirmed or failed"]
#[non_exhaustive]
pub struct Transfer {
    /// To be confirmed or failed.
    pub id: TransferId,
    /// Which way.
    pub direction: Direction,
    /// Pages on the device.
    pub device: Vec<PageId>,
    /// Pages on the host, as many.
    pub host: Vec<PageId>,
}

/// What the cache remembers of the host.
#[derive(Debug)]
pub(crate) struct HostState {
    pub(crate) tier: HostTier,
    pub(crate) free: Vec<PageId>,
    /// Every unpinned leaf of the host's part, first to go first.
    pub(crate) order: LeafOrder,
    /// Pages on the host in nodes that are not pinned.
    pub(crate) idle: usize,
    under_way: HashMap<TransferId, UnderWay>,
    next: u64,
}

/// What ends with a transfer.
#[derive(Debug)]
pub(crate) struct UnderWay {
    /// Holds the last node of the range.
    lock: LockId,
    /// Where the range starts: pages from the root.
    from: u32,
    direction: Direction,
    /// The pages that change hands: the host's on the way there, the device's on the way back.
    pages: Vec<PageId>,
    /// Where the part starts that is to leave the device: pages from the root.
    leaves_from: Option<u32>,
}

impl HostState {
    pub(crate) fn new(tier: HostTier) -> Self {
        Self {
            tier,
            free: (0..tier.pages).rev().map(PageId).collect(),
            order: LeafOrder::default(),
            idle: 0,
            under_way: HashMap::new(),
            next: 0,
        }
    }

    /// Pages of the host that transfers to it will fill.
    pub(crate) fn on_their_way(&self) -> usize {
        let to_host = self.under_way.values().filter(|it| it.direction == Direction::ToHost);
        to_host.map(|it| it.pages.len()).sum()
    }

    /// Empties the host. Ids of transfers go on.
    pub(crate) fn reset(&mut self) {
        *self = Self { next: self.next, ..Self::new(self.tier) };
    }
}

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
        if self.tree.planted.is(SeededBug::TrustFailedTransfer) {
            return self.confirm(transfer, freed);
        }
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

    /// Free pages of the host, made by eviction if need be. None if that can't be enough.
    fn take_host_pages(&mut self, count: usize) -> Option<Vec<PageId>> {
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

    /// A pinned node has a copy on the host from here on.
    fn put_on_host(&mut self, node: NodeIndex, pages: &[PageId]) {
        let there = self.tree.node_mut(node);
        there.host = true;
        let (run, parent) = (there.run, there.parent);
        self.tree.store.put_host_pages(run, pages);
        self.tree.node_mut(parent).host_children += 1;
        self.counts.host += pages.len();
        self.note_stored_on(node, Tier::Host);
    }

    /// A pinned node is on the device from here on.
    fn put_on_device(&mut self, node: NodeIndex, pages: &[PageId]) {
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
