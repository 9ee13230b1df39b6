//! Calls for a second tier in the memory of the host.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::types::{LockId, Namespace, PageId, Token, Transfer, TransferId};

impl RadixCache {
    /// Orders a copy to the host of what a lock holds and the host doesn't have yet, as far as the
    /// [`WritePolicy`](crate::WritePolicy) asks for it. To be called when a sequence ends, before its release. None if
    /// there is nothing to copy, no room, or a part of it is under way already.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn save(&mut self, lock: LockId) -> Result<Option<Transfer>, CacheError> {
        let (end, _) = self.locks.get(lock)?;
        Ok(self.residency.save(end))
    }

    /// Makes room for `pages` pages on the device without forgetting them: frees what the host has
    /// copies of, and orders copies of the rest, whose pages are freed by
    /// [`confirm`](Self::confirm). In the order in which [`evict`](Self::evict) would take them.
    /// Returns how many pages are free or will be: fewer than asked for when nothing evictable
    /// is left or the host is full of what is held.
    ///
    /// # Errors
    ///
    /// [`CacheError::Full`] when 32 bits can't number another node.
    pub fn demote(
        &mut self,
        pages: usize,
        freed: &mut Vec<PageId>,
        transfers: &mut Vec<Transfer>,
    ) -> Result<usize, CacheError> {
        self.residency.demote(pages, freed, transfers)
    }

    /// Orders a copy back to the device of what follows the [match](Self::probe) of `tokens`
    /// there and is on the host: as many pages as `pages` has, at most
    /// [`host_tokens`](crate::Match::host_tokens). The cache takes the pages that the transfer
    /// names; the others stay the caller's. They can be matched once the transfer is confirmed.
    /// None if there is nothing to load, or it is under way already.
    ///
    /// # Errors
    ///
    /// [`CacheError::ReservedPage`]; [`CacheError::Full`] when 32 bits can't number another node.
    pub fn load(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
        pages: &[PageId],
    ) -> Result<Option<Transfer>, CacheError> {
        self.residency.load(namespace, tokens, pages)
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
        self.residency.confirm(transfer, freed)
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
        self.residency.fail(transfer, freed)
    }
}
