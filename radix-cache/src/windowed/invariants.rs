//! Recomputes what the windowed group keeps up to date, and compares.

use std::collections::{HashMap, HashSet};

use crate::cache::RadixCache;
use crate::error::InvariantViolation;
use crate::invariants::ensure;
use crate::node::NodeIndex;
use crate::types::{PageId, WindowedCounts};
use crate::windowed::group::{WindowedGroup, WindowedPage};

impl RadixCache {
    /// Checks every windowed page against the tree, the locks and the order of eviction.
    pub(crate) fn check_windowed(&self) -> Result<(), InvariantViolation> {
        let Some(group) = &self.windowed else {
            let none = self.counts().windowed == WindowedCounts::default();
            ensure!(none, "windowed pages without a windowed group");
            return Ok(());
        };
        let mut holds: HashMap<usize, u32> = HashMap::new();
        for end in self.locks.ends() {
            let window = group.window(self.tree.node(end).end);
            for (_, slot) in self.tree.slots_on_path(end, window) {
                *holds.entry(slot).or_default() += 1;
            }
        }
        let mut seen = HashSet::new();
        let mut counts = WindowedCounts::default();
        for (index, node) in self.tree.iter() {
            for (position, slot) in (node.start()..).zip(self.tree.store.slots(node.run)) {
                let held = holds.get(&slot).copied().unwrap_or_default();
                ensure!(
                    group.holds(slot) == held,
                    "{held} windows cover page {position} of {index:?}, not {}",
                    group.holds(slot)
                );
                if let Some(page) = group.at(slot) {
                    self.check_windowed_page(group, page, (index, position, slot), &mut seen)?;
                    counts.total += 1;
                    *(if held > 0 { &mut counts.locked } else { &mut counts.evictable }) += 1;
                }
            }
        }
        ensure!(
            counts == group.counts,
            "the windowed counts are {:?}, not {counts:?}",
            group.counts
        );
        ensure!(
            group.occupied() == (counts.total, holds.len()) && group.listed() == counts.total,
            "pages and windows on free slots: {:?} of {counts:?}",
            group.occupied()
        );
        Ok(())
    }

    fn check_windowed_page(
        &self,
        group: &WindowedGroup,
        page: &WindowedPage,
        (node, position, slot): (NodeIndex, u32, usize),
        seen: &mut HashSet<PageId>,
    ) -> Result<(), InvariantViolation> {
        let root = self.tree.root_of(node);
        ensure!(
            (page.slot as usize, page.position, page.root) == (slot, position, root),
            "{page:?} is at page {position} of {node:?}"
        );
        ensure!(seen.insert(page.page), "{} is cached twice in the windowed group", page.page);
        let (filed, expected) = (group.filed_place(slot), group.expected_place(page));
        // Those that are held are put right when they are let go, the others when they come up.
        let is_in_time = filed.is_some_and(|filed| filed <= expected) || group.holds(slot) > 0;
        ensure!(is_in_time, "{page:?} is filed at {filed:?}, after {expected:?}");
        Ok(())
    }
}
