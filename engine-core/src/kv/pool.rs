//! The prefix tree and the free pages, seen as one supply.

use radix_cache::{
    Acquired, CacheConfig, CacheError, Event, Inserted, LockId, Match, Namespace, PageId,
    RadixCache, Retention, Token,
};

use super::allocator::{AllocatorError, PageAllocator};

/// What the layers of a page group attend to, and so how long its pages are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum GroupKind {
    /// Every position before a token: a page stays until its sequence ends.
    Full,
    /// The last positions: a page is let go when the window has left it.
    Windowed,
}

/// KV pages: free ones, and those that the prefix tree holds.
///
/// Whoever needs pages takes them from here; when none is free, the tree evicts.
#[derive(Debug)]
pub struct KvPool {
    pub(super) cache: RadixCache,
    pub(super) pages: PageAllocator,
    pub(super) windowed: Option<Windowed>,
    page_size: usize,
    /// Pages that are being loaded from the host.
    pub(super) loading: usize,
    pub(super) host_capacity: usize,
    /// Kept, so that moving pages about allocates nothing.
    pub(super) scratch: Vec<PageId>,
    evicted: u64,
}

/// The free pages of windowed groups.
#[derive(Debug)]
pub(super) struct Windowed {
    pub(super) pages: PageAllocator,
    /// Pages that the window in front of a position covers at most.
    pub(super) reach: usize,
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
    /// A pool of `capacity` free pages and an empty tree.
    ///
    /// # Errors
    ///
    /// A page size that the tree refuses.
    pub fn new(capacity: u32, config: CacheConfig) -> Result<Self, PoolError> {
        let cache = RadixCache::new(config)?;
        Ok(Self {
            page_size: cache.page_size(),
            cache,
            pages: PageAllocator::new(capacity),
            windowed: None,
            loading: 0,
            host_capacity: 0,
            scratch: Vec::new(),
            evicted: 0,
        })
    }

