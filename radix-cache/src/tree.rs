//! The shape of the tree: nodes, how a child is found, and how a node is split.

use hashbrown::{HashMap, HashTable};

use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::node::{Node, NodeIndex};
use crate::retention::Retention;
use crate::store::{Run, Store};
use crate::types::{Namespace, PageId, Token};

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
    pub(crate) nodes: Vec<Node>,
    free: Vec<NodeIndex>,
    pub(crate) store: Store,
    children: HashTable<NodeIndex>,
    /// The namespace of each root.
    namespaces: HashMap<NodeIndex, Namespace>,
    seed: u64,
}

impl Tree {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            store: Store::new(config),
            children: HashTable::new(),
            namespaces: HashMap::new(),
            seed: config.hash_seed,
        }
    }

    pub(crate) fn node(&self, node: NodeIndex) -> &Node {
        &self.nodes[node.index()]
    }

    pub(crate) fn node_mut(&mut self, node: NodeIndex) -> &mut Node {
        &mut self.nodes[node.index()]
    }

    /// A node, or nothing above a root.
    pub(crate) fn get(&self, node: NodeIndex) -> Option<&Node> {
        self.nodes.get(node.index())
    }

    pub(crate) fn get_mut(&mut self, node: NodeIndex) -> Option<&mut Node> {
        self.nodes.get_mut(node.index())
    }

    pub(crate) fn is_root(&self, node: NodeIndex) -> bool {
        self.node(node).parent == NodeIndex::NONE
    }

    /// Every live node with its place, roots included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeIndex, &Node)> {
        let indexed = self.nodes.iter().enumerate();
        indexed.filter(|(_, node)| node.live).map(|(index, node)| (NodeIndex(index as u32), node))
    }

    /// The nodes that lie between a depth in pages and the end of `end`, downwards.
    pub(crate) fn range(&self, from: u32, end: NodeIndex) -> Vec<NodeIndex> {
        let mut nodes: Vec<NodeIndex> =
            self.path(end).take_while(|&node| self.node(node).end > from).collect();
        nodes.reverse();
        nodes
    }

    /// A node and its ancestors, upwards, without the root.
    pub(crate) fn path(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> {
        let above = move |&below: &NodeIndex| Some(self.node(below).parent);
        core::iter::successors(Some(node), above).take_while(|&node| !self.is_root(node))
    }

    /// The namespace a node belongs to.
    pub(crate) fn namespace_of(&self, node: NodeIndex) -> Namespace {
        self.namespaces.get(&self.root_of(node)).copied().unwrap_or_default()
    }

    /// The root above a node, or itself if it is one.
    pub(crate) fn root_of(&self, node: NodeIndex) -> NodeIndex {
        self.path(node).last().map_or(node, |top| self.node(top).parent)
    }

    /// Every node with pages, none before its parent.
    pub(crate) fn parents_first(&self) -> Vec<NodeIndex> {
        let with_pages = self.iter().filter(|(_, node)| node.run.pages > 0);
        let mut nodes: Vec<NodeIndex> = with_pages.map(|(index, _)| index).collect();
        nodes.sort_by_key(|&index| self.node(index).end);
        nodes
    }

    /// Bytes reserved for nodes, extents and the table of children.
    pub(crate) fn structure_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.free.capacity() * size_of::<NodeIndex>()
            + self.children.allocation_size()
            + self.store.structure_bytes()
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
        let page_size = self.store.page_size();
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
            let run = node.run;
            let matched = self.store.common_pages(run, rest);
            visit(child, matched);
            descent.pages += matched as usize;
            if matched < run.pages {
                descent.part = Some((child, matched));
                break;
            }
            descent.node = child;
            rest = &rest[matched as usize * page_size..];
        }
        descent
    }

    /// Adds a root: a node without pages and without a parent.
    pub(crate) fn add_root(&mut self, namespace: Namespace) -> Result<NodeIndex, CacheError> {
        let root = self.add(Node {
            parent: NodeIndex::NONE,
            run: Run::EMPTY,
            end: 0,
            pins: 0,
            children: 0,
            device_children: 0,
            host_children: 0,
            hash: 0,
            live: true,
            device: true,
            host: true,
            moving: false,
            used: 0,
            created: 0,
            hits: 0,
            retention: Retention::default(),
        })?;
        self.namespaces.insert(root, namespace);
        Ok(root)
    }

    /// Adds a leaf below `parent`. The caller has checked that no child shares its first page and
    /// made room with [`reserve`](Self::reserve).
    pub(crate) fn add_leaf(
        &mut self,
        parent: NodeIndex,
        tokens: &[Token],
        pages: &[PageId],
        clock: u64,
        retention: Retention,
    ) -> Result<NodeIndex, CacheError> {
        let hash = self.hash(parent, &tokens[..self.store.page_size()]);
        let node = self.add(Node {
            parent,
            run: Run::EMPTY,
            end: self.node(parent).end + pages.len() as u32,
            pins: 0,
            children: 0,
            device_children: 0,
            host_children: 0,
            hash,
            live: true,
            device: true,
            host: false,
            moving: false,
            used: clock,
            created: clock,
            hits: 0,
            retention,
        })?;
        let mut run = Run::EMPTY;
        self.store.append(&mut run, tokens, pages);
        self.node_mut(node).run = run;
        let above = self.node_mut(parent);
        above.children += 1;
        above.device_children += 1;
        self.file(node);
        Ok(node)
    }

    /// Adds pages to the end of a leaf. The caller has made room with [`reserve`](Self::reserve).
    pub(crate) fn extend_leaf(&mut self, leaf: NodeIndex, tokens: &[Token], pages: &[PageId]) {
        let node = &mut self.nodes[leaf.index()];
        self.store.append(&mut node.run, tokens, pages);
        node.end += pages.len() as u32;
    }

    /// Makes room for `pages` more pages and for the nodes that one insertion can add.
    pub(crate) fn reserve(&mut self, pages: usize) -> Result<(), CacheError> {
        if self.nodes.len() + 2 >= u32::MAX as usize {
            return Err(CacheError::Full { pages });
        }
        self.store.reserve(pages)
    }

    /// Splits a node after `at` of its pages and returns the new upper part. The old node stays
    /// itself, as the lower part, so whatever ends at it still does.
    pub(crate) fn split(&mut self, lower: NodeIndex, at: u32) -> Result<NodeIndex, CacheError> {
        let below = self.node(lower);
        let (parent, hash) = (below.parent, below.hash);
        let upper = Node {
            parent,
            run: Run::EMPTY,
            end: below.end - (below.run.pages - at),
            pins: u32::from(below.pins > 0),
            children: 1,
            device_children: u32::from(below.device),
            host_children: u32::from(below.host),
            hash,
            live: true,
            device: below.device,
            host: below.host,
            moving: below.moving,
            used: below.used,
            created: below.created,
            hits: below.hits,
            retention: below.retention,
        };
        let upper = self.add(upper)?;
        let mut run = self.node(lower).run;
        let upper_run = self.store.split(&mut run, at);
        self.node_mut(upper).run = upper_run;
        self.node_mut(lower).run = run;
        // The parent finds the upper part where it found the whole.
        let filed = self.children.find_entry(spread(hash), |&child| child == lower);
        if let Ok(mut entry) = filed {
            *entry.get_mut() = upper;
        }
        let hash = self.hash(upper, self.store.first_page(run));
        let below = self.node_mut(lower);
        below.parent = upper;
        below.hash = hash;
        self.file(lower);
        Ok(upper)
    }

    /// Removes a childless node and lists its pages, of the device and of the host. Returns its
    /// parent.
    pub(crate) fn remove(
        &mut self,
        node: NodeIndex,
        freed: &mut Vec<PageId>,
        freed_on_host: &mut Vec<PageId>,
    ) -> NodeIndex {
        let Node { parent, hash, device, host, .. } = *self.node(node);
        if parent != NodeIndex::NONE {
            let filed = self.children.find_entry(spread(hash), |&child| child == node);
            if let Ok(entry) = filed {
                entry.remove();
            }
            let above = self.node_mut(parent);
            above.children -= 1;
            above.device_children -= u32::from(device);
            above.host_children -= u32::from(host);
        } else {
            self.namespaces.remove(&node);
        }
        let removed = &mut self.nodes[node.index()];
        self.store.truncate(&mut removed.run, 0, freed, freed_on_host);
        removed.live = false;
        self.free.push(node);
        parent
    }

    /// Frees the last `pages` pages of a leaf that has more of them.
    pub(crate) fn trim(&mut self, leaf: NodeIndex, pages: usize, freed: &mut Vec<PageId>) {
        let node = &mut self.nodes[leaf.index()];
        let keep = node.run.pages - pages as u32;
        self.store.truncate(&mut node.run, keep, freed, &mut Vec::new());
        node.end -= pages as u32;
    }

    /// Removes all nodes and lists their pages on the device.
    pub(crate) fn remove_all(&mut self, freed: &mut Vec<PageId>) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if node.live {
                self.store.truncate(&mut node.run, 0, freed, &mut Vec::new());
                node.live = false;
                self.free.push(NodeIndex(index as u32));
            }
        }
        self.children.clear();
        self.namespaces.clear();
    }

    /// The child of `parent` whose first page is `page`.
    pub(crate) fn child(&self, parent: NodeIndex, page: &[Token]) -> Option<NodeIndex> {
        let hash = self.hash(parent, page);
        let is_it = |&child: &NodeIndex| {
            let node = self.node(child);
            node.hash == hash && node.parent == parent && self.store.first_page(node.run) == page
        };
        self.children.find(spread(hash), is_it).copied()
    }

    /// Children on file, for those who check.
    pub(crate) fn filed_children(&self) -> usize {
        self.children.len()
    }

    fn add(&mut self, node: Node) -> Result<NodeIndex, CacheError> {
        if let Some(index) = self.free.pop() {
            self.nodes[index.index()] = node;
            return Ok(index);
        }
        let index = u32::try_from(self.nodes.len()).ok();
        let Some(index) = index.filter(|&index| index != u32::MAX) else {
            return Err(CacheError::Full { pages: 0 });
        };
        self.nodes.push(node);
        Ok(NodeIndex(index))
    }

    fn file(&mut self, node: NodeIndex) {
        let nodes = &self.nodes;
        let hash_of = |&child: &NodeIndex| spread(nodes[child.index()].hash);
        self.children.insert_unique(spread(nodes[node.index()].hash), node, hash_of);
    }

    /// Hashes (parent, page) by folded multiplication, as wyhash and its kin do: 16 bytes a
    /// multiplication. Matches never rest on it.
    fn hash(&self, parent: NodeIndex, page: &[Token]) -> u32 {
        const ODD: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93];
        let pair = |pair: &[Token]| match *pair {
            [low, high] => u64::from(low) | u64::from(high) << 32,
            [low] => u64::from(low),
            _ => 0,
        };
        let mut state = fold(self.seed ^ ODD[0], u64::from(parent.0) ^ ODD[1]);
        for four in page.chunks(4) {
            let (low, high) = four.split_at(four.len().min(2));
            state = fold(pair(low) ^ state ^ ODD[1], pair(high) ^ ODD[0] ^ self.seed);
        }
        (state ^ state >> 32) as u32
    }
}

/// The two halves of a 128-bit product, folded.
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    product as u64 ^ (product >> 64) as u64
}

/// Spreads a stored hash over the 64 bits that the table looks at.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
