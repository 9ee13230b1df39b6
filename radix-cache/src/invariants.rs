//! Recomputes everything that the cache keeps up to date, and compares. Slow; for tests and
//! debug builds.

use std::collections::{HashMap, HashSet};

use crate::cache::RadixCache;
use crate::error::InvariantViolation;
use crate::tree::{Node, NodeIndex};
use crate::types::Counts;

macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(InvariantViolation { what: format!($($what)+) });
        }
    };
}

impl RadixCache {
    /// Checks the whole tree against its counters, locks and order of eviction. Costs time and
    /// memory in proportion to the cache.
    ///
    /// # Errors
    ///
    /// The first [`InvariantViolation`] found. There should never be one: it is a bug here.
    pub fn check_invariants(&self) -> Result<(), InvariantViolation> {
        let mut locks_at: HashMap<NodeIndex, u32> = HashMap::new();
        for end in self.locks.ends() {
            let live = self.tree.get(end).is_some_and(|node| node.live);
            ensure!(live, "a lock ends at {end:?}, which is gone");
            *locks_at.entry(end).or_default() += 1;
        }
        let mut children: HashMap<NodeIndex, (u32, u32)> = HashMap::new();
        for (_, node) in self.tree.iter() {
            let (count, pinned) = children.entry(node.parent).or_default();
            *count += 1;
            *pinned += u32::from(node.pins > 0);
        }
        let mut seen = HashSet::new();
        let mut counts = Counts::default();
        let mut idle_leaves = 0;
        let mut filed = 0;
        for (index, node) in self.tree.iter() {
            let (count, pinned) = children.get(&index).copied().unwrap_or_default();
            let locks = locks_at.get(&index).copied().unwrap_or_default();
            ensure!(node.children == count, "{index:?} miscounts its {count} children: {node:?}");
            ensure!(
                node.pins == pinned + locks,
                "{index:?} has {locks} locks and {pinned} pinned children: {node:?}"
            );
            if self.tree.is_root(index) {
                self.check_root(index, node)?;
                continue;
            }
            filed += 1;
            self.check_place(index, node)?;
            for (_, pages) in self.tree.store.extents_of(node.run) {
                for page in pages {
                    ensure!(seen.insert(*page), "{page} is cached twice");
                }
            }
            let pages = node.run.pages as usize;
            counts.total += pages;
            *(if node.pins > 0 { &mut counts.locked } else { &mut counts.evictable }) += pages;

            let idle_leaf = node.children == 0 && node.pins == 0;
            idle_leaves += usize::from(idle_leaf);
            let place = self.place_of(index);
            let expected = idle_leaf.then(|| self.expected_place(index));
            ensure!(place == expected, "{index:?} is filed at {place:?}, not {expected:?}");
        }
        ensure!(counts == self.counts, "the counts are {:?}, not {counts:?}", self.counts);
        ensure!(seen.len() == counts.total, "{} pages for {} places", seen.len(), counts.total);
        ensure!(
            self.tree.store.used() == counts.total,
            "{} slots for {} pages",
            self.tree.store.used(),
            counts.total
        );
        ensure!(
            self.leaves.len() + self.retained.len() == idle_leaves,
            "{} and {} leaves in order, not {idle_leaves}",
            self.leaves.len(),
            self.retained.len()
        );
        ensure!(
            self.tree.filed_children() == filed,
            "{} children on file, not {filed}",
            self.tree.filed_children()
        );
        let roots = self.tree.iter().filter(|(index, _)| self.tree.is_root(*index)).count();
        ensure!(self.roots.len() == roots, "{} roots on file, not {roots}", self.roots.len());
        Ok(())
    }

    fn check_root(&self, index: NodeIndex, node: &Node) -> Result<(), InvariantViolation> {
        let filed = self.roots.get(&self.tree.namespace_of(index));
        ensure!(filed == Some(&index), "root {index:?} is filed as {filed:?}");
        ensure!(node.run.pages == 0 && node.end == 0, "a root with pages: {node:?}");
        ensure!(node.pins > 0 || node.children > 0, "root {index:?} has no purpose");
        Ok(())
    }

    fn check_place(&self, index: NodeIndex, node: &Node) -> Result<(), InvariantViolation> {
        let parent = self.tree.get(node.parent).filter(|parent| parent.live);
        let Some(parent) = parent else {
            ensure!(false, "the parent of {index:?} is gone");
            return Ok(());
        };
        let page_size = self.page_size();
        let mut stretches = 0;
        for (tokens, pages) in self.tree.store.extents_of(node.run) {
            ensure!(tokens.len() == pages.len() * page_size, "a ragged stretch in {index:?}");
            stretches += pages.len();
        }
        ensure!(node.run.pages > 0, "{index:?} is empty");
        ensure!(stretches == node.run.pages as usize, "{index:?} has {stretches} pages: {node:?}");
        ensure!(
            node.end == parent.end + node.run.pages,
            "{index:?} ends at the wrong depth: {node:?}"
        );
        let found = self.tree.child(node.parent, self.tree.store.first_page(node.run));
        ensure!(found == Some(index), "its parent finds {found:?} in the place of {index:?}");
        Ok(())
    }
}
