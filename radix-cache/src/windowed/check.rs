//! Recomputes what the windowed group keeps up to date, and compares.

use std::collections::{HashMap, HashSet};

use crate::error::{InvariantViolation, ensure};
use crate::tree::{NodeIndex, Tree};
use crate::types::{PageId, WindowedCounts};
use crate::windowed::group::{EntryIndex, WindowedGroup, WindowedPage};

impl WindowedGroup {
    /// Checks every page against the tree, the ends of all locks and the order of eviction.
    pub(crate) fn check(
        &self,
        tree: &Tree,
        ends: impl Iterator<Item = NodeIndex>,
    ) -> Result<(), InvariantViolation> {
        let mut holds: HashMap<usize, u32> = HashMap::new();
        for end in ends {
            for (_, slot) in tree.slots_on_path(end, self.window(tree.node(end).end)) {
                *holds.entry(slot).or_default() += 1;
            }
        }
        let mut seen = HashSet::new();
        let mut counts = WindowedCounts::default();
        for (index, node) in tree.iter() {
            for (position, slot) in (node.start()..).zip(tree.store().slots(node.run)) {
                let held = holds.get(&slot).copied().unwrap_or_default();
                let noted = self.holds[slot];
                ensure!(noted == held, "{held} windows cover page {position}, not {noted}");
                if let Some(page) = self.at(slot) {
                    let at = (tree.root_of(index), position, slot);
                    self.check_page(page, at, &mut seen)?;
                    counts.total += 1;
                    *(if held > 0 { &mut counts.locked } else { &mut counts.evictable }) += 1;
                }
            }
        }
        let own = self.counts();
        ensure!(counts == own, "the windowed counts are {own:?}, not {counts:?}");
        let present = self.of_slot.iter().filter(|&&index| index != EntryIndex::NONE).count();
        let listed = self.pages.len() - self.free.len();
        ensure!((present, listed) == (own.total, own.total), "{present} of {listed}: {own:?}");
        let held = self.holds.iter().filter(|&&holds| holds > 0).count();
        ensure!(held == holds.len(), "windows cover {held} slots, not {}", holds.len());
        Ok(())
    }

    fn check_page(
        &self,
        page: &WindowedPage,
        at: (NodeIndex, u32, usize),
        seen: &mut HashSet<PageId>,
    ) -> Result<(), InvariantViolation> {
        let own = (page.root, page.position, page.slot as usize);
        ensure!(own == at, "{page:?} is at {at:?}");
        ensure!(seen.insert(page.page), "{} is cached twice in the windowed group", page.page);
        let filed = self.order.place_of(self.of_slot[at.2]);
        let expected = self.expected_place(page);
        // Those that are held are put right when they are let go, the others when they come up.
        let is_in_time = filed.is_some_and(|filed| filed <= expected) || self.holds[at.2] > 0;
        ensure!(is_in_time, "{page:?} is filed at {filed:?}, after {expected:?}");
        Ok(())
    }
}
