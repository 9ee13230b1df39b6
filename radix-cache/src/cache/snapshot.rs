//! Snapshots, taken and restored.

use std::collections::HashSet;

use hashbrown::HashMap;

use crate::cache::RadixCache;
use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::order::Record;
use crate::snapshot::{Snapshot, SnapshotNode, SnapshotWindowedPage};
use crate::tree::NodeIndex;
use crate::types::PageId;
use crate::windowed::WindowedPage;

impl RadixCache {
    /// The cache as plain data.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let tree = &self.tree;
        let mut order = tree.parents_first();
        order.retain(|&node| tree.node(node).is_on_device());
        let mut places = HashMap::with_capacity(order.len());
        let mut nodes = Vec::with_capacity(order.len());
        for index in order {
            let node = tree.node(index);
            let (mut tokens, mut pages) = (Vec::new(), Vec::new());
            for (some_tokens, some_pages) in tree.store().extents_of(node.run) {
                tokens.extend_from_slice(some_tokens);
                pages.extend_from_slice(some_pages);
            }
            places.insert(index, nodes.len());
            nodes.push(SnapshotNode {
                namespace: tree.namespace_of(index),
                parent: places.get(&node.parent).copied(),
                tokens,
                pages,
                used: node.record.used,
                created: node.record.created,
                hits: node.record.hits,
                retention: node.record.retention(),
                windowed: self.windowed_snapshot(index),
            });
        }
        Snapshot {
            page_size: tree.page_size(),
            clock: tree.clock(),
            windowed_clock: self.windowed.as_ref().map_or(0, |group| group.clock()),
            now: self.device.now(),
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
        let mut restored = Self::new(config)?;
        let page_size = restored.tree.page_size();
        if snapshot.page_size != page_size {
            return Err(broken(0, "is of another page size"));
        }
        restored.tree.set_clock(snapshot.clock);
        restored.advance(snapshot.now);
        if let Some(group) = &mut restored.windowed {
            group.set_clock(snapshot.windowed_clock);
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
            if node.pages.contains(&PageId::NONE) {
                return Err(broken(place, "has the page number that stands for no page"));
            }
            if node.used > snapshot.clock || node.created > snapshot.clock {
                return Err(broken(place, "was used after the snapshot"));
            }
            let parent = match node.parent {
                None => restored.tree.root(node.namespace)?,
                Some(parent) => *places.get(parent).ok_or(broken(place, "precedes its parent"))?,
            };
            if restored.tree.namespace_of(parent) != node.namespace {
                return Err(broken(place, "is in another namespace than its parent"));
            }
            if restored.tree.child(parent, &node.tokens[..page_size]).is_some() {
                return Err(broken(place, "begins like one of its siblings"));
            }
            restored.reserve(node.pages.len())?;
            let record = Record::restored((node.used, node.created), node.hits, node.retention);
            let leaf = restored.tree.add_leaf(parent, &node.tokens, &node.pages, record)?;
            restored.device.add(node.pages.len(), false);
            restored.note_new(leaf, 0);
            restored
                .restore_windowed(leaf, node, &mut seen_windowed)
                .map_err(|what| broken(place, what))?;
            places.push(leaf);
        }
        // What was locked had yet to tell its ancestors when it was used.
        for &place in places.iter().rev() {
            restored.tree.tell_parent(place);
        }
        for leaf in places {
            restored.settle(leaf);
        }
        Ok(restored)
    }

    /// A node's windowed pages as plain data.
    fn windowed_snapshot(&self, node: NodeIndex) -> Vec<SnapshotWindowedPage> {
        let pages = self.windowed.iter().flat_map(|group| group.pages_in(&self.tree, node));
        let pages = pages.map(|(place, there)| SnapshotWindowedPage {
            place,
            page: there.page,
            near_end: there.near_end,
            used: there.record.used,
            created: there.record.created,
            hits: there.record.hits,
            retention: there.record.retention(),
        });
        pages.collect()
    }

    /// Gives a leaf that was just restored its windowed pages. What is wrong with them, if they
    /// can't be.
    fn restore_windowed(
        &mut self,
        leaf: NodeIndex,
        node: &SnapshotNode,
        seen: &mut HashSet<PageId>,
    ) -> Result<(), &'static str> {
        if node.windowed.is_empty() {
            return Ok(());
        }
        let root = self.tree.root_of(leaf);
        let (start, run) = (self.tree.node(leaf).start(), self.tree.node(leaf).run);
        let slots: Vec<usize> = self.tree.store().slots(run).collect();
        let group = self.windowed.as_mut().ok_or("has windowed pages, which the cache has not")?;
        let mut places = Vec::with_capacity(node.windowed.len());
        for there in &node.windowed {
            let slot = slots.get(there.place as usize).copied();
            let slot = slot.filter(|&slot| group.at(slot).is_none());
            let slot = slot.ok_or("has a windowed page in no place of its own")?;
            if there.page == PageId::NONE || !seen.insert(there.page) {
                return Err("has a windowed page that is already cached, or stands for no page");
            }
            if there.used > group.clock() || there.created > group.clock() {
                return Err("has a windowed page that was used after the snapshot");
            }
            let record = Record::restored((there.used, there.created), there.hits, there.retention);
            let mut new = WindowedPage::new(there.page, (root, start + there.place, slot), record);
            new.near_end = there.near_end;
            group.add(new);
            places.push(there.place);
        }
        places.sort_unstable();
        self.note_windowed(leaf, places);
        Ok(())
    }
}

fn broken(node: usize, what: &'static str) -> CacheError {
    CacheError::Snapshot { node, what }
}
