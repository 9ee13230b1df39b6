//! The shape of the tree: nodes and their runs, roots, who is pinned, and the clock of uses.

mod children;
mod node;
mod path;

use hashbrown::HashMap;

use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::order::Record;
use crate::store::{Run, Store};
use crate::types::{Namespace, PageId, Retention, Tier, Token};

use children::Children;
pub(crate) use node::{Node, NodeIndex};

/// How far a sequence of tokens is in the tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descent {
    /// The last node that matched to its end.
    pub(crate) node: NodeIndex,
    /// A child of it that matched for some of its pages only.
    pub(crate) part: Option<(NodeIndex, u32)>,
    /// Pages matched since the start.
    pub(crate) pages: usize,
}

#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    free: Vec<NodeIndex>,
    store: Store,
    children: Children,
    roots: HashMap<Namespace, NodeIndex>,
    /// The namespace of each root.
    namespaces: HashMap<NodeIndex, Namespace>,
    /// Counts uses; stands in for time.
    clock: u64,
}

impl Tree {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            store: Store::new(config),
            children: Children::new(config.hash_seed),
            roots: HashMap::new(),
            namespaces: HashMap::new(),
            clock: 0,
        }
    }

    /// What the runs hold, to look at.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn page_size(&self) -> usize {
        self.store.page_size()
    }

    pub(crate) fn node(&self, node: NodeIndex) -> &Node {
        &self.nodes[node.index()]
    }

    fn node_mut(&mut self, node: NodeIndex) -> &mut Node {
        &mut self.nodes[node.index()]
    }

    /// What is above a node; nothing above a root.
    pub(crate) fn parent(&self, node: NodeIndex) -> Option<NodeIndex> {
        Some(self.node(node).parent).filter(|&parent| parent != NodeIndex::NONE)
    }

    pub(crate) fn is_root(&self, node: NodeIndex) -> bool {
        self.node(node).parent == NodeIndex::NONE
    }

    /// Every live node with its place, roots included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeIndex, &Node)> {
        let indexed = self.nodes.iter().enumerate();
        indexed.filter(|(_, node)| node.live).map(|(index, node)| (NodeIndex(index as u32), node))
    }

    /// Namespaces with anything in them.
    pub(crate) fn namespaces(&self) -> usize {
        self.roots.len()
    }

    /// Children on file, for those who check.
    pub(crate) fn filed_children(&self) -> usize {
        self.children.len()
    }

    /// Bytes reserved for nodes, extents and the table of children.
    pub(crate) fn structure_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.free.capacity() * size_of::<NodeIndex>()
            + self.children.bytes()
            + self.store.structure_bytes()
    }

    /// The root of a namespace, if it has one.
    pub(crate) fn find_root(&self, namespace: Namespace) -> Option<NodeIndex> {
        self.roots.get(&namespace).copied()
    }

    /// The root of a namespace: a node without pages and without a parent, made if there is none.
    pub(crate) fn root(&mut self, namespace: Namespace) -> Result<NodeIndex, CacheError> {
        if let Some(root) = self.find_root(namespace) {
            return Ok(root);
        }
        let root = self.add(Node {
            parent: NodeIndex::NONE,
            run: Run::EMPTY,
            end: 0,
            pins: 0,
            children: 0,
            children_on: [0; 2],
            hash: 0,
            live: true,
            on: [true; 2],
            moving: false,
            record: Record::default(),
        })?;
        self.namespaces.insert(root, namespace);
        self.roots.insert(namespace, root);
        Ok(root)
    }

    /// The child of `parent` whose first page is `page`.
    pub(crate) fn child(&self, parent: NodeIndex, page: &[Token]) -> Option<NodeIndex> {
        let hash = self.children.hash(parent, page);
        self.children.find(hash, |child| {
            let node = self.node(child);
            node.hash == hash && node.parent == parent && self.store.first_page(node.run) == page
        })
    }

    /// Follows `tokens` down from the end of `start`, as far as whole pages match and `enter` lets
    /// it. `visit` sees each node on the way with the number of its pages that matched.
    pub(crate) fn descend(
        &self,
        start: NodeIndex,
        tokens: &[Token],
        enter: impl Fn(&Node) -> bool,
        mut visit: impl FnMut(NodeIndex, u32),
    ) -> Descent {
        let page_size = self.page_size();
        let mut descent = Descent { node: start, part: None, pages: 0 };
        let mut rest = tokens;
        while rest.len() >= page_size {
            let Some(child) = self.child(descent.node, &rest[..page_size]) else {
                break;
            };
            let node = self.node(child);
            if !enter(node) {
                break;
            }
            let matched = self.store.common_pages(node.run, rest);
            visit(child, matched);
            descent.pages += matched as usize;
            if matched < node.run.pages {
                descent.part = Some((child, matched));
                break;
            }
            descent.node = child;
            rest = &rest[matched as usize * page_size..];
        }
        descent
    }

    /// Makes room for `pages` more pages and for the nodes that one call can add.
    pub(crate) fn reserve(&mut self, pages: usize) -> Result<(), CacheError> {
        if self.nodes.len() + 2 >= u32::MAX as usize {
            return Err(CacheError::Full { pages });
        }
        self.store.reserve(pages)
    }

    /// Adds a leaf on the device below `parent`. The caller has checked that no child shares its
    /// first page and made room with [`reserve`](Self::reserve).
    pub(crate) fn add_leaf(
        &mut self,
        parent: NodeIndex,
        tokens: &[Token],
        pages: &[PageId],
        record: Record,
    ) -> Result<NodeIndex, CacheError> {
        let node = self.add(Node {
            parent,
            run: Run::EMPTY,
            end: self.node(parent).end + pages.len() as u32,
            pins: 0,
            children: 0,
            children_on: [0; 2],
            hash: self.children.hash(parent, &tokens[..self.page_size()]),
            live: true,
            on: [true, false],
            moving: false,
            record,
        })?;
        self.store.append(&mut self.nodes[node.index()].run, tokens, pages);
        let above = self.node_mut(parent);
        above.children += 1;
        above.children_on[Tier::Device as usize] += 1;
        self.file(node);
        Ok(node)
    }

    /// Adds pages to the end of a leaf. The caller has made room with [`reserve`](Self::reserve).
    pub(crate) fn extend_leaf(&mut self, leaf: NodeIndex, tokens: &[Token], pages: &[PageId]) {
        let node = &mut self.nodes[leaf.index()];
        self.store.append(&mut node.run, tokens, pages);
        node.end += pages.len() as u32;
    }

    /// The node that ends where a descent stopped, made by a split if need be.
    pub(crate) fn split_at(&mut self, descent: &Descent) -> Result<NodeIndex, CacheError> {
        match descent.part {
            None => Ok(descent.node),
            Some((node, at)) => self.split(node, at),
        }
    }

    /// Splits a node after `at` of its pages and returns the new upper part. The old node stays
    /// itself, as the lower part, so whatever ends at it still does.
    pub(crate) fn split(&mut self, lower: NodeIndex, at: u32) -> Result<NodeIndex, CacheError> {
        let below = *self.node(lower);
        let upper = self.add(Node {
            run: Run::EMPTY,
            end: below.start() + at,
            pins: u32::from(below.pins > 0),
            children: 1,
            children_on: below.on.map(u32::from),
            ..below
        })?;
        let upper_run = self.store.split(&mut self.nodes[lower.index()].run, at);
        self.node_mut(upper).run = upper_run;
        // The parent finds the upper part where it found the whole.
        self.children.replace(below.hash, lower, upper);
        let hash = self.children.hash(upper, self.store.first_page(self.node(lower).run));
        let below = self.node_mut(lower);
        (below.parent, below.hash) = (upper, hash);
        self.file(lower);
        Ok(upper)
    }

    /// Removes a childless node and lists its pages, of the device and of the host. Returns its
    /// parent; none of a root.
    pub(crate) fn remove(
        &mut self,
        node: NodeIndex,
        freed: &mut Vec<PageId>,
        freed_on_host: &mut Vec<PageId>,
    ) -> Option<NodeIndex> {
        let Node { parent, hash, on, .. } = *self.node(node);
        if let Some(above) = self.nodes.get_mut(parent.index()) {
            above.children -= 1;
            for (count, is_there) in above.children_on.iter_mut().zip(on) {
                *count -= u32::from(is_there);
            }
            self.children.remove(hash, node);
        } else if let Some(namespace) = self.namespaces.remove(&node) {
            self.roots.remove(&namespace);
        }
        let parent = self.parent(node);
        let removed = &mut self.nodes[node.index()];
        self.store.truncate(&mut removed.run, 0, freed, freed_on_host);
        removed.live = false;
        self.free.push(node);
        parent
    }

    /// Frees what follows the first `keep` pages of a leaf, at least one, all on the device alone.
    pub(crate) fn trim(&mut self, leaf: NodeIndex, keep: u32, freed: &mut Vec<PageId>) {
        let node = &mut self.nodes[leaf.index()];
        node.end = node.start() + keep;
        self.store.truncate(&mut node.run, keep, freed, &mut Vec::new());
    }

    /// Removes all nodes and lists their pages on the device.
    pub(crate) fn remove_all(&mut self, freed: &mut Vec<PageId>) {
        for (index, node) in self.nodes.iter_mut().enumerate().filter(|(_, node)| node.live) {
            self.store.truncate(&mut node.run, 0, freed, &mut Vec::new());
            node.live = false;
            self.free.push(NodeIndex(index as u32));
        }
        self.children.clear();
        self.roots.clear();
        self.namespaces.clear();
    }

    /// A node's pages are on a tier from here on.
    pub(crate) fn put(&mut self, node: NodeIndex, tier: Tier, pages: &[PageId]) {
        let there = self.node_mut(node);
        there.on[tier as usize] = true;
        let (run, parent) = (there.run, there.parent);
        self.store.put_pages(run, tier, pages);
        self.node_mut(parent).children_on[tier as usize] += 1;
    }

    /// A node's pages leave a tier, for another one has them. Lists them and returns the parent.
    pub(crate) fn take(
        &mut self,
        node: NodeIndex,
        tier: Tier,
        taken: &mut Vec<PageId>,
    ) -> NodeIndex {
        let there = self.node_mut(node);
        there.on[tier as usize] = false;
        let (run, parent) = (there.run, there.parent);
        self.store.take_pages(run, tier, taken);
        self.node_mut(parent).children_on[tier as usize] -= 1;
        parent
    }

    /// A transfer copies a node from here on, or no longer.
    pub(crate) fn set_moving(&mut self, node: NodeIndex, moving: bool) {
        self.node_mut(node).moving = moving;
    }

    /// Adds a pin. True if it was the first: the parent is pinned in turn.
    pub(crate) fn pin(&mut self, node: NodeIndex) -> bool {
        let pinned = self.node_mut(node);
        pinned.pins += 1;
        pinned.pins == 1
    }

    /// Takes a pin away, and tells the parent of the uses if it was the last. True then: the parent
    /// loses one in turn.
    pub(crate) fn unpin(&mut self, node: NodeIndex) -> bool {
        let unpinned = self.node_mut(node);
        unpinned.pins -= 1;
        if unpinned.pins > 0 {
            return false;
        }
        self.tell_parent(node);
        true
    }

    /// A parent was used last when its child was, or later.
    pub(crate) fn tell_parent(&mut self, node: NodeIndex) {
        let (parent, used) = (self.node(node).parent, self.node(node).record.used);
        if let Some(above) = self.nodes.get_mut(parent.index()) {
            above.record.used = above.record.used.max(used);
        }
    }

    /// The record of what comes now, which is a use.
    pub(crate) fn new_record(&mut self, retention: Retention) -> Record {
        self.clock += 1;
        Record::new(self.clock, retention)
    }

    /// Notes a use of a node that is pinned or about to be. Its ancestors count as used too; they
    /// learn of it when the pin is taken away, and can't be evicted before.
    pub(crate) fn touch(&mut self, node: NodeIndex) {
        self.clock += 1;
        self.node_mut(node).record.used = self.clock;
    }

    /// Counts a match of everything down to `end`, all of it pinned.
    pub(crate) fn hit(&mut self, end: NodeIndex) {
        let mut node = end;
        while let Some(hit) = self.nodes.get_mut(node.index()) {
            hit.record.hit();
            node = hit.parent;
        }
    }

    /// Raises the retention of a node and its ancestors, all pinned. An ancestor's is never
    /// smaller than its descendants', so the way up ends where nothing changes.
    pub(crate) fn raise(&mut self, mut node: NodeIndex, retention: Retention) {
        while let Some(raised) = self.nodes.get_mut(node.index()) {
            if !raised.record.raise(retention) {
                return;
            }
            node = raised.parent;
        }
    }

    /// The clock of uses.
    pub(crate) fn clock(&self) -> u64 {
        self.clock
    }

    /// Sets the clock of a tree that is restored.
    pub(crate) fn set_clock(&mut self, clock: u64) {
        self.clock = clock;
    }

    /// Hashes the pages of a node from `from` on, which are new.
    pub(crate) fn hash_pages(&mut self, node: NodeIndex, from: u32) {
        let seed = self.hash_before(node, from);
        let seed = seed.unwrap_or_else(|| self.namespace_of(node).seed());
        self.store.chain(self.node(node).run, from, seed);
    }

    fn add(&mut self, node: Node) -> Result<NodeIndex, CacheError> {
        if let Some(index) = self.free.pop() {
            self.nodes[index.index()] = node;
            return Ok(index);
        }
        let index = u32::try_from(self.nodes.len()).ok().filter(|&index| index != u32::MAX);
        let index = index.ok_or(CacheError::Full { pages: 0 })?;
        self.nodes.push(node);
        Ok(NodeIndex(index))
    }

    fn file(&mut self, node: NodeIndex) {
        let nodes = &self.nodes;
        self.children.file(node, |child| nodes[child.index()].hash);
    }
}
