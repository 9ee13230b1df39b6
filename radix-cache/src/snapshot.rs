//! The structure of a cache as plain data, for replicas that restart and for tests.

use std::collections::HashSet;

use crate::cache::RadixCache;
use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::node::NodeIndex;
use crate::retention::Retention;
use crate::store::NO_PAGE;
use crate::types::{Namespace, PageId, Token};

/// Everything a cache knows, except its locks, which belong to sequences, and its copies on the
/// host, which belong to the process: neither survives a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// Tokens a page holds.
    pub page_size: usize,
    /// The cache's own clock: the number of uses so far.
    pub clock: u64,
    /// The windowed group's own clock; 0 without one.
    #[cfg_attr(feature = "serde", serde(default))]
    pub windowed_clock: u64,
    /// The caller's clock, in ticks.
    pub now: u64,
    /// Nodes, parents first.
    pub nodes: Vec<SnapshotNode>,
}

/// One node of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SnapshotNode {
    /// Whose it is.
    pub namespace: Namespace,
    /// The place of its parent in the list; none for the start of a prompt.
    pub parent: Option<usize>,
    /// Its tokens, `page_size` for each page.
    pub tokens: Vec<Token>,
    /// Its pages.
    pub pages: Vec<PageId>,
    /// When it was last used, by the cache's own clock.
    pub used: u64,
    /// When it was inserted, by the cache's own clock.
    pub created: u64,
    /// How often it was matched, if the policy asks for it.
    pub hits: u32,
    /// How it is retained.
    pub retention: Retention,
    /// Those of its pages that have a windowed page too.
    #[cfg_attr(feature = "serde", serde(default))]
    pub windowed: Vec<SnapshotWindowedPage>,
}

/// One page of the windowed group, in a [`SnapshotNode`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SnapshotWindowedPage {
    /// Which of the node's pages it belongs to, counted from 0.
    pub place: u32,
    /// The page.
    pub page: PageId,
    /// Whether a sequence or a match ended so that it was in its window.
    pub near_end: bool,
    /// When a window last left it, by the group's own clock.
    pub used: u64,
    /// When it was put, by the group's own clock.
    pub created: u64,
    /// How often a match ended with it in its window.
    pub hits: u32,
    /// How it is retained.
    pub retention: Retention,
}

impl RadixCache {
    /// The cache as plain data.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut order = self.tree.parents_first();
        order.retain(|&node| self.tree.node(node).device);
        let mut places = hashbrown::HashMap::with_capacity(order.len());
        let mut nodes = Vec::with_capacity(order.len());
        for index in order {
            let node = self.tree.node(index);
            let mut tokens = Vec::with_capacity(node.run.pages as usize * self.page_size());
            let mut pages = Vec::with_capacity(node.run.pages as usize);
            for (some_tokens, some_pages) in self.tree.store.extents_of(node.run) {
                tokens.extend_from_slice(some_tokens);
                pages.extend_from_slice(some_pages);
            }
            places.insert(index, nodes.len());
            nodes.push(SnapshotNode {
                namespace: self.tree.namespace_of(index),
                parent: places.get(&node.parent).copied(),
                tokens,
                pages,
                used: node.used,
                created: node.created,
                hits: node.hits,
                retention: node.retention,
                windowed: self.windowed_snapshot(index),
            });
        }
        Snapshot {
            page_size: self.page_size(),
            clock: self.clock,
            windowed_clock: self.windowed.as_ref().map_or(0, |group| group.clock),
            now: self.now,
            nodes,
        }
    }

    /// Builds a cache that holds, matches and evicts what the one of the snapshot would.
    /// Statistics start anew, and nothing is locked.
    ///
    /// # Errors
    ///
    /// [`CacheError::Snapshot`] if the snapshot is no tree, or is of another page size than
    /// `config`; and those of [`new`](Self::new).
    pub fn restore(config: CacheConfig, snapshot: &Snapshot) -> Result<Self, CacheError> {
        let mut cache = Self::new(config)?;
        let page_size = cache.page_size();
        if snapshot.page_size != page_size {
            return Err(broken(0, "is of another page size"));
        }
        cache.clock = snapshot.clock;
        cache.advance(snapshot.now);
        if let Some(group) = &mut cache.windowed {
            group.clock = snapshot.windowed_clock;
        }
        let (mut seen, mut seen_windowed) = (HashSet::new(), HashSet::new());
        let mut places: Vec<NodeIndex> = Vec::with_capacity(snapshot.nodes.len());
        for (place, node) in snapshot.nodes.iter().enumerate() {
            if node.pages.is_empty() || node.tokens.len() != node.pages.len() * page_size {
                return Err(broken(place, "has tokens that don't fill its pages"));
            }
            if !node.pages.iter().all(|page| seen.insert(*page)) {
                return Err(broken(place, "has a page that is already cached"));
            }
            if node.pages.contains(&NO_PAGE) {
                return Err(broken(place, "has the page number that stands for no page"));
            }
            if node.used > snapshot.clock || node.created > snapshot.clock {
                return Err(broken(place, "was used after the snapshot"));
            }
            let parent = match node.parent {
                None => cache.root(node.namespace)?,
                Some(parent) => *places.get(parent).ok_or(broken(place, "precedes its parent"))?,
            };
            if cache.tree.namespace_of(parent) != node.namespace {
                return Err(broken(place, "is in another namespace than its parent"));
            }
            if cache.tree.child(parent, &node.tokens[..page_size]).is_some() {
                return Err(broken(place, "begins like one of its siblings"));
            }
            cache.reserve(node.pages.len())?;
            let leaf = cache.tree.add_leaf(
                parent,
                &node.tokens,
                &node.pages,
                node.created,
                node.retention,
            )?;
            let restored = cache.tree.node_mut(leaf);
            restored.used = node.used;
            restored.hits = node.hits;
            cache.counts.total += node.pages.len();
            cache.counts.evictable += node.pages.len();
            cache.note_stored(leaf, 0);
            cache
                .restore_windowed(leaf, node, &mut seen_windowed)
                .map_err(|what| broken(place, what))?;
            places.push(leaf);
        }
        // What was locked had yet to tell its ancestors when it was used.
        for &place in places.iter().rev() {
            let (parent, used) = (cache.tree.node(place).parent, cache.tree.node(place).used);
            let above = cache.tree.node_mut(parent);
            above.used = above.used.max(used);
        }
        for leaf in places {
            if cache.tree.node(leaf).children == 0 {
                cache.file(leaf);
            }
        }
        Ok(cache)
    }
}

fn broken(node: usize, what: &'static str) -> CacheError {
    CacheError::Snapshot { node, what }
}
