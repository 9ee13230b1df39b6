//! Figures for people and for metrics.

use crate::tree::Tree;
use crate::types::Counts;

/// What a cache has done since it was built. All counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Calls of [`acquire`](crate::RadixCache::acquire).
    pub requests: u64,
    /// Those that matched at least one page.
    pub requests_hit: u64,
    /// Tokens that were looked up by them.
    pub tokens: u64,
    /// Tokens that matched.
    pub tokens_hit: u64,
    /// Tokens that would have matched too, had the windowed pages been there that they need.
    pub tokens_out_of_window: u64,
    /// Pages that [`insert`](crate::RadixCache::insert) took over.
    pub pages_inserted: u64,
    /// Pages that it found present, computed twice by its callers.
    pub pages_duplicate: u64,
    /// Pages that were evicted or dropped.
    pub pages_removed: u64,
    /// Windowed pages that [`put_windowed`](crate::RadixCache::put_windowed) took over.
    pub windowed_inserted: u64,
    /// Windowed pages that it found present.
    pub windowed_duplicate: u64,
    /// Windowed pages that were evicted or dropped, alone or with their full pages.
    pub windowed_removed: u64,
}

/// What the tree looks like at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shape {
    /// Namespaces with anything in them, cached or locked.
    pub namespaces: usize,
    /// Nodes with pages.
    pub nodes: usize,
    /// Nodes without children.
    pub leaves: usize,
    /// The longest path, in nodes.
    pub depth: usize,
    /// The longest path, in tokens.
    pub longest_prefix: usize,
    /// Pages by state.
    pub pages: Counts,
}

/// Where the cache's memory is, in bytes reserved from the allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// Tokens and page numbers.
    pub contents: usize,
    /// Nodes, the table of children, extents and the order of eviction: what the tree itself costs,
    /// and all that the windowed group adds.
    pub structure: usize,
}

impl Shape {
    /// What a tree looks like. Visits every node.
    pub(crate) fn of(tree: &Tree, pages: Counts) -> Self {
        let mut shape = Self { namespaces: tree.namespaces(), pages, ..Self::default() };
        for (index, node) in tree.iter().filter(|(index, _)| !tree.is_root(*index)) {
            shape.nodes += 1;
            shape.longest_prefix = shape.longest_prefix.max(node.end as usize * tree.page_size());
            if node.children == 0 {
                shape.leaves += 1;
                shape.depth = shape.depth.max(tree.path(index).count());
            }
        }
        shape
    }
}
