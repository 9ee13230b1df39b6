//! The prefix tree and the free pages, seen as one supply.

use radix_cache::{
    CacheConfig, CacheError, Inserted, LockId, PageGroup as GroupKind, PageId, RadixCache,
    Retention, Token,
};

use super::allocator::{AllocatorError, PageAllocator};

/// KV pages: free ones, and those that the prefix tree holds.
///
/// Whoever needs pages takes them from here; when none is free, the tree evicts.
#[derive(Debug)]
pub struct KvPool {
    pub(super) cache: RadixCache,
    pub(super) pages: PageAllocator,
    /// Pages of windowed groups.
    pub(super) windowed_pages: PageAllocator,
    reach: Option<usize>,
    page_size: usize,
    /// Pages that are being loaded from the host.
    pub(super) loading: usize,
    pub(super) host_capacity: usize,
    /// Kept, so that moving pages about allocates nothing.
    pub(super) scratch: Vec<PageId>,
    evicted: u64,
}

/// Pages by owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Owned by nobody.
    pub free: usize,
    /// Owned by the tree; may be evicted.
    pub cached_evictable: usize,
    /// Owned by the tree; a sequence reads them, or a copy between the tiers.
    pub cached_locked: usize,
    /// Being loaded from the host; the tree's or free when that has ended.
    pub loading: usize,
    /// Owned by sequences: the rest.
    pub owned_by_sequences: usize,
    /// All of them.
    pub capacity: usize,
    /// Pages of the host that hold copies. Not counted in `capacity`.
    pub on_host: usize,
    /// All pages of the host; 0 without a host tier.
    pub host_capacity: usize,
}

impl PageCounts {
    /// Pages that a running sequence or a copy needs where they are.
    pub fn in_use(&self) -> usize {
        self.capacity - self.free - self.cached_evictable
    }
}

/// The accounting of pages is broken, or a call makes no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// See [`AllocatorError`].
    #[error(transparent)]
    Allocator(#[from] AllocatorError),
    /// See [`CacheError`].
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// More pages are needed than are free or evictable. Callers ask [`KvPool::available`]
    /// first.
    #[error("{needed} pages are needed, but only {available} can be had")]
    Exhausted {
        /// Pages asked for.
        needed: usize,
        /// Pages free or evictable.
        available: usize,
    },
}

