//! The windowed page group: KV of layers that attend to a sliding window.
//!
//! A model with sliding-window layers keeps their KV in pages of their own, and needs only the last
//! ones of them. Each position of the tree (one page of tokens) always has a page of the full
//! group, and may have one of the windowed group. Everything is defined position by position:
//!
//! ```text
//! full        [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ][ 6 ]    all of them, as without a second group
//! windowed                   [ 3 ][ 4 ]     [ 6 ]    a window of 2 pages: a match can end
//!                                     ^              behind 4, but not behind 5 or 6
//! ```
//!
//! - **A match** of `L` tokens is valid if every page that overlaps the positions from
//!   `L - (window - 1)` up to `L` is there (from 0 if that is earlier): what the next token
//!   attends to. [`probe`](RadixCache::probe) and [`acquire`](RadixCache::acquire) find the
//!   longest valid one.
//! - **A lock** holds every full page of its prefix, and of the windowed pages those of the window
//!   in front of its end. When [`insert`](RadixCache::insert) moves the end, pages that fall out
//!   of the window can be evicted, but stay for now: the prefix they end may be somebody's.
//! - **What goes first** is what windows only passed by; after it pages in front of a place where
//!   a sequence or a match ended, for the loss of one of them makes the whole prefix
//!   useless. Within each, in the order of the policy, from this group's point of view: a page
//!   is used last when a window leaves it, hit when a match ends with it in its
//!   window, created when it is [put](RadixCache::put_windowed), retained when it is in the
//!   window of a lock that is [retained](RadixCache::retain) or released.
//! - **Eviction** of a full page takes the windowed page of its position along;
//!   [`evict_windowed`](RadixCache::evict_windowed) takes windowed pages alone.
//!
//! SGLang's tree for such models marks nodes whose windowed part is gone ("tombstones") and locks
//! whole nodes; vLLM's looks for the last run of blocks that is long enough. Here nodes know nothing
//! of windows, so neither windows nor holes ever split one.

mod group;
mod invariants;
mod snapshot;
mod window;

pub(crate) use group::{WindowedGroup, WindowedPage};
pub(crate) use window::Found;

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::node::NodeIndex;
use crate::store::NO_PAGE;
use crate::types::{LockId, PageId};

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
        let end = self.locks.end(lock)?;
        let window = group.window(self.tree.node(end).end);
        let (first, from) = (window.start, pages.len());
        pages.resize(from + window.len(), NO_PAGE);
        for (position, slot) in self.tree.slots_on_path(end, window.clone()) {
            if let Some(there) = group.at(slot) {
                pages[from + (position - first) as usize] = there.page;
            }
        }
        let holes = pages[from..].iter().rposition(|&page| page == NO_PAGE).map_or(0, |at| at + 1);
        pages.drain(from..from + holes);
        Ok((first as usize + holes) * self.page_size())
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
        let end = self.locks.end(lock)?;
        let last = self.tree.node(end).end;
        let beyond = CacheError::WindowedBeyondStart { pages: pages.len(), held: last as usize };
        let first = (last as usize).checked_sub(pages.len()).ok_or(beyond)?;
        let positions = first as u32..last;
        if pages.contains(&NO_PAGE) {
            return Err(CacheError::ReservedPage);
        }
        let of = |position: u32| pages[position as usize - first];
        for (position, slot) in self.tree.slots_on_path(end, positions.clone()) {
            if group.at(slot).is_some_and(|there| there.page == of(position)) {
                return Err(CacheError::PageAlreadyCached { page: of(position) });
            }
        }
        group.clock += 1;
        let root = self.tree.root_of(end);
        let from = canonical.len();
        canonical.extend_from_slice(pages);
        let mut taken = 0;
        for (position, slot) in self.tree.slots_on_path(end, positions) {
            match group.at(slot) {
                Some(there) => canonical[from + position as usize - first] = there.page,
                None => {
                    group.add(WindowedPage::new(of(position), slot, root, position, group.clock));
                    taken += 1;
                }
            }
        }
        self.statistics.windowed_inserted += taken as u64;
        self.statistics.windowed_duplicate += (pages.len() - taken) as u64;
        if self.events.is_on() {
            self.note_put(end, first as u32, |at| canonical[from + at] == pages[at]);
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
        while freed.len() - before < pages {
            let first = group.first_to_go();
            let Some(removed) = first.and_then(|slot| group.remove(slot)) else {
                break;
            };
            freed.push(removed.page);
            if self.events.is_on() {
                told.push((removed.root, removed.slot as usize));
            }
        }
        let evicted = freed.len() - before;
        self.statistics.windowed_removed += evicted as u64;
        for of_one in told.chunk_by(|(root, _), (next, _)| root == next) {
            self.note_windowed_removed(of_one[0].0, of_one.iter().map(|(_, slot)| *slot));
        }
        evicted
    }

    /// Takes the windowed pages that left the cache together with their full pages: through
    /// [`evict`](Self::evict), [`clear`](Self::clear), [`reset`](Self::reset) or
    /// [`release_and_drop`](Self::release_and_drop), which list the full ones. Whoever owns the
    /// memory calls it after each of these.
    pub fn take_freed_windowed(&mut self) -> impl Iterator<Item = PageId> + '_ {
        let left = self.windowed.as_mut().map(|group| group.left.drain(..));
        left.into_iter().flatten()
    }
}

