//! From a [`Program`](backend_api::program::Program) to StableHLO.
//!
//! A model becomes a handful of modules, which share arrays that stay on the devices:
//!
//! ```text
//!             tokens, slots,        page tables   weights    KV pages
//!             positions, outputs        │            │          │ donated
//!                   │                   ▼            ▼          ▼
//!   next tokens ──► step (one module for each bucket) ──────► KV pages
//!        ▲                                   │
//!        │ donated                           ▼ logits
//!        └──────────────────────────────── sampler (one for each number of outputs) ──► results
//! ```
//!
//! The rest ([`state`]) keeps what is resident up to date: fresh memory, page tables, copies of
//! pages, counts of tokens.

pub(crate) mod attention;
mod experts;
mod ops;
mod packed;
pub(crate) mod placement;
pub(crate) mod sampler;
pub(crate) mod state;
pub(crate) mod step;
#[cfg(test)]
mod tests;

use backend_api::{BackendError, program::Program};

use crate::{
    pallas::Kernels,
    stablehlo::{Element, Function, Input, Output, Type},
};
use placement::Placement;

/// A program as the devices have it.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) program: Program,
    pub(crate) placement: Placement,
    pub(crate) geometry: Geometry,
    /// The kernels that attend; `None` for the portable attention.
    pub(crate) kernels: Option<Kernels>,
}

/// The sizes of what a program keeps on the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Tokens in a page.
    pub(crate) page_size: usize,
    /// Slots, without the padding slot, which is the one behind the last.
    pub(crate) slots: usize,
    /// For each of the program's page groups its pages, without the padding page, which is the one behind the last.
    pub(crate) pages: Vec<usize>,
    /// Entries of a slot's page table: the pages of the longest sequence, rounded up to whole
    /// [`Geometry::pages_per_block`].
    pub(crate) table_len: usize,
    /// The element type of KV.
    pub(crate) kv_element: Element,
}

impl Geometry {
    /// Positions that one turn of the attention loop reads, at most: a page is not divided.
    const KV_BLOCK: usize = 128;

    /// Sizes for sequences of up to `context_length` tokens.
    pub(crate) fn new(
        page_size: usize,
        slots: usize,
        pages: Vec<usize>,
        context_length: usize,
        kv_element: Element,
    ) -> Self {
        let pages_per_block = (Self::KV_BLOCK / page_size).max(1);
        let table_len = context_length.div_ceil(page_size).next_multiple_of(pages_per_block);
        Self { page_size, slots, pages, table_len, kv_element }
    }

    /// Pages that one turn of the attention loop reads of each sequence.
    pub(crate) fn pages_per_block(&self) -> usize {
        (Self::KV_BLOCK / self.page_size).max(1)
    }

    /// The slot of padding tokens. Its page table names the padding page only.
    pub(crate) fn padding_slot(&self) -> usize {
        self.slots
    }

    /// The page that padding tokens write.
    pub(crate) fn padding_page(&self, group: usize) -> usize {
        self.pages[group]
    }

    /// The KV arrays, layer after layer, group after group: `[pages, page_size, 2 * kv_heads,
    /// head_dim]`, where heads `2 h` and `2 h + 1` are K and V of KV head `h`.
    pub(crate) fn kv_types(&self, program: &Program, placement: &Placement) -> Vec<Type> {
        let mut types = Vec::new();
        for (index, group) in program.groups().iter().enumerate() {
            let heads = placement.kv_heads(group.kv_heads as usize);
            let dims = [self.pages[index] + 1, self.page_size, 2 * heads, group.head_dim as usize];
            types.extend((0..group.layers).map(|_| Type::new(self.kv_element, &dims)));
        }
        types
    }

    /// One page table for each group: `[slots, table_len]`.
    pub(crate) fn table_types(&self) -> Vec<Type> {
        let table = Type::new(Element::I32, &[self.slots + 1, self.table_len]);
        vec![table; self.pages.len()]
    }

    /// The token that the program produced last for each slot.
    pub(crate) fn next_tokens_type(&self) -> Type {
        Type::new(Element::I32, &[self.slots + 1])
    }
}

/// A module, and what it takes and gives.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    pub(crate) text: String,
    pub(crate) partitions: usize,
}

impl Module {
    fn finish(function: Function, inputs: &[Input], outputs: &[Output], partitions: usize) -> Self {
        Self { text: function.finish(inputs, outputs, partitions), partitions }
    }
}

fn unsupported(what: impl Into<String>) -> BackendError {
    BackendError::Unsupported { backend: "xla", what: what.into() }
}
