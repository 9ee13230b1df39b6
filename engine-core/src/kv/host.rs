//! The host tier of the pool: copies of pages, from their order to their end.
//!
//! The tree decides what is copied where. Until a copy is [confirmed](KvPool::confirm) or
//! [failed](KvPool::fail), what it reads is locked in the tree, and what a load fills is
//! owned by nobody else: neither can be had by anyone.

use radix_cache::{
    CacheConfig, Direction, HostTier, LockId, Namespace, PageId, Policy, Token, Transfer,
    WritePolicy,
};

use super::pool::{GroupKind, KvPool, PoolError};

impl KvPool {
    /// A pool of `capacity` free pages, and `host_pages` on the host, from where `policy` says what
    /// goes first.
    ///
    /// # Errors
    ///
    /// A page size that the tree refuses.
    pub fn with_host(
        capacity: u32,
        config: CacheConfig,
        host_pages: u32,
        policy: Policy,
        write: WritePolicy,
    ) -> Result<Self, PoolError> {
        let tier = HostTier::new(host_pages).policy(policy).write(write);
        let mut pool = Self::new(capacity, config.host_tier(tier))?;
        pool.host_capacity = host_pages as usize;
        Ok(pool)
    }

    /// Orders a copy to the host of what a lock holds, where the write policy asks for it.
    ///
    /// # Errors
    ///
    /// A lock that was released.
    pub fn save(&mut self, lock: LockId) -> Result<Option<Transfer>, PoolError> {
        Ok(self.cache.save(lock)?)
    }

    /// Frees up to `pages` evictable pages without forgetting them: at once where the host has
    /// copies, else when the copies that are appended to `ordered` have been executed. Returns how
    /// many the latter will free.
    ///
    /// # Errors
    ///
    /// Broken accounting.
    pub fn demote(
        &mut self,
        pages: usize,
        ordered: &mut Vec<Transfer>,
    ) -> Result<usize, PoolError> {
        self.scratch.clear();
        let made = self.cache.demote(pages, &mut self.scratch, ordered)?;
        Self::give_all(&mut self.pages, &self.scratch)?;
        Ok(made - self.scratch.len())
    }

    /// Orders a copy back to the device of up to `count` pages that follow the match of `tokens`
    /// there, into free pages, evicting where none is free. `None` if there is nothing to load.
    ///
    /// # Errors
    ///
    /// [`PoolError::Exhausted`]; nothing changes then.
    pub fn load(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
        count: usize,
    ) -> Result<Option<Transfer>, PoolError> {
        let mut pages = Vec::with_capacity(count);
        self.take(GroupKind::Full, count, &mut pages)?;
        // Evicting may have shortened what is there to be loaded, or what precedes it.
        let transfer = self.cache.load(namespace, tokens, &pages)?;
        let taken = transfer.as_ref().map_or(0, |transfer| transfer.device.len());
        self.give(GroupKind::Full, &pages[taken..])?;
        self.loading += taken;
        Ok(transfer)
    }

    /// A copy has been executed. What was loaded is the tree's, and what was demoted is free.
    ///
    /// # Errors
    ///
    /// A transfer that ended before.
    pub fn confirm(&mut self, transfer: &Transfer) -> Result<(), PoolError> {
        self.scratch.clear();
        self.cache.confirm(transfer.id, &mut self.scratch)?;
        self.end_load(transfer);
        Self::give_all(&mut self.pages, &self.scratch)
    }

    /// A copy went wrong: everything is as if it had not been ordered.
    ///
    /// # Errors
    ///
    /// A transfer that ended before.
    pub fn fail(&mut self, transfer: &Transfer) -> Result<(), PoolError> {
        self.scratch.clear();
        self.cache.fail(transfer.id, &mut self.scratch)?;
        self.end_load(transfer);
        Self::give_all(&mut self.pages, &self.scratch)
    }

    /// Gives back what a copy was to fill that was under way during a [reset](Self::reset).
    ///
    /// # Errors
    ///
    /// A page that is free already.
    pub fn forget(&mut self, transfer: &Transfer) -> Result<(), PoolError> {
        self.end_load(transfer);
        let filled: &[PageId] = match transfer.direction {
            Direction::ToDevice => &transfer.device,
            _ => &[],
        };
        self.give(GroupKind::Full, filled)
    }

    fn end_load(&mut self, transfer: &Transfer) {
        if transfer.direction == Direction::ToDevice {
            self.loading = self.loading.saturating_sub(transfer.device.len());
        }
    }
}
