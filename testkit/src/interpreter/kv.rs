//! Paged keys and values of one page group.

use engine_core::PageId;
use engine_core::model::PageGroup;

/// K and V of a group's layers, in pages.
///
/// Everything starts as NaN: whoever reads a position that no step wrote gets logits that aren't
/// numbers, and an error instead of a plausible token.
#[derive(Clone, Debug)]
pub(super) struct PagedKv {
    page_size: usize,
    layers: usize,
    /// Columns of K, and of V: `kv_heads * head_dim`.
    width: usize,
    /// `[page, layer, offset, K or V, width]`
    data: Vec<f32>,
}

/// Which half of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Value,
}

impl PagedKv {
    /// Memory of `pages` pages of `page_size` positions.
    pub(super) fn new(group: &PageGroup, pages: usize, page_size: usize) -> Self {
        let layers = group.layers as usize;
        let width = group.kv_heads as usize * group.head_dim as usize;
        let data = vec![f32::NAN; pages * layers * page_size * 2 * width];
        Self { page_size, layers, width, data }
    }

    /// K or V of an absolute position, all heads, through a sequence's page table.
    pub(super) fn read(
        &self,
        table: &[PageId],
        layer: usize,
        position: usize,
        part: Part,
    ) -> &[f32] {
        let start = self.start(table, layer, position, part);
        &self.data[start..start + self.width]
    }

    /// Writes K and V of an absolute position.
    pub(super) fn write(
        &mut self,
        table: &[PageId],
        layer: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        for (part, row) in [(Part::Key, key), (Part::Value, value)] {
            let start = self.start(table, layer, position, part);
            self.data[start..start + self.width].copy_from_slice(row);
        }
    }

    /// Copies a page, all layers of it.
    pub(super) fn copy_page(&mut self, from: PageId, to: PageId) {
        let (from, to) = (self.page_range(from), self.page_range(to));
        self.data.copy_within(from, to.start);
    }

    /// Copies a page from another tier.
    pub(super) fn copy_page_from(&mut self, other: &Self, from: PageId, to: PageId) {
        let to = self.page_range(to);
        self.data[to].copy_from_slice(&other.data[other.page_range(from)]);
    }

    fn start(&self, table: &[PageId], layer: usize, position: usize, part: Part) -> usize {
        let page = table[position / self.page_size].0 as usize;
        let position = (page * self.layers + layer) * self.page_size + position % self.page_size;
        (2 * position + usize::from(part == Part::Value)) * self.width
    }

    fn page_range(&self, page: PageId) -> std::ops::Range<usize> {
        let len = self.layers * self.page_size * 2 * self.width;
        let page = page.0 as usize;
        page * len..(page + 1) * len
    }
}
