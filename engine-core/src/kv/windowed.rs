//! The pool's pages of windowed groups: how the tree's window moves over them.

use radix_cache::{LockId, PageId};

use super::pool::{KvPool, PoolError};

impl KvPool {
    /// Appends the windowed page of each position that a lock holds, [`PageId::NONE`] for those that
    /// the lock's window has left.
    pub(crate) fn windowed_pages(
        &self,
        lock: LockId,
        table: &mut Vec<PageId>,
    ) -> Result<(), PoolError> {
        let mut pages = Vec::new();
        let first = self.cache.windowed_pages(lock, &mut pages)? / self.page_size();
        table.resize(table.len() + first, PageId::NONE);
        table.append(&mut pages);
        Ok(())
    }

    /// Moves the windowed pages of the last positions in front of a lock's end into the tree: what
    /// follows [`insert`](Self::insert), which moved that end.
    ///
    /// Where the tree has a page for the position already, the caller's own is freed and its
    /// entry of `pages` is overwritten. Returns whether that happened: the caller then announces
    /// the entries to the device.
    pub(crate) fn put_windowed(
        &mut self,
        lock: LockId,
        pages: &mut [PageId],
    ) -> Result<bool, PoolError> {
        self.scratch.clear();
        self.cache.put_windowed(lock, pages, &mut self.scratch)?;
        let mut is_repointed = false;
        for (mine, &cached) in pages.iter_mut().zip(&self.scratch) {
            if *mine != cached {
                self.windowed_pages.give(*mine)?;
                *mine = cached;
                is_repointed = true;
            }
        }
        Ok(is_repointed)
    }

    /// Takes back the windowed pages that left the tree together with their full pages. Follows
    /// each call that frees full pages.
    pub(super) fn reclaim_windowed(&mut self) -> Result<(), PoolError> {
        let mut left = self.cache.take_freed_windowed();
        left.try_for_each(|page| self.windowed_pages.give(page))?;
        Ok(())
    }
}
