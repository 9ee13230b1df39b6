//! The host tier of the pool: copies of pages, from their order to their end.
//!
//! The tree decides what is copied where. Until a copy is [confirmed](KvPool::confirm) or
//! [failed](KvPool::fail), what it reads is locked in the tree, and what a load fills is
//! owned by nobody else: neither can be had by anyone.

use radix_cache::{Namespace, PageGroup as GroupKind, PageId, Tier, Token, Transfer};

use super::pool::{KvPool, PoolError};

impl KvPool {
    /// Frees up to `pages` evictable pages without forgetting them: at once where the host has
    /// copies, else when the copies that are appended to `ordered` have been executed. Returns how
    /// many the latter will free.
    pub(crate) fn demote(
        &mut self,
        pages: usize,
        ordered: &mut Vec<Transfer>,
    ) -> Result<usize, PoolError> {
        self.scratch.clear();
        let made = self.cache.demote(pages, &mut self.scratch, ordered)?;
        self.reclaim()?;
        Ok(made - self.scratch.len())
    }

    /// Orders a copy back to the device of up to `count` pages that follow the match of `tokens`
    /// there, into free pages, evicting where none is free. `None` if there is nothing to load. Changes
    /// nothing where it fails with [`PoolError::Exhausted`].
    pub(crate) fn load(
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
    pub(crate) fn confirm(&mut self, transfer: &Transfer) -> Result<(), PoolError> {
        self.scratch.clear();
        self.cache.confirm(transfer.id, &mut self.scratch)?;
        self.end_load(transfer);
        self.reclaim()
    }

    /// A copy went wrong: everything is as if it had not been ordered.
    pub(crate) fn fail(&mut self, transfer: &Transfer) -> Result<(), PoolError> {
        self.scratch.clear();
        self.cache.fail(transfer.id, &mut self.scratch)?;
        self.end_load(transfer);
        self.reclaim()
    }

    /// Gives back what a copy was to fill that was under way during a [reset](Self::reset).
    pub(crate) fn forget(&mut self, transfer: &Transfer) -> Result<(), PoolError> {
        self.end_load(transfer);
        let filled: &[PageId] = match transfer.to {
            Tier::Device => &transfer.device,
            _ => &[],
        };
        self.give(GroupKind::Full, filled)
    }

    fn end_load(&mut self, transfer: &Transfer) {
        if transfer.to == Tier::Device {
            self.loading = self.loading.saturating_sub(transfer.device.len());
        }
    }
}
