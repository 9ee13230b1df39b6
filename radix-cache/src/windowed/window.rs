//! Windows: what a match needs, and what a lock holds of the windowed group.

use core::ops::Range;

use crate::error::CacheError;
use crate::order::Record;
use crate::tree::{Descent, Node, NodeIndex, Tree};
use crate::types::{PageId, Retention, Token};
use crate::windowed::group::{WindowedGroup, WindowedPage};

/// What is cached of a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// How far it can be used.
    pub(crate) descent: Descent,
    /// How far its full pages go.
    pub(crate) full_pages: usize,
}

/// Follows a match and remembers where it could end.
#[derive(Debug)]
struct Scan<'a> {
    group: &'a WindowedGroup,
    /// Pages so far.
    position: u32,
    /// How many of the last ones have a windowed page.
    present: u32,
    /// The last position that has all the windowed pages that its window needs.
    valid: u32,
}

impl Scan<'_> {
    fn visit(&mut self, slots: Range<usize>) {
        for is_there in self.group.present(slots) {
            self.position += 1;
            self.present = if is_there { self.present + 1 } else { 0 };
            if self.present >= self.position.min(self.group.reach) {
                self.valid = self.position;
            }
        }
    }
}

/// Follows `tokens` down from a root as far as they can be used. `visit` sees each node on the way
/// with the number of its full pages that matched, maybe further than that.
pub(crate) fn find(
    tree: &Tree,
    group: Option<&WindowedGroup>,
    root: NodeIndex,
    tokens: &[Token],
    mut visit: impl FnMut(NodeIndex, u32),
) -> Found {
    let Some(group) = group else {
        let descent = tree.descend(root, tokens, Node::is_on_device, visit);
        return Found { descent, full_pages: descent.pages };
    };
    let mut scan = Scan { group, position: 0, present: 0, valid: 0 };
    let full = tree.descend(root, tokens, Node::is_on_device, |node, matched| {
        visit(node, matched);
        for (_, slots) in tree.store().stretches(tree.node(node).run, 0..matched) {
            scan.visit(slots);
        }
    });
    Found { descent: tree.cut(&full, scan.valid), full_pages: full.pages }
}

impl WindowedGroup {
    /// A lock from here on holds the window in front of `end`.
    pub(crate) fn open(&mut self, tree: &Tree, end: NodeIndex) {
        for (_, slots) in tree.stretches_on_path(end, self.window(tree.node(end).end)) {
            self.hold(slots);
        }
    }

    /// A match ended at `end`: the pages in front of it, which are held, have proved their use.
    pub(crate) fn hit(&mut self, tree: &Tree, end: NodeIndex) {
        self.change_window(tree, end, |hit| {
            hit.near_end = true;
            hit.record.hit();
        });
    }

    /// Raises the retention of the pages in the window in front of `end`, which are held.
    pub(crate) fn raise(&mut self, tree: &Tree, end: NodeIndex, retention: Retention) {
        self.change_window(tree, end, |kept| {
            kept.record.raise(retention);
        });
    }

    /// A lock moved on, from the position `from` (in pages) to `end`, on the same path.
    pub(crate) fn follow(&mut self, tree: &Tree, from: u32, end: NodeIndex) {
        self.clock += 1;
        let (old, new) = (self.window(from), self.window(tree.node(end).end));
        for (_, slots) in tree.stretches_on_path(end, new.start.max(from)..new.end) {
            self.hold(slots);
        }
        let passed = old.start..new.start.min(from);
        for (_, slots) in tree.stretches_on_path(end, passed) {
            self.let_go(slots);
        }
    }

    /// A lock that ended at `end` is gone. What a sequence leaves behind, with its `retention`,
    /// is kept for the next one; without any, it is not.
    pub(crate) fn close(&mut self, tree: &Tree, end: NodeIndex, retention: Option<Retention>) {
        if let Some(retention) = retention {
            self.change_window(tree, end, |kept| {
                kept.near_end = true;
                kept.record.raise(retention);
            });
        }
        self.clock += 1;
        for (_, slots) in tree.stretches_on_path(end, self.window(tree.node(end).end)) {
            self.let_go(slots);
        }
    }

