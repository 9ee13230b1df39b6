//! The way between a root and a node.

use core::ops::Range;

use crate::tree::{Descent, NodeIndex, Tree};
use crate::types::Namespace;

impl Tree {
    /// A node and its ancestors, upwards, without the root.
    pub(crate) fn path(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> {
        let above = move |&below: &NodeIndex| Some(self.node(below).parent);
        core::iter::successors(Some(node), above).take_while(|&node| !self.is_root(node))
    }

    /// The root above a node, or itself if it is one.
    pub(crate) fn root_of(&self, node: NodeIndex) -> NodeIndex {
        self.path(node).last().map_or(node, |top| self.node(top).parent)
    }

    /// The namespace a node belongs to.
    pub(crate) fn namespace_of(&self, node: NodeIndex) -> Namespace {
        self.namespaces.get(&self.root_of(node)).copied().unwrap_or_default()
    }

    /// The nodes that lie between a depth in pages and the end of `end`, downwards.
    pub(crate) fn range(&self, from: u32, end: NodeIndex) -> Vec<NodeIndex> {
        let mut nodes: Vec<NodeIndex> =
            self.path(end).take_while(|&node| self.node(node).end > from).collect();
        nodes.reverse();
        nodes
    }

    /// Every node with pages, none before its parent.
    pub(crate) fn parents_first(&self) -> Vec<NodeIndex> {
        let with_pages = self.iter().filter(|(_, node)| node.run.pages > 0);
        let mut nodes: Vec<NodeIndex> = with_pages.map(|(index, _)| index).collect();
        nodes.sort_by_key(|&index| self.node(index).end);
        nodes
    }

    /// The hash of the page before the page `from` of a node; none at the start of a prompt.
    pub(crate) fn hash_before(&self, node: NodeIndex, from: u32) -> Option<u64> {
        let there = self.node(node);
        let (run, at) = match from {
            0 => {
                let above = self.node(there.parent).run;
                (above, above.pages)
            }
            _ => (there.run, from),
        };
        self.store.hash_before(run, at)
    }

    /// The end of a shorter match than `descent`, which began at a root.
    pub(crate) fn cut(&self, descent: &Descent, pages: u32) -> Descent {
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
    pub(crate) fn stretches_on_path(
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
    pub(crate) fn slots_on_path(
        &self,
        end: NodeIndex,
        range: Range<u32>,
    ) -> impl Iterator<Item = (u32, usize)> {
        self.stretches_on_path(end, range).flat_map(|(first, slots)| (first..).zip(slots))
    }
}
