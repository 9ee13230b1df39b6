//! Pages of keys and values in memory.
//!
//! For each layer of a page group:
//!
//! - keys `[page, kv_head, dimension, position]`: sixteen neighbouring positions of one dimension
//!   are adjacent, so scores are computed with positions in lanes, without gathering or
//!   horizontal sums (pages smaller than sixteen positions are gathered first);
//! - values `[page, kv_head, position, dimension]`, dimensions padded to a multiple of sixteen:
//!   the weighted sum has dimensions in lanes.

use backend_api::PageId;

use crate::isa::LANES;

/// The shape of a group's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageShape {
    /// Positions in a page: a power of two.
    pub(crate) page_size: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl PageShape {
    /// Dimensions of a value, padded.
    pub(crate) fn value_width(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    fn key_page(self) -> usize {
        self.kv_heads * self.head_dim * self.page_size
    }

    fn value_page(self) -> usize {
        self.kv_heads * self.value_width() * self.page_size
    }

    /// Bytes of one page of one layer, keys and values.
    pub(crate) fn page_bytes(self) -> u64 {
        ((self.key_page() + self.value_page()) * size_of::<f32>()) as u64
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct KvLayer {
    shape: PageShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvLayer {
    /// `pages` pages of zeros. The operating system hands out the memory when it is first written.
    pub(crate) fn new(shape: PageShape, pages: usize) -> Self {
        Self {
            shape,
            keys: vec![0.0; pages * shape.key_page()],
            values: vec![0.0; pages * shape.value_page()],
        }
    }

    /// Bytes of its memory.
    pub(crate) fn bytes(&self) -> u64 {
        (size_of_val(self.keys.as_slice()) + size_of_val(self.values.as_slice())) as u64
    }

    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    /// Keys of a head in a page: `[dimension, position]`.
    #[inline(always)]
    pub(crate) fn keys(&self, page: PageId, head: usize) -> &[f32] {
        let size = self.shape.head_dim * self.shape.page_size;
        &self.keys[(page.0 as usize * self.shape.kv_heads + head) * size..][..size]
    }

    /// Values of a head in a page: `[position, padded dimension]`.
    #[inline(always)]
    pub(crate) fn values(&self, page: PageId, head: usize) -> &[f32] {
        let size = self.shape.value_width() * self.shape.page_size;
        &self.values[(page.0 as usize * self.shape.kv_heads + head) * size..][..size]
    }

    /// Writes one position: `key` and `value` are `[kv_heads * head_dim]`.
    pub(crate) fn write(&mut self, page: PageId, offset: usize, key: &[f32], value: &[f32]) {
        let PageShape { page_size, kv_heads, head_dim } = self.shape;
        let value_width = self.shape.value_width();
        let first_head = page.0 as usize * kv_heads;
        let heads = key.chunks_exact(head_dim).zip(value.chunks_exact(head_dim));
        for (head, (key, value)) in (first_head..).zip(heads) {
            let keys = &mut self.keys[head * head_dim * page_size..][..head_dim * page_size];
            for (to, from) in keys[offset..].iter_mut().step_by(page_size).zip(key) {
                *to = *from;
            }
            let start = (head * page_size + offset) * value_width;
            self.values[start..start + head_dim].copy_from_slice(value);
        }
    }

    /// Copies a whole page within this memory.
    pub(crate) fn copy_page(&mut self, from: PageId, to: PageId) {
        let copy = |memory: &mut [f32], size: usize| {
            let start = from.0 as usize * size;
            memory.copy_within(start..start + size, to.0 as usize * size);
        };
        copy(&mut self.keys, self.shape.key_page());
        copy(&mut self.values, self.shape.value_page());
    }

    /// Copies a whole page from other memory of the same shape.
    pub(crate) fn copy_page_from(&mut self, other: &Self, from: PageId, to: PageId) {
        let copy = |to_memory: &mut [f32], from_memory: &[f32], size: usize| {
            to_memory[to.0 as usize * size..][..size]
                .copy_from_slice(&from_memory[from.0 as usize * size..][..size]);
        };
        copy(&mut self.keys, &other.keys, self.shape.key_page());
        copy(&mut self.values, &other.values, self.shape.value_page());
    }
}
