//! The windowed group's part of a snapshot.

use std::collections::HashSet;

use crate::cache::RadixCache;
use crate::node::NodeIndex;
use crate::order::Record;
use crate::snapshot::{SnapshotNode, SnapshotWindowedPage};
use crate::store::NO_PAGE;
use crate::types::PageId;
use crate::windowed::WindowedPage;

impl RadixCache {
    /// A node's windowed pages as plain data.
    pub(crate) fn windowed_snapshot(&self, node: NodeIndex) -> Vec<SnapshotWindowedPage> {
        let pages = self.windowed_in(node).map(|(place, there)| {
            let Record { used, created, hits, retention } = there.record;
            let (page, near_end) = (there.page, there.near_end);
            SnapshotWindowedPage { place, page, near_end, used, created, hits, retention }
        });
        pages.collect()
    }

    /// Gives a leaf that was just restored its windowed pages. What is wrong with them, if they
    /// can't be.
    pub(crate) fn restore_windowed(
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
        let slots: Vec<usize> = self.tree.store.slots(run).collect();
        let group = self.windowed.as_mut().ok_or("has windowed pages, which the cache has not")?;
        for page in &node.windowed {
            let slot = slots.get(page.place as usize).copied();
            let slot = slot.filter(|&slot| group.at(slot).is_none());
            let slot = slot.ok_or("has a windowed page in no place of its own")?;
            if page.page == NO_PAGE || !seen.insert(page.page) {
                return Err("has a windowed page that is already cached, or stands for no page");
            }
            if page.used > group.clock || page.created > group.clock {
                return Err("has a windowed page that was used after the snapshot");
            }
            let &SnapshotWindowedPage { page, place, near_end, used, created, hits, retention } =
                page;
            let record = Record { used, created, hits, retention };
            let new = WindowedPage::new(page, slot, root, start + place, 0);
            group.add(WindowedPage { near_end, record, ..new });
        }
        let places = self.windowed_in(leaf).map(|(place, _)| place).collect();
        if self.events.is_on() {
            for stretch in super::stretches(places) {
                self.note_windowed_stored(leaf, stretch);
            }
        }
        Ok(())
    }
}
