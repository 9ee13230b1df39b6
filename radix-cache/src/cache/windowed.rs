//! The windowed group: what a lock has of it, and how its pages come and go by themselves.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::tree::NodeIndex;
use crate::types::{LockId, PageGroup, PageId, Tier};
use crate::windowed::{WindowedGroup, stretches};

impl RadixCache {
    /// Appends the windowed pages in front of a lock's end, in order, and returns the position of
    /// the first one, in tokens; they reach to the [end](Self::locked_tokens) of the lock.
    /// Behind [`acquire`](Self::acquire) they are all that the next token attends to. Behind an
    /// [`insert`](Self::insert) without [`put_windowed`](Self::put_windowed) they may be
    /// fewer, even none.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::NoWindowedGroup`].
    pub fn windowed_pages(
        &self,
        lock: LockId,
        pages: &mut Vec<PageId>,
    ) -> Result<usize, CacheError> {
        let group = self.windowed.as_ref().ok_or(CacheError::NoWindowedGroup)?;
        let (end, _) = self.locks.get(lock)?;
        Ok(group.pages_before(&self.tree, end, pages) as usize * self.page_size())
    }

    /// Offers the windowed pages of the last positions before a lock's end, in order, as many as
    /// the caller has: what follows [`insert`](Self::insert), but they may reach further back. A
    /// page fills its position if that has none, be it new or a hole that eviction left.
    ///
    /// Appends to `canonical` the page that each position has from here on: the caller's own if
    /// the cache took it; otherwise another one, which was there before: then the caller **frees
    /// its own and points its page table at that one**. Returns how many it took. Those behind the
    /// lock's window can be evicted at once.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::NoWindowedGroup`];
    /// [`CacheError::WindowedBeyondStart`] if the lock does not hold so many pages;
    /// [`CacheError::ReservedPage`]; [`CacheError::PageAlreadyCached`] if one of `pages` is the
    /// canonical one itself. Nothing has changed then.
    pub fn put_windowed(
        &mut self,
        lock: LockId,
        pages: &[PageId],
        canonical: &mut Vec<PageId>,
    ) -> Result<usize, CacheError> {
        let group = self.windowed.as_mut().ok_or(CacheError::NoWindowedGroup)?;
        let (end, _) = self.locks.get(lock)?;
        let from = canonical.len();
        let taken = group.put(&self.tree, end, pages, canonical)?;
        self.statistics.windowed_inserted += taken as u64;
        self.statistics.windowed_duplicate += (pages.len() - taken) as u64;
        if self.events.is_some() {
            let first = self.tree.node(end).end - pages.len() as u32;
            self.note_put(end, first, |at| canonical[from + at] == pages[at]);
        }
        Ok(taken)
    }

    /// Frees up to `pages` windowed pages that no lock's window covers, while their full pages
    /// stay. Appends them to `freed` and returns how many they are: fewer than asked for only when
    /// all that are left are held. Without a windowed group, none.
    ///
    /// First go those that windows only passed by, then those in front of a place where a
    /// sequence or a match ended; each in the order of the [policy](crate::Policy).
    pub fn evict_windowed(&mut self, pages: usize, freed: &mut Vec<PageId>) -> usize {
        let Some(group) = &mut self.windowed else {
            return 0;
        };
        let before = freed.len();
        let mut told = Vec::new();
        while freed.len() - before < pages
            && let Some(evicted) = group.evict()
        {
            freed.push(evicted.page);
            if self.events.is_some() {
                told.push((evicted.root, evicted.slot as usize));
            }
        }
        let evicted = freed.len() - before;
        self.statistics.windowed_removed += evicted as u64;
        if let Some(log) = &mut self.events {
            for of_one in told.chunk_by(|(root, _), (next, _)| root == next) {
                let slots = of_one.iter().map(|(_, slot)| *slot);
                log.windowed_removed(&self.tree, of_one[0].0, slots);
            }
        }
        evicted
    }

    /// Takes the windowed pages that left the cache together with their full pages: through
    /// [`evict`](Self::evict), [`clear`](Self::clear), [`reset`](Self::reset) or
    /// [`release_and_drop`](Self::release_and_drop), which list the full ones. Whoever owns the
    /// memory calls it after each of these.
    pub fn take_freed_windowed(&mut self) -> impl Iterator<Item = PageId> + '_ {
        self.windowed.as_mut().map(WindowedGroup::take_left).into_iter().flatten()
    }

    /// Tells of windowed pages that were put behind the position `first`: `is_new` says which.
    fn note_put(&mut self, end: NodeIndex, first: u32, is_new: impl Fn(usize) -> bool) {
        for node in self.tree.range(first, end) {
            let start = self.tree.node(node).start();
            let places = first.saturating_sub(start)..self.tree.node(node).run.pages;
            let new = places.filter(|place| is_new((start + place - first) as usize));
            self.note_windowed(node, new.collect());
        }
    }

    /// Tells of a node's pages, by their places in it, that have windowed pages anew.
    pub(super) fn note_windowed(&mut self, node: NodeIndex, places: Vec<u32>) {
        if let Some(log) = &mut self.events {
            for pages in stretches(places) {
                log.stored(&self.tree, node, pages, (Tier::Device, PageGroup::Windowed));
            }
        }
    }
}
