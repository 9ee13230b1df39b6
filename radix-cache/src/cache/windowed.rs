//! Calls for a second page group, of layers with a sliding window.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::types::{LockId, PageId};
use crate::windowed::WindowedGroup;

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
        let group = self.residency.windowed().ok_or(CacheError::NoWindowedGroup)?;
        let (end, _) = self.locks.get(lock)?;
        let first = group.pages_before(self.residency.tree(), end, pages);
        Ok(first as usize * self.page_size())
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
        if self.residency.windowed().is_none() {
            return Err(CacheError::NoWindowedGroup);
        }
        let (end, _) = self.locks.get(lock)?;
        self.residency.put_windowed(end, pages, canonical)
    }

    /// Frees up to `pages` windowed pages that no lock's window covers, while their full pages
    /// stay. Appends them to `freed` and returns how many they are: fewer than asked for only when
    /// all that are left are held. Without a windowed group, none.
    ///
    /// First go those that windows only passed by, then those in front of a place where a
    /// sequence or a match ended; each in the order of the [policy](crate::Policy).
    pub fn evict_windowed(&mut self, pages: usize, freed: &mut Vec<PageId>) -> usize {
        self.residency.evict_windowed(pages, freed)
    }

    /// Takes the windowed pages that left the cache together with their full pages: through
    /// [`evict`](Self::evict), [`clear`](Self::clear), [`reset`](Self::reset) or
    /// [`release_and_drop`](Self::release_and_drop), which list the full ones. Whoever owns the
    /// memory calls it after each of these.
    pub fn take_freed_windowed(&mut self) -> impl Iterator<Item = PageId> + '_ {
        self.residency.windowed_mut().map(WindowedGroup::take_left).into_iter().flatten()
    }
}
