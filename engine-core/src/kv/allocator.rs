//! Free pages of one page group.

use radix_cache::PageId;

/// The free pages of one page group. Last freed, first given: those are warm.
#[derive(Clone, Debug)]
pub(super) struct PageAllocator {
    free: Vec<PageId>,
    /// Which pages are free, to refuse a page that is freed twice.
    is_free: Vec<bool>,
}

/// A page was freed that can't be: the engine's accounting is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocatorError {
    /// It is free already.
    #[error("page {} was freed twice", .0.0)]
    FreedTwice(PageId),
    /// There is no such page.
    #[error("page {} does not exist", .0.0)]
    Unknown(PageId),
}

impl PageAllocator {
    /// All pages free.
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            free: (0..capacity).rev().map(PageId).collect(),
            is_free: vec![true; capacity as usize],
        }
    }

    /// Pages, free or not.
    pub(super) fn capacity(&self) -> usize {
        self.is_free.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn is_free(&self, page: PageId) -> bool {
        self.is_free.get(page.0 as usize).copied().unwrap_or(false)
    }

    /// Appends `count` pages to `table`, or `None` and nothing where there are fewer.
    pub(super) fn take_to(&mut self, count: usize, table: &mut Vec<PageId>) -> Option<()> {
        let kept = self.free.len().checked_sub(count)?;
        for page in self.free.drain(kept..).rev() {
            self.is_free[page.0 as usize] = false;
            table.push(page);
        }
        Some(())
    }

    /// Gives a page back, unless it is free already or does not exist.
    pub(super) fn give(&mut self, page: PageId) -> Result<(), AllocatorError> {
        match self.is_free.get_mut(page.0 as usize) {
            None => Err(AllocatorError::Unknown(page)),
            Some(true) => Err(AllocatorError::FreedTwice(page)),
            Some(is_free) => {
                *is_free = true;
                self.free.push(page);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_freed_twice_is_refused_and_nothing_changes() {
        let mut pages = PageAllocator::new(2);
        let mut taken = Vec::new();
        pages.take_to(1, &mut taken).unwrap();
        let page = taken[0];
        assert_eq!(pages.give(page), Ok(()));
        assert_eq!(pages.give(page), Err(AllocatorError::FreedTwice(page)));
        assert_eq!(pages.give(PageId(2)), Err(AllocatorError::Unknown(PageId(2))));
        assert_eq!(pages.free(), 2);
    }

    #[test]
    fn an_empty_allocator_gives_nothing() {
        let mut pages = PageAllocator::new(1);
        let mut taken = Vec::new();
        assert!(pages.take_to(1, &mut taken).is_some());
        assert_eq!(pages.take_to(1, &mut taken), None);
        assert_eq!(taken, [PageId(0)]);
    }
}