impl RadixCache {
    /// Makes room for `pages` more pages and for the nodes that one call can add.
    pub(crate) fn reserve(&mut self, pages: usize) -> Result<(), CacheError> {
        self.tree.reserve(pages)?;
        if let Some(group) = &mut self.windowed {
            group.grow(self.tree.store.slots_in_all());
        }
        Ok(())
    }

    /// Drops all windowed pages that no window covers, of prefixes that stay.
    pub(crate) fn clear_windowed(&mut self) {
        let mut left = Vec::new();
        self.evict_windowed(usize::MAX, &mut left);
        if let Some(group) = &mut self.windowed {
            group.left.append(&mut left);
        }
    }

    /// Lets the windowed pages go that belong to an unpinned node's pages from `from` on, which
    /// are about to leave the cache.
    pub(crate) fn drop_windowed(&mut self, node: NodeIndex, from: u32) {
        if self.windowed.is_some() && self.events.is_on() {
            let leaving = self.windowed_in(node).skip_while(|(place, _)| *place < from);
            let slots: Vec<usize> = leaving.map(|(_, page)| page.slot as usize).collect();
            self.note_windowed_removed(self.tree.root_of(node), slots.into_iter());
        }
        let Some(group) = &mut self.windowed else {
            return;
        };
        let before = group.left.len();
        for slot in self.tree.store.slots(self.tree.node(node).run).skip(from as usize) {
            if let Some(removed) = group.remove(slot) {
                group.left.push(removed.page);
            }
        }
        self.statistics.windowed_removed += (group.left.len() - before) as u64;
    }

    /// A node's pages that have windowed pages: their places in it.
    pub(crate) fn windowed_in(
        &self,
        node: NodeIndex,
    ) -> impl Iterator<Item = (u32, &WindowedPage)> {
        let run = self.tree.node(node).run;
        let slots =
            move |group| self.tree.store.slots(run).map(move |slot| WindowedGroup::at(group, slot));
        let pages = self.windowed.iter().flat_map(slots);
        (0..).zip(pages).filter_map(|(place, page)| Some((place, page?)))
    }

    /// Tells of windowed pages that were put behind the position `first`: `is_new` says which.
    fn note_put(&mut self, end: NodeIndex, first: u32, is_new: impl Fn(usize) -> bool) {
        for node in self.tree.range(first, end) {
            let start = self.tree.node(node).start();
            let places = first.saturating_sub(start)..self.tree.node(node).run.pages;
            let new = places.filter(|place| is_new((start + place - first) as usize));
            for stretch in stretches(new.collect()) {
                self.note_windowed_stored(node, stretch);
            }
        }
    }
}

/// Ascending places, gathered into stretches without gaps.
pub(crate) fn stretches(places: Vec<u32>) -> Vec<core::ops::Range<u32>> {
    let ranges = places.chunk_by(|place, next| place + 1 == *next);
    ranges.filter_map(|range| Some(*range.first()?..range.last()? + 1)).collect()
}
