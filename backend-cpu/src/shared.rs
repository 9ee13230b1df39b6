//! Memory that several threads write at once, each its own part.

use std::{cell::UnsafeCell, marker::PhantomData, ops::Range};

use bytemuck::Pod;

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

/// Memory that some threads write and, at other times, all threads read.
pub(crate) struct Cells<T> {
    memory: UnsafeCell<Vec<T>>,
}

// SAFETY: it is a `Vec<T>`: what several threads do to it at once is subject to the contract of
// `part`, and the rest needs `&mut` or only reads.
unsafe impl<T: Send + Sync> Sync for Cells<T> {}

impl<T: Pod> Cells<T> {
    /// So many zeros, in memory that the operating system hands out at the first touch.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self { memory: UnsafeCell::new(vec![T::zeroed(); len]) }
    }

    /// All of it.
    #[inline(always)]
    pub(crate) fn get(&self) -> &[T] {
        // SAFETY: nobody writes while somebody reads: the contract of `part`.
        unsafe { &*self.memory.get() }
    }

    /// All of it, as bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(self.memory.get_mut())
    }

    /// The elements in `range`, to write. Panics if they aren't all inside.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap, and nobody may hold what
    /// [`get`](Self::get) returned meanwhile.
    #[expect(clippy::mut_from_ref, reason = "parts are disjoint, as the caller promises")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        // SAFETY: reading the vector's address and length races with nothing, as nobody changes
        // them through a shared reference.
        let (start, len) = unsafe {
            let memory = self.memory.get();
            ((*memory).as_ptr().cast_mut(), (*memory).len())
        };
        assert!(range.start <= range.end && range.end <= len, "part out of range");
        // SAFETY: the range is inside of the vector, and the caller promises that nobody else has
        // any of it.
        unsafe { std::slice::from_raw_parts_mut(start.add(range.start), range.len()) }
    }
}

impl<T> std::fmt::Debug for Cells<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cells").finish_non_exhaustive()
    }
}
