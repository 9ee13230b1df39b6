//! Keys and values in bf16, in pairs for dot products.
//!
//! - keys `[page, kv_head, pair of dimensions, position, 2]`;
//! - values `[page, kv_head, pair of positions, padded dimension, 2]`. In pages of one position a
//!   pair has one value.
//!
//! A weighted sum reads a pair of values even where only its first position is there, with a
//! weight of zero for the second. So writing the first one clears the second, which may be left
//! from another sequence: zero times that could be no number.

use backend_api::PageId;

use super::{PageShape, Part};
use crate::{isa::dot::bf16_bits, shared::Cells};

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct Pairs {
    shape: PageShape,
    keys: Cells<u16>,
    values: Cells<u16>,
}

/// Elements of the keys of a page.
pub(crate) fn key_page(shape: PageShape) -> usize {
    shape.kv_heads * key_head(shape)
}

/// Elements of the values of a page.
pub(crate) fn value_page(shape: PageShape) -> usize {
    shape.kv_heads * value_head(shape)
}

fn key_head(shape: PageShape) -> usize {
    shape.head_dim.next_multiple_of(2) * shape.page_size
}

fn value_head(shape: PageShape) -> usize {
    shape.value_width() * shape.page_size
}

impl Pairs {
    /// `pages` pages of zeros.
    pub(crate) fn new(shape: PageShape, pages: usize) -> Self {
        Self {
            shape,
            keys: Cells::zeroed(pages * key_page(shape)),
            values: Cells::zeroed(pages * value_page(shape)),
        }
    }

    #[inline(always)]
    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    /// Keys of a head in a page: `[pair of dimensions, position, 2]`.
    #[inline(always)]
    pub(crate) fn keys(&self, page: PageId, head: usize) -> &[u16] {
        let size = key_head(self.shape);
        &self.keys.get()[(page.0 as usize * self.shape.kv_heads + head) * size..][..size]
    }

    /// Values of a head in a page: `[pair of positions, padded dimension, 2]`, or
    /// `[padded dimension]` in pages of one position.
    #[inline(always)]
    pub(crate) fn values(&self, page: PageId, head: usize) -> &[u16] {
        let size = value_head(self.shape);
        &self.values.get()[(page.0 as usize * self.shape.kv_heads + head) * size..][..size]
    }

    /// Writes one position of one head: `key` and `value` are `[head_dim]`.
    ///
    /// # Safety
    /// No two calls at the same time may write the same head, and nobody may read the memory
    /// meanwhile.
    pub(crate) unsafe fn write(
        &self,
        page: PageId,
        (head, offset): (usize, usize),
        key: &[f32],
        value: &[f32],
    ) {
        let place = page.0 as usize * self.shape.kv_heads + head;
        let (size, page_size) = (key_head(self.shape), self.shape.page_size);
        // SAFETY: keys and values of this head are written by the caller alone.
        let keys = unsafe { self.keys.part(place * size..(place + 1) * size) };
        for (dimension, from) in key.iter().enumerate() {
            keys[(dimension / 2 * page_size + offset) * 2 + dimension % 2] = bf16_bits(*from);
        }
        let (size, width) = (value_head(self.shape), self.shape.value_width());
        // SAFETY: as above.
        let values = unsafe { self.values.part(place * size..(place + 1) * size) };
        if page_size == 1 {
            for (to, from) in values.iter_mut().zip(value) {
                *to = bf16_bits(*from);
            }
            return;
        }
        let pairs = values[offset / 2 * 2 * width..][..2 * width].as_chunks_mut::<2>().0;
        for (pair, from) in pairs.iter_mut().zip(value) {
            if offset.is_multiple_of(2) {
                *pair = [bf16_bits(*from), 0];
            } else {
                pair[1] = bf16_bits(*from);
            }
        }
    }

    /// Bytes of its memory.
    pub(super) fn bytes(&self) -> u64 {
        (size_of_val(self.keys.get()) + size_of_val(self.values.get())) as u64
    }

    pub(super) fn parts(&mut self) -> Vec<Part<'_>> {
        vec![
            (self.keys.bytes(), |shape| key_page(shape) * size_of::<u16>()),
            (self.values.bytes(), |shape| value_page(shape) * size_of::<u16>()),
        ]
    }
}
