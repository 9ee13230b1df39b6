//! The cache as its users see it: locks by their ids, over what is resident.

mod tiers;
mod views;
mod windowed;

use core::fmt;

use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::locks::Locks;
use crate::residency::Residency;
use crate::types::{
    Acquired, Counts, Inserted, LockId, Match, Namespace, PageId, Retention, Token,
};

/// A tree of cached token prefixes and the pages that hold their KV.
///
/// The [crate documentation](crate) tells how it is used and what it promises.
pub struct RadixCache {
    residency: Residency,
    locks: Locks,
}

impl RadixCache {
    /// Builds an empty cache.
    ///
    /// # Errors
    ///
    /// [`CacheError::PageSize`] if the page size is not a power of two between 1 and 512;
    /// [`CacheError::EmptyWindow`] and [`CacheError::WindowWithHostTier`].
    pub fn new(config: CacheConfig) -> Result<Self, CacheError> {
        config.check()?;
        Ok(Self { residency: Residency::new(&config), locks: Locks::default() })
    }

    /// Tokens a page holds.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.residency.tree().page_size()
    }

    /// Pages in the cache, by state. Costs nothing.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.residency.counts()
    }

    /// How much of `tokens` is cached and, with a windowed group, can be used. Changes nothing, not even what counts as recently
    /// used, and allocates nothing: a scheduler may ask for every waiting request.
    #[must_use]
    pub fn probe(&self, namespace: Namespace, tokens: &[Token]) -> Match {
        let (tokens, host_tokens) = self.residency.probe(namespace, tokens);
        Match { tokens, host_tokens }
    }

    /// Locks what is cached of `tokens` and appends its pages to `pages`, in order. What one
    /// call matched can't be evicted before the lock is released.
    ///
    /// With a windowed group, `pages` are those of the full group;
    /// [`windowed_pages`](Self::windowed_pages) names the others.
    ///
    /// Without any match the lock holds no page, yet it can be [inserted](Self::insert) behind.
    ///
    /// # Errors
    ///
    /// [`CacheError::Full`] when 32 bits can't number another node or lock.
    pub fn acquire(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
        pages: &mut Vec<PageId>,
    ) -> Result<Acquired, CacheError> {
        self.locks.check_room()?;
        let (end, tokens) = self.residency.acquire(namespace, tokens, pages)?;
        let lock = self.locks.create(end, Retention::default())?;
        Ok(Acquired { lock, tokens })
    }

    /// Caches whole pages that follow a lock's end, and moves the lock to the end of them.
    /// Costs what the run costs, however long the prefix is.
    ///
    /// Pages that are not present yet become the cache's. For the first
    /// [`present_pages`](Inserted::present_pages) of the run the cache has pages already: those
    /// are appended to `canonical`, and the caller **frees its own copies of them and points its
    /// page table at the canonical ones**.
    ///
    /// With a windowed group, these are pages of the full group, and
    /// [`put_windowed`](Self::put_windowed) follows with the others.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::RaggedRun`] unless `tokens` fill `pages` exactly;
    /// [`CacheError::ReservedPage`]; [`CacheError::PageAlreadyCached`] if one of `pages` is the
    /// canonical one itself;
    /// [`CacheError::Full`] when 32 bits can't number the new pages. Nothing has changed then.
    pub fn insert(
        &mut self,
        lock: LockId,
        tokens: &[Token],
        pages: &[PageId],
        canonical: &mut Vec<PageId>,
    ) -> Result<Inserted, CacheError> {
        let (end, retention) = self.locks.get(lock)?;
        let (end, inserted) = self.residency.insert(end, tokens, pages, retention, canonical)?;
        self.locks.set_end(lock, end);
        Ok(inserted)
    }

    /// Makes a second lock with the same end, for a sequence that goes on from there by itself.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::Full`] when 32 bits can't number another lock.
    pub fn fork(&mut self, lock: LockId) -> Result<LockId, CacheError> {
        let (end, retention) = self.locks.get(lock)?;
        let fork = self.locks.create(end, retention)?;
        self.residency.fork(end);
        Ok(fork)
    }

    /// How many tokens a lock holds: from the root to its end.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn locked_tokens(&self, lock: LockId) -> Result<usize, CacheError> {
        let (end, _) = self.locks.get(lock)?;
        Ok(self.residency.tree().node(end).end as usize * self.page_size())
    }

    /// Lets go of a lock. What nobody else holds becomes evictable, and counts as used just now.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`], also when the lock is released a second time.
    pub fn release(&mut self, lock: LockId) -> Result<(), CacheError> {
        let (end, retention) = self.locks.remove(lock)?;
        self.residency.release(end, retention);
        Ok(())
    }

    /// Lets go of a lock and frees what then nobody holds or continues, from its end upwards:
    /// what an engine does at the end of a sequence when caching is switched off. Appends the
    /// freed pages to `freed` and returns how many they are.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn release_and_drop(
        &mut self,
        lock: LockId,
        freed: &mut Vec<PageId>,
    ) -> Result<usize, CacheError> {
        let (end, _) = self.locks.remove(lock)?;
        Ok(self.residency.drop_branch(end, freed))
    }

    /// Asks for everything that a lock holds, and for everything that will be
    /// [inserted](Self::insert) through it or a fork of it, to be kept for longer. Wishes only
    /// grow: a page has the largest that was made for it.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn retain(&mut self, lock: LockId, retention: Retention) -> Result<(), CacheError> {
        let (end, _) = self.locks.get(lock)?;
        self.locks.set_retention(lock, retention);
        self.residency.retain(end, retention);
        Ok(())
    }

    /// Tells the time: ticks of whatever clock the caller gave [`Retention::until`] in. Earlier
    /// ticks than before are ignored.
    pub fn advance(&mut self, now: u64) {
        self.residency.advance(now);
    }

    /// Frees up to `pages` evictable pages of the device, from the tails of unlocked leaves in the
    /// order of the policy. Appends them to `freed` and returns how many they are: fewer than
    /// asked for only when nothing evictable is left.
    ///
    /// Pages that have a copy on the host stay in the tree and can be
    /// [loaded](Self::load) again; the others are forgotten. Nothing waits for a copy here:
    /// [`demote`](Self::demote) does. Windowed pages of the same positions leave with them, and
    /// are [taken](Self::take_freed_windowed) separately.
    pub fn evict(&mut self, pages: usize, freed: &mut Vec<PageId>) -> usize {
        self.residency.evict(pages, freed)
    }

    /// Drops everything that is not locked, on the device, on the host and in the windowed group.
    /// Appends the device's full pages to `freed`.
    pub fn clear(&mut self, freed: &mut Vec<PageId>) {
        self.residency.clear(freed);
    }

    /// Drops everything, locked or not: the device lost its KV. Every lock and every transfer
    /// is dead from here on, and says so when it is presented. Appends all full pages to `freed`.
    pub fn reset(&mut self, freed: &mut Vec<PageId>) {
        self.locks.remove_all();
        self.residency.reset(freed);
    }
}

impl fmt::Debug for RadixCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RadixCache")
            .field("page_size", &self.page_size())
            .field("policy", &self.residency.device().policy())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
