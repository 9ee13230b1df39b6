//! How pages of the windowed group come and go by themselves.

use crate::error::CacheError;
use crate::residency::Residency;
use crate::tree::NodeIndex;
use crate::types::{PageGroup, PageId, Tier};
use crate::windowed::stretches;

impl Residency {
    /// Offers pages for the last positions before `end`. Returns how many were taken.
    pub(crate) fn put_windowed(
        &mut self,
        end: NodeIndex,
        pages: &[PageId],
        canonical: &mut Vec<PageId>,
    ) -> Result<usize, CacheError> {
        let group = self.windowed.as_mut().ok_or(CacheError::NoWindowedGroup)?;
        let from = canonical.len();
        let taken = group.put(&self.tree, end, pages, canonical)?;
        self.statistics.windowed_inserted += taken as u64;
        self.statistics.windowed_duplicate += (pages.len() - taken) as u64;
        if self.events.is_some() {
            let first = self.tree.node(end).end - pages.len() as u32;
            self.note_put(end, first, |at| canonical[from + at] == pages[at]);
        }
        Ok(taken)
    }

    /// Frees up to `pages` windowed pages that no window covers.
    pub(crate) fn evict_windowed(&mut self, pages: usize, freed: &mut Vec<PageId>) -> usize {
        let Some(group) = &mut self.windowed else {
            return 0;
        };
        let before = freed.len();
        let mut told = Vec::new();
        while freed.len() - before < pages
            && let Some(evicted) = group.evict()
        {
            freed.push(evicted.page);
            if self.events.is_some() {
                told.push((evicted.root, evicted.slot as usize));
            }
        }
        let evicted = freed.len() - before;
        self.statistics.windowed_removed += evicted as u64;
        if let Some(log) = &mut self.events {
            for of_one in told.chunk_by(|(root, _), (next, _)| root == next) {
                let slots = of_one.iter().map(|(_, slot)| *slot);
                log.windowed_removed(&self.tree, of_one[0].0, slots);
            }
        }
        evicted
    }

    /// Lets the windowed pages go that belong to an unpinned node's pages from `from` on, which
    /// are about to leave the cache.
    pub(super) fn drop_windowed(&mut self, node: NodeIndex, from: u32) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        if let Some(log) = &mut self.events {
            let leaving = group.pages_in(&self.tree, node).skip_while(|(place, _)| *place < from);
            let slots = leaving.map(|(_, page)| page.slot as usize);
            log.windowed_removed(&self.tree, self.tree.root_of(node), slots);
        }
        self.statistics.windowed_removed += group.drop_from(&self.tree, node, from) as u64;
    }

    /// Tells of windowed pages that were put behind the position `first`: `is_new` says which.
    fn note_put(&mut self, end: NodeIndex, first: u32, is_new: impl Fn(usize) -> bool) {
        for node in self.tree.range(first, end) {
            let start = self.tree.node(node).start();
            let places = first.saturating_sub(start)..self.tree.node(node).run.pages;
            let new = places.filter(|place| is_new((start + place - first) as usize));
            self.note_windowed(node, new.collect());
        }
    }

    /// Tells of a node's pages, by their places in it, that have windowed pages anew.
    pub(super) fn note_windowed(&mut self, node: NodeIndex, places: Vec<u32>) {
        if let Some(log) = &mut self.events {
            for pages in stretches(places) {
                log.stored(&self.tree, node, pages, (Tier::Device, PageGroup::Windowed));
            }
        }
    }
}
