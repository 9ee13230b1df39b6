//! The pages of one tier that are in the tree: how many, and which go first.

use crate::config::Policy;
use crate::order::{Order, Place, Rank};
use crate::tree::{Node, NodeIndex, Tree};
use crate::types::Tier;

/// Counts a tier's pages, and keeps its unpinned leaves in the order of eviction.
#[derive(Debug)]
pub(crate) struct Residents {
    tier: Tier,
    policy: Policy,
    order: Order<NodeIndex, Rank>,
    /// Pages in nodes that are not pinned.
    idle: usize,
    /// Pages in pinned nodes.
    held: usize,
    /// The caller's clock, in ticks.
    now: u64,
}

impl Residents {
    pub(crate) fn new(tier: Tier, policy: Policy) -> Self {
        Self { tier, policy, order: Order::default(), idle: 0, held: 0, now: 0 }
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// Pages that could be evicted.
    pub(crate) fn idle(&self) -> usize {
        self.idle
    }

    /// Pages that are locked.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn total(&self) -> usize {
        self.idle + self.held
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// The leaf that goes next.
    pub(crate) fn first(&self) -> Option<NodeIndex> {
        self.order.first()
    }

    /// Entries of the order looked at since the beginning.
    pub(crate) fn steps(&self) -> u64 {
        self.order.steps()
    }

    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.order.bytes()
    }

    /// Leaves in the order, for those who check.
    pub(crate) fn filed(&self) -> usize {
        self.order.len()
    }

    /// A node was just pinned.
    pub(crate) fn hold(&mut self, index: NodeIndex, node: &Node) {
        let pages = node.pages_on(self.tier);
        self.idle -= pages;
        self.held += pages;
        self.order.remove(index);
    }

    /// A node just lost its last pin.
    pub(crate) fn let_go(&mut self, node: &Node) {
        let pages = node.pages_on(self.tier);
        self.held -= pages;
        self.idle += pages;
    }

    /// Pages were added to a node that is pinned, or is not.
    pub(crate) fn add(&mut self, pages: usize, pinned: bool) {
        *(if pinned { &mut self.held } else { &mut self.idle }) += pages;
    }

    /// Pages at the end of an unpinned leaf are about to leave.
    pub(crate) fn trim(&mut self, pages: usize) {
        self.idle -= pages;
    }

    /// An unpinned leaf is about to leave.
    pub(crate) fn remove(&mut self, leaf: NodeIndex, node: &Node) {
        self.idle -= node.pages_on(self.tier);
        self.order.remove(leaf);
    }

    /// Files a node that may have lost its last pin or its last child, if it is a leaf now.
    pub(crate) fn settle(&mut self, leaf: NodeIndex, node: &Node) {
        if self.order.place_of(leaf).is_none()
            && let Some(place) = self.expected_place(node)
        {
            self.order.insert(leaf, place);
        }
    }

    /// Tells the time. Leaves whose retention is over queue with the others again.
    pub(crate) fn advance(&mut self, now: u64, tree: &Tree) {
        self.now = self.now.max(now);
        while let Some(leaf) = self.order.first_retained() {
            let node = tree.node(leaf);
            if node.record.is_retained(self.now) {
                break;
            }
            self.order.remove(leaf);
            self.settle(leaf, node);
        }
    }

    /// Everything is lost.
    pub(crate) fn reset(&mut self) {
        self.order.clear();
        (self.idle, self.held) = (0, 0);
    }

    /// Where a node belongs, if it is an unpinned leaf here.
    pub(crate) fn expected_place(&self, node: &Node) -> Option<Place> {
        node.is_idle_leaf(self.tier).then(|| node.record.place(self.policy, self.now))
    }

    /// Where a node is filed.
    pub(crate) fn place_of(&self, leaf: NodeIndex) -> Option<Place> {
        self.order.place_of(leaf)
    }
}
