//! Pages of keys and values in memory.
//!
//! For each layer of a page group, elements by themselves (f32, f16, int8; see [`elements`]):
//!
//! - keys `[page, kv_head, dimension, position]`: sixteen neighbouring positions of one dimension
//!   are adjacent, so scores are computed with positions in lanes, without gathering or
//!   horizontal sums (pages smaller than sixteen positions are gathered first);
//! - values `[page, kv_head, position, dimension]`, dimensions padded to a multiple of sixteen:
//!   the weighted sum has dimensions in lanes;
//! - for int8, a scale for each head's key and value of a position: `[page, kv_head, position]`.
//!
//! Or in pairs, for dot products (bf16; see [`pairs`]): two dimensions of a key are adjacent, and
//! two positions of a value.

pub(crate) mod elements;
pub(crate) mod pairs;

use backend_api::{KvFormat, PageId};

use self::{
    elements::{Elements, F16, F32, I8},
    pairs::Pairs,
};
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

    /// Bytes of one page of one layer, keys and values. A format that this backend doesn't know
    /// counts as f32.
    pub(crate) fn page_bytes(self, format: KvFormat) -> u64 {
        let heads = self.kv_heads * self.page_size;
        let elements = heads * (self.head_dim + self.value_width());
        let bytes = match format {
            KvFormat::F16 => 2 * elements,
            KvFormat::Bf16 => 2 * (pairs::key_page(self) + pairs::value_page(self)),
            KvFormat::Int8 => elements + heads * 2 * size_of::<f32>(),
            _ => size_of::<f32>() * elements,
        };
        bytes as u64
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) enum KvLayer {
    F32(Elements<F32>),
    F16(Elements<F16>),
    Int8(Elements<I8>),
    Bf16(Pairs),
}

/// Calls an expression with the memory of whichever format it is.
macro_rules! with_kv {
    ($layer:expr, $kv:ident => $expression:expr) => {
        match $layer {
            $crate::kernels::kv::KvLayer::F32($kv) => $expression,
            $crate::kernels::kv::KvLayer::F16($kv) => $expression,
            $crate::kernels::kv::KvLayer::Int8($kv) => $expression,
            $crate::kernels::kv::KvLayer::Bf16($kv) => $expression,
        }
    };
}

impl KvLayer {
    /// `pages` pages of zeros; f32 for a format that this backend doesn't know. The operating system
    /// hands out the memory when it is first written.
    pub(crate) fn new(shape: PageShape, pages: usize, format: KvFormat) -> Self {
        match format {
            KvFormat::F16 => Self::F16(Elements::new(shape, pages)),
            KvFormat::Bf16 => Self::Bf16(Pairs::new(shape, pages)),
            KvFormat::Int8 => Self::Int8(Elements::new(shape, pages)),
            _ => Self::F32(Elements::new(shape, pages)),
        }
    }

    /// Bytes of its memory.
    pub(crate) fn bytes(&self) -> u64 {
        with_kv!(self, kv => kv.bytes())
    }

    pub(crate) fn shape(&self) -> PageShape {
        with_kv!(self, kv => kv.shape())
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
        // SAFETY: the caller's promise.
        with_kv!(self, kv => unsafe { kv.write(page, (head, offset), key, value) });
    }

    /// Copies a whole page within this memory.
    pub(crate) fn copy_page(&mut self, from: PageId, to: PageId) {
        let shape = self.shape();
        for (memory, size) in self.parts() {
            let start = from.0 as usize * size(shape);
            memory.copy_within(start..start + size(shape), to.0 as usize * size(shape));
        }
    }

    /// Copies a whole page from other memory of the same shape and format.
    pub(crate) fn copy_page_from(&mut self, other: &mut Self, from: PageId, to: PageId) {
        let shape = self.shape();
        for ((memory, size), (other, _)) in self.parts().into_iter().zip(other.parts()) {
            let size = size(shape);
            memory[to.0 as usize * size..][..size]
                .copy_from_slice(&other[from.0 as usize * size..][..size]);
        }
    }

    /// Every part of the memory in bytes, and how many bytes of it belong to a page.
    fn parts(&mut self) -> Vec<Part<'_>> {
        with_kv!(self, kv => kv.parts())
    }
}

/// Memory, and the bytes of it that belong to a page of some shape.
type Part<'a> = (&'a mut [u8], fn(PageShape) -> usize);
