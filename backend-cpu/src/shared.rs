//! Memory that several threads write at once, each its own part.

use std::{marker::PhantomData, ops::Range};

/// A mutable slice whose parts are handed to different threads. Parallel kernels write
/// interleaved columns of a row-major matrix, which `split_at_mut` can't express.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` that is split by hand: what is sent to another thread are disjoint
// parts, as the contract of `part` demands.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

// SAFETY: as for Send; sharing it only allows to call `part`.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Borrows `slice` for as long as parts are handed out.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The elements in `range`. Panics if they aren't all inside.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part out of range");
        // SAFETY: the range is inside the borrowed slice, and the caller promises that nobody
        // else has any of it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
