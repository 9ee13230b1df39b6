//! Windows: what a match needs, and what a lock holds of the windowed group.

use crate::bugs::SeededBug;
use crate::cache::RadixCache;
use crate::node::{Node, NodeIndex};
use crate::retention::Retention;
use crate::tree::{Descent, Tree};
use crate::types::Token;
use crate::windowed::group::WindowedGroup;

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
    fn visit(&mut self, slots: impl Iterator<Item = usize>) {
        for slot in slots {
            self.position += 1;
            self.present = if self.group.at(slot).is_some() { self.present + 1 } else { 0 };
            if self.present >= self.position.min(self.group.reach) {
                self.valid = self.position;
            }
        }
    }
}

impl RadixCache {
    /// Follows `tokens` down from a root as far as they can be used. `visit` sees each node on the
    /// way with the number of its full pages that matched, maybe further than that.
    pub(crate) fn find(
        &self,
        root: NodeIndex,
        tokens: &[Token],
        mut visit: impl FnMut(NodeIndex, u32),
    ) -> Found {
        let tree = &self.tree;
        let Some(group) = &self.windowed else {
            let descent = tree.descend(root, tokens, Node::is_on_device, visit);
            return Found { descent, full_pages: descent.pages };
        };
        let mut scan = Scan { group, position: 0, present: 0, valid: 0 };
        let full = tree.descend(root, tokens, Node::is_on_device, |node, matched| {
            visit(node, matched);
            scan.visit(tree.store.slots(tree.node(node).run).take(matched as usize));
        });
        let is_valid = tree.planted.is(SeededBug::MatchIgnoresWindow);
        let descent = if is_valid { full } else { tree.cut(&full, scan.valid) };
        Found { descent, full_pages: full.pages }
    }

    /// A lock from here on holds the window in front of `end`.
    pub(crate) fn open_window(&mut self, end: NodeIndex) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        let window = group.window(self.tree.node(end).end);
        for (_, slot) in self.tree.slots_on_path(end, window) {
            group.hold(slot);
        }
    }

    /// A match ended at `end`: the pages in front of it have proved their use.
    pub(crate) fn hit_window(&mut self, end: NodeIndex) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        let window = group.window(self.tree.node(end).end);
        for (_, slot) in self.tree.slots_on_path(end, window) {
            if let Some(hit) = group.at_mut(slot) {
                hit.near_end = true;
                hit.record.hits = hit.record.hits.saturating_add(1);
            }
        }
    }

    /// A lock moved on, from the position `from` (in pages) to `end`, on the same path.
    pub(crate) fn move_window(&mut self, from: u32, end: NodeIndex) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        group.clock += 1;
        let (old, new) = (group.window(from), group.window(self.tree.node(end).end));
        for (_, slot) in self.tree.slots_on_path(end, new.start.max(from)..new.end) {
            group.hold(slot);
        }
        let mut passed = old.start..new.start.min(from);
        if self.tree.planted.is(SeededBug::InsertUnlocksWrongWindow) {
            passed = new.start..new.start + (passed.end - passed.start).min(new.end - new.start);
        }
        for (_, slot) in self.tree.slots_on_path(end, passed) {
            group.let_go(slot);
        }
    }

    /// A lock that ended at `end` is gone. What a sequence leaves behind, with its `retention`,
    /// is kept for the next one; without any, it is not.
    pub(crate) fn close_window(&mut self, end: NodeIndex, retention: Option<Retention>) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        group.clock += 1;
        let window = group.window(self.tree.node(end).end);
        for (_, slot) in self.tree.slots_on_path(end, window) {
            if let (Some(retention), Some(kept)) = (retention, group.at_mut(slot)) {
                kept.near_end = true;
                kept.record.retention = kept.record.retention.max(retention);
            }
            group.let_go(slot);
        }
    }

    /// Raises the retention of the pages in the window in front of `end`, which is held.
    pub(crate) fn raise_window(&mut self, end: NodeIndex, retention: Retention) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        let window = group.window(self.tree.node(end).end);
        for (_, slot) in self.tree.slots_on_path(end, window) {
            if let Some(kept) = group.at_mut(slot) {
                kept.record.retention = kept.record.retention.max(retention);
            }
        }
    }
}

impl Tree {
    /// The end of a shorter match than `descent`, which began at a root.
    fn cut(&self, descent: &Descent, pages: u32) -> Descent {
        let mut node = descent.part.map_or(descent.node, |(part, _)| part);
        while !self.is_root(node) && self.node(node).start() >= pages {
            node = self.node(node).parent;
        }
        let there = self.node(node);
        let part = (there.end > pages).then(|| (node, pages - there.start()));
        let node = if part.is_some() { there.parent } else { node };
        Descent { node, part, pages: pages as usize }
    }

    /// The positions (in pages) of a range of the path to `end` with their slots, a node at a time,
    /// the last one first.
    pub(super) fn slots_on_path(
        &self,
        end: NodeIndex,
        range: core::ops::Range<u32>,
    ) -> impl Iterator<Item = (u32, usize)> {
        let nodes = self.path(end).take_while(move |&node| self.node(node).end > range.start);
        nodes.flat_map(move |node| {
            let node = self.node(node);
            let (from, to) = (node.start().max(range.start), node.end.min(range.end));
            let skipped = (from - node.start()) as usize;
            (from..to).zip(self.store.slots(node.run).skip(skipped))
        })
    }
}
