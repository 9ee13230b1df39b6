//! Windows: what a match needs, and what a lock holds of the windowed group.

use core::ops::Range;

use crate::cache::RadixCache;
use crate::node::{Node, NodeIndex};
use crate::retention::Retention;
use crate::tree::{Descent, Tree};
use crate::types::Token;
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
            for (_, slots) in tree.store.stretches(tree.node(node).run, 0..matched) {
                scan.visit(slots);
            }
        });
        Found { descent: tree.cut(&full, scan.valid), full_pages: full.pages }
    }

    /// A lock from here on holds the window in front of `end`.
    pub(crate) fn open_window(&mut self, end: NodeIndex) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        let window = group.window(self.tree.node(end).end);
        for (_, slots) in self.tree.stretches_on_path(end, window) {
            group.hold(slots);
        }
    }

    /// A match ended at `end`: the pages in front of it, which are held, have proved their use.
    pub(crate) fn hit_window(&mut self, end: NodeIndex) {
        self.change_window(end, |hit| {
            hit.near_end = true;
            hit.record.hits = hit.record.hits.saturating_add(1);
        });
    }

    /// Raises the retention of the pages in the window in front of `end`, which are held.
    pub(crate) fn raise_window(&mut self, end: NodeIndex, retention: Retention) {
        self.change_window(end, |kept| {
            kept.record.retention = kept.record.retention.max(retention);
        });
    }

    /// A lock moved on, from the position `from` (in pages) to `end`, on the same path.
    pub(crate) fn move_window(&mut self, from: u32, end: NodeIndex) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        group.clock += 1;
        let (old, new) = (group.window(from), group.window(self.tree.node(end).end));
        for (_, slots) in self.tree.stretches_on_path(end, new.start.max(from)..new.end) {
            group.hold(slots);
        }
        let passed = old.start..new.start.min(from);
        for (_, slots) in self.tree.stretches_on_path(end, passed) {
            group.let_go(slots);
        }
    }

    /// A lock that ended at `end` is gone. What a sequence leaves behind, with its `retention`,
    /// is kept for the next one; without any, it is not.
    pub(crate) fn close_window(&mut self, end: NodeIndex, retention: Option<Retention>) {
        if let Some(retention) = retention {
            self.change_window(end, |kept| {
                kept.near_end = true;
                kept.record.retention = kept.record.retention.max(retention);
            });
        }
        let Some(group) = &mut self.windowed else {
            return;
        };
        group.clock += 1;
        let window = group.window(self.tree.node(end).end);
        for (_, slots) in self.tree.stretches_on_path(end, window) {
            group.let_go(slots);
        }
    }

    /// Changes the pages in the window in front of `end`.
    fn change_window(&mut self, end: NodeIndex, change: impl Fn(&mut WindowedPage)) {
        let Some(group) = &mut self.windowed else {
            return;
        };
        let window = group.window(self.tree.node(end).end);
        for (_, slots) in self.tree.stretches_on_path(end, window) {
            group.change(slots, &change);
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

    /// The slots of a range of the path to `end`, a stretch at a time with the position of its
    /// first page; the nodes of the path from the last one upwards.
    pub(super) fn stretches_on_path(
        &self,
        end: NodeIndex,
        range: Range<u32>,
    ) -> impl Iterator<Item = (u32, Range<usize>)> {
        let (first, last) = (range.start, range.end);
        let is_in_range = move |&node: &NodeIndex| first < last && self.node(node).end > first;
        let nodes = self.path(end).take_while(is_in_range);
        nodes.flat_map(move |node| {
            let (node, start) = (self.node(node), self.node(node).start());
            let range = first.saturating_sub(start)..last.saturating_sub(start);
            let stretches = self.store.stretches(node.run, range);
            stretches.map(move |(place, slots)| (start + place, slots))
        })
    }

    /// The positions of a range of the path to `end`, each with its slot.
    pub(super) fn slots_on_path(
        &self,
        end: NodeIndex,
        range: Range<u32>,
    ) -> impl Iterator<Item = (u32, usize)> {
        self.stretches_on_path(end, range).flat_map(|(first, slots)| (first..).zip(slots))
    }
}