    /// As [`new`](Self::new), with `windowed` pages for groups whose tokens attend to the last
    /// `window` positions, their own included.
    ///
    /// # Errors
    ///
    /// A page size or window that the tree refuses.
    pub fn with_window(
        capacity: u32,
        windowed: u32,
        window: usize,
        config: CacheConfig,
    ) -> Result<Self, PoolError> {
        let mut pool = Self::new(capacity, config.windowed_group(window))?;
        let reach = window.saturating_sub(1).div_ceil(pool.page_size);
        pool.windowed = Some(Windowed { pages: PageAllocator::new(windowed), reach });
        Ok(pool)
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Largest multiple of the page size that is at most `tokens`.
    pub fn floor_page(&self, tokens: usize) -> usize {
        tokens / self.page_size * self.page_size
    }

    /// Pages that hold `tokens` positions.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Pages that can be had now: free ones and evictable ones. Locks change it: read it again
    /// after each. Without windowed groups, there is no end of their pages.
    pub fn available(&self, kind: GroupKind) -> usize {
        let cached = self.cache.counts();
        match (kind, &self.windowed) {
            (GroupKind::Full, _) => self.pages.free() + cached.evictable,
            (GroupKind::Windowed, Some(windowed)) => {
                windowed.pages.free() + cached.windowed.evictable
            }
            (GroupKind::Windowed, None) => usize::MAX,
        }
    }

    /// Full pages that nobody owns: those that can be had without evicting.
    pub fn free(&self) -> usize {
        self.pages.free()
    }

    /// Pages of full groups by owner.
    pub fn counts(&self) -> PageCounts {
        let cached = self.cache.counts();
        let (free, capacity) = (self.pages.free(), self.pages.capacity());
        let others = free + cached.evictable + cached.locked + self.loading;
        PageCounts {
            free,
            cached_evictable: cached.evictable,
            cached_locked: cached.locked,
            loading: self.loading,
            owned_by_sequences: capacity.saturating_sub(others),
            capacity,
            on_host: cached.host,
            host_capacity: self.host_capacity,
        }
    }

    /// Pages of windowed groups by owner; all zero where there is none.
    pub fn windowed_counts(&self) -> PageCounts {
        let Some(windowed) = &self.windowed else { return PageCounts::default() };
        let cached = self.cache.counts().windowed;
        let (free, capacity) = (windowed.pages.free(), windowed.pages.capacity());
        PageCounts {
            free,
            cached_evictable: cached.evictable,
            cached_locked: cached.locked,
            owned_by_sequences: capacity.saturating_sub(free + cached.total),
            capacity,
            ..PageCounts::default()
        }
    }

    /// Pages that were evicted since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The prefix tree, to look at.
    pub fn cache(&self) -> &RadixCache {
        &self.cache
    }

    /// Whether a page is free.
    pub fn is_free(&self, kind: GroupKind, page: PageId) -> bool {
        match (kind, &self.windowed) {
            (GroupKind::Full, _) => self.pages.is_free(page),
            (GroupKind::Windowed, windowed) => {
                windowed.as_ref().is_some_and(|windowed| windowed.pages.is_free(page))
            }
        }
    }

    /// How many of the tokens are in the tree, and how many more are on the host. Reads only.
    pub fn probe(&self, namespace: Namespace, tokens: &[Token]) -> Match {
        self.cache.probe(namespace, tokens)
    }

    /// Locks the longest cached prefix and appends its pages to `table`.
    ///
    /// # Errors
    ///
    /// As [`RadixCache::acquire`].
    pub fn acquire(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
        table: &mut Vec<PageId>,
    ) -> Result<Acquired, PoolError> {
        Ok(self.cache.acquire(namespace, tokens, table)?)
    }

    /// Asks for what a lock holds, and for what is inserted through it, to be kept for longer.
    ///
    /// # Errors
    ///
    /// A lock that was released.
    pub fn retain(&mut self, lock: LockId, retention: Retention) -> Result<(), PoolError> {
        if retention == Retention::default() {
            return Ok(());
        }
        Ok(self.cache.retain(lock, retention)?)
    }

    /// Tells the time to prefixes that are kept for a while.
    pub fn advance(&mut self, now: u64) {
        self.cache.advance(now);
    }

    /// Takes the changes of the tree that nobody has taken yet.
    pub fn drain_events(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.cache.drain_events()
    }

    /// A second lock where `lock` ends.
    ///
    /// # Errors
    ///
    /// A lock that was released.
    pub fn fork(&mut self, lock: LockId) -> Result<LockId, PoolError> {
        Ok(self.cache.fork(lock)?)
    }

    /// Lets go of a lock. With `keep` the pages stay cached; without, those that nobody else
    /// needs become free.
    ///
    /// # Errors
    ///
    /// A lock that was released.
    pub fn release(&mut self, lock: LockId, keep: bool) -> Result<(), PoolError> {
        if keep {
            return Ok(self.cache.release(lock)?);
        }
        self.scratch.clear();
        self.cache.release_and_drop(lock, &mut self.scratch)?;
        self.reclaim()
    }

    /// Appends `count` pages to `table`, evicting where none is free.
    ///
    /// # Errors
    ///
    /// [`PoolError::Exhausted`]; nothing changes then.
    pub fn take(
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
        match (kind, &mut self.windowed) {
            (GroupKind::Full, _) => {
                let missing = count.saturating_sub(self.pages.free());
                if missing > 0 {
                    self.scratch.clear();
                    self.evicted += self.cache.evict(missing, &mut self.scratch) as u64;
                    self.reclaim()?;
                }
                self.pages.take_to(count, table).ok_or(exhausted)
            }
            (GroupKind::Windowed, Some(windowed)) => {
                let missing = count.saturating_sub(windowed.pages.free());
                if missing > 0 {
                    self.scratch.clear();
                    self.evicted += self.cache.evict_windowed(missing, &mut self.scratch) as u64;
                    Self::give_all(&mut windowed.pages, &self.scratch)?;
                }
                windowed.pages.take_to(count, table).ok_or(exhausted)
            }
            (GroupKind::Windowed, None) => Ok(()),
        }
    }

    /// Gives back pages that a sequence owned.
    ///
    /// # Errors
    ///
    /// A page that is free already.
    pub fn give(&mut self, kind: GroupKind, pages: &[PageId]) -> Result<(), PoolError> {
        match (kind, &mut self.windowed) {
            (GroupKind::Full, _) => Self::give_all(&mut self.pages, pages),
            (GroupKind::Windowed, Some(windowed)) => Self::give_all(&mut windowed.pages, pages),
            (GroupKind::Windowed, None) => Ok(()),
        }
    }

    /// Moves whole computed pages from a sequence into the tree, at the end of its lock, which
    /// moves to the end of the run.
    ///
    /// Pages that the tree held already are freed, and `pages` is overwritten with the tree's:
    /// **the caller's page table is re-pointed by this call**, and the caller announces it to
    /// the device for the first [`Inserted::present_pages`] entries.
    ///
    /// # Errors
    ///
    /// A lock that was released, or tokens that don't fill the pages.
    pub fn insert(
        &mut self,
        lock: LockId,
        tokens: &[Token],
        pages: &mut [PageId],
    ) -> Result<Inserted, PoolError> {
        let mut canonical = std::mem::take(&mut self.scratch);
        canonical.clear();
        let inserted = self.cache.insert(lock, tokens, pages, &mut canonical)?;
        for (mine, &cached) in pages.iter_mut().zip(&canonical) {
            self.pages.give(*mine)?;
            *mine = cached;
        }
        self.scratch = canonical;
        Ok(inserted)
    }

    /// Drops every cached page that nobody reads.
    ///
    /// # Errors
    ///
    /// Broken accounting.
    pub fn clear(&mut self) -> Result<(), PoolError> {
        self.scratch.clear();
        self.cache.clear(&mut self.scratch);
        self.reclaim()
    }

    /// The device lost its KV: all cached pages become free, every lock is void, and the host is
    /// empty. Sequences give their own pages back by themselves, and so do
    /// [loads](Self::forget).
    ///
    /// # Errors
    ///
    /// Broken accounting.
    pub fn reset(&mut self) -> Result<(), PoolError> {
        self.scratch.clear();
        self.cache.reset(&mut self.scratch);
        self.reclaim()
    }

    /// Frees what the tree has just let go: the full pages in `scratch`, and the windowed pages
    /// that left with them.
    fn reclaim(&mut self) -> Result<(), PoolError> {
        Self::give_all(&mut self.pages, &self.scratch)?;
        self.reclaim_windowed()
    }

    pub(super) fn give_all(
        allocator: &mut PageAllocator,
        pages: &[PageId],
    ) -> Result<(), PoolError> {
        pages.iter().try_for_each(|&page| allocator.give(page))?;
        Ok(())
    }
}