impl KvPool {
    /// A pool of `capacity` free pages and an empty tree. Where `config` has a windowed group,
    /// `windowed` is its window in tokens and the number of its pages; where it has a host tier,
    /// that has `host_pages`.
    pub(crate) fn new(
        config: CacheConfig,
        capacity: u32,
        windowed: Option<(usize, u32)>,
        host_pages: u32,
    ) -> Result<Self, PoolError> {
        let cache = RadixCache::new(config)?;
        let page_size = cache.page_size();
        Ok(Self {
            page_size,
            cache,
            pages: PageAllocator::new(capacity),
            windowed_pages: PageAllocator::new(windowed.map_or(0, |(_, pages)| pages)),
            reach: windowed.map(|(window, _)| window.saturating_sub(1).div_ceil(page_size)),
            loading: 0,
            host_capacity: host_pages as usize,
            scratch: Vec::new(),
            evicted: 0,
        })
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Largest multiple of the page size that is at most `tokens`.
    pub(crate) fn floor_page(&self, tokens: usize) -> usize {
        tokens / self.page_size * self.page_size
    }

    /// Pages that hold `tokens` positions.
    pub(crate) fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Pages that the window in front of a position covers at most; `None` where no group is
    /// windowed.
    pub(crate) fn reach(&self) -> Option<usize> {
        self.reach
    }

    /// Pages that can be had now: free ones and evictable ones. Locks change it: read it again
    /// after each. Without windowed groups, there is no end of their pages.
    pub fn available(&self, kind: GroupKind) -> usize {
        let cached = self.cache.counts();
        match (kind, self.reach) {
            (GroupKind::Full, _) => self.pages.free() + cached.evictable,
            (GroupKind::Windowed, Some(_)) => {
                self.windowed_pages.free() + cached.windowed.evictable
            }
            (GroupKind::Windowed, None) => usize::MAX,
        }
    }

    /// Full pages that nobody owns: those that can be had without evicting.
    pub(crate) fn free(&self) -> usize {
        self.pages.free()
    }

    /// Pages of the groups of a kind by owner.
    pub fn counts(&self, kind: GroupKind) -> PageCounts {
        let cached = self.cache.counts();
        let (pages, cached_evictable, cached_locked, loading) = match kind {
            GroupKind::Full => (&self.pages, cached.evictable, cached.locked, self.loading),
            GroupKind::Windowed => {
                let cached = cached.windowed;
                (&self.windowed_pages, cached.evictable, cached.locked, 0)
            }
        };
        let (free, capacity) = (pages.free(), pages.capacity());
        let others = free + cached_evictable + cached_locked + loading;
        let is_full = kind == GroupKind::Full;
        PageCounts {
            free,
            cached_evictable,
            cached_locked,
            loading,
            owned_by_sequences: capacity.saturating_sub(others),
            capacity,
            on_host: if is_full { cached.host } else { 0 },
            host_capacity: if is_full { self.host_capacity } else { 0 },
        }
    }

    /// Pages that were evicted since the start.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The prefix tree, to look at.
    pub fn cache(&self) -> &RadixCache {
        &self.cache
    }

    /// The prefix tree, for what moves no page between its owners: looking up, locking, the time,
    /// events.
    pub(crate) fn cache_mut(&mut self) -> &mut RadixCache {
        &mut self.cache
    }

    /// Whether a page is free.
    pub fn is_free(&self, kind: GroupKind, page: PageId) -> bool {
        match kind {
            GroupKind::Full => self.pages.is_free(page),
            GroupKind::Windowed => self.windowed_pages.is_free(page),
        }
    }

    /// Asks for what a lock holds, and for what is inserted through it, to be kept for longer.
    pub(crate) fn retain(&mut self, lock: LockId, retention: Retention) -> Result<(), PoolError> {
        if retention == Retention::default() {
            return Ok(());
        }
        Ok(self.cache.retain(lock, retention)?)
    }

    /// Lets go of a lock. With `keep` the pages stay cached; without, those that nobody else
    /// needs become free.
    pub(crate) fn release(&mut self, lock: LockId, keep: bool) -> Result<(), PoolError> {
        if keep {
            return Ok(self.cache.release(lock)?);
        }
        self.scratch.clear();
        self.cache.release_and_drop(lock, &mut self.scratch)?;
        self.reclaim()
    }

    /// Appends `count` pages to `table`, evicting where none is free. Changes nothing where it
    /// fails with [`PoolError::Exhausted`].
    pub(crate) fn take(
        &mut self,
        kind: GroupKind,
        count: usize,
        table: &mut Vec<PageId>,
    ) -> Result<(), PoolError> {
        let available = self.available(kind);
        let exhausted = PoolError::Exhausted { needed: count, available };
        if count > available {
            return Err(exhausted);
        }
        let missing = count.saturating_sub(self.allocator(kind).free());
        if missing > 0 {
            self.scratch.clear();
            match kind {
                GroupKind::Full => {
                    self.evicted += self.cache.evict(missing, &mut self.scratch) as u64;
                    self.reclaim()?;
                }
                GroupKind::Windowed => {
                    self.evicted += self.cache.evict_windowed(missing, &mut self.scratch) as u64;
                    give_all(&mut self.windowed_pages, &self.scratch)?;
                }
            }
        }
        self.allocator(kind).take_to(count, table).ok_or(exhausted)
    }

    /// Gives back pages that a sequence owned.
    pub(crate) fn give(&mut self, kind: GroupKind, pages: &[PageId]) -> Result<(), PoolError> {
        give_all(self.allocator(kind), pages)
    }

    /// Moves whole computed pages from a sequence into the tree, at the end of its lock, which
    /// moves to the end of the run.
    ///
    /// Pages that the tree held already are freed, and `pages` is overwritten with the tree's:
    /// **the caller's page table is re-pointed by this call**, and the caller announces it to
    /// the device for the first [`Inserted::present_pages`] entries.
    pub(crate) fn insert(
        &mut self,
        lock: LockId,
        tokens: &[Token],
        pages: &mut [PageId],
    ) -> Result<Inserted, PoolError> {
        self.scratch.clear();
        let inserted = self.cache.insert(lock, tokens, pages, &mut self.scratch)?;
        for (mine, &cached) in pages.iter_mut().zip(&self.scratch) {
            self.pages.give(*mine)?;
            *mine = cached;
        }
        Ok(inserted)
    }

    /// Drops every cached page that nobody reads.
    pub(crate) fn clear(&mut self) -> Result<(), PoolError> {
        self.scratch.clear();
        self.cache.clear(&mut self.scratch);
        self.reclaim()
    }

    /// The device lost its KV: all cached pages become free, every lock is void, and the host is
    /// empty. Sequences give their own pages back by themselves, and so do
    /// [loads](Self::forget).
    pub(crate) fn reset(&mut self) -> Result<(), PoolError> {
        self.scratch.clear();
        self.cache.reset(&mut self.scratch);
        self.reclaim()
    }

    /// Frees what the tree has just let go: the full pages in `scratch`, and the windowed pages
    /// that left with them.
    pub(super) fn reclaim(&mut self) -> Result<(), PoolError> {
        give_all(&mut self.pages, &self.scratch)?;
        self.reclaim_windowed()
    }

    fn allocator(&mut self, kind: GroupKind) -> &mut PageAllocator {
        match kind {
            GroupKind::Full => &mut self.pages,
            GroupKind::Windowed => &mut self.windowed_pages,
        }
    }
}

fn give_all(allocator: &mut PageAllocator, pages: &[PageId]) -> Result<(), PoolError> {
    pages.iter().try_for_each(|&page| allocator.give(page))?;
    Ok(())
}