    /// Appends the pages in front of `end`, back to the first that is missing, and returns the
    /// position of the first one in pages.
    pub(crate) fn pages_before(&self, tree: &Tree, end: NodeIndex, pages: &mut Vec<PageId>) -> u32 {
        let window = self.window(tree.node(end).end);
        let (first, from) = (window.start, pages.len());
        pages.resize(from + window.len(), PageId::NONE);
        for (position, slot) in tree.slots_on_path(end, window) {
            if let Some(there) = self.at(slot) {
                pages[from + (position - first) as usize] = there.page;
            }
        }
        let holes =
            pages[from..].iter().rposition(|&page| page == PageId::NONE).map_or(0, |at| at + 1);
        pages.drain(from..from + holes);
        first + holes as u32
    }

    /// Takes pages for the last positions before `end` that have none, and appends those that all
    /// have then. Returns how many were taken.
    pub(crate) fn put(
        &mut self,
        tree: &Tree,
        end: NodeIndex,
        pages: &[PageId],
        canonical: &mut Vec<PageId>,
    ) -> Result<usize, CacheError> {
        let last = tree.node(end).end;
        let beyond = CacheError::WindowedBeyondStart { pages: pages.len(), held: last as usize };
        let first = (last as usize).checked_sub(pages.len()).ok_or(beyond)?;
        let positions = first as u32..last;
        if pages.contains(&PageId::NONE) {
            return Err(CacheError::ReservedPage);
        }
        let of = |position: u32| pages[position as usize - first];
        for (position, slot) in tree.slots_on_path(end, positions.clone()) {
            if self.at(slot).is_some_and(|there| there.page == of(position)) {
                return Err(CacheError::PageAlreadyCached { page: of(position) });
            }
        }
        self.clock += 1;
        let (root, from) = (tree.root_of(end), canonical.len());
        let record = Record::new(self.clock, Retention::default());
        canonical.extend_from_slice(pages);
        let mut taken = 0;
        for (position, slot) in tree.slots_on_path(end, positions) {
            if let Some(there) = self.at(slot) {
                canonical[from + position as usize - first] = there.page;
            } else {
                self.add(WindowedPage::new(of(position), (root, position, slot), record));
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Lets the pages go that belong to an unpinned node's pages from `from` on, which are about
    /// to leave the cache. Returns how many they are.
    pub(crate) fn drop_from(&mut self, tree: &Tree, node: NodeIndex, from: u32) -> usize {
        let slots = tree.store().slots(tree.node(node).run).skip(from as usize);
        let mut dropped = 0;
        for slot in slots {
            let page = self.remove(slot).map(|removed| removed.page);
            dropped += usize::from(page.is_some());
            self.leave(page);
        }
        dropped
    }

    /// A node's pages that have windowed pages: their places in it.
    pub(crate) fn pages_in(
        &self,
        tree: &Tree,
        node: NodeIndex,
    ) -> impl Iterator<Item = (u32, &WindowedPage)> {
        let slots = (0..).zip(tree.store().slots(tree.node(node).run));
        slots.filter_map(|(place, slot)| Some((place, self.at(slot)?)))
    }

    /// Changes the pages in the window in front of `end`.
    fn change_window(&mut self, tree: &Tree, end: NodeIndex, change: impl Fn(&mut WindowedPage)) {
        for (_, slots) in tree.stretches_on_path(end, self.window(tree.node(end).end)) {
            self.change(slots, &change);
        }
    }
}

/// Ascending places, gathered into stretches without gaps.
pub(crate) fn stretches(places: Vec<u32>) -> Vec<Range<u32>> {
    let ranges = places.chunk_by(|place, next| place + 1 == *next);
    ranges.filter_map(|range| Some(*range.first()?..range.last()? + 1)).collect()
}
