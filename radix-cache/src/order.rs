//! Who is evicted first: how a policy ranks, and the order in which its candidates stand.

use crate::config::Policy;
use crate::node::{Node, NodeIndex};
use crate::rank_heap::{Numbered, RankHeap};
use crate::retention::Retention;

/// What decides who goes first: the policy's word, then age. Smaller goes first.
pub(crate) type Rank = (u64, u64);

/// A candidate's place in the order of eviction: whether among the retained ones, and where.
pub(crate) type Place<R = Rank> = (bool, R);

/// What a policy may go by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) used: u64,
    pub(crate) created: u64,
    pub(crate) hits: u32,
    pub(crate) retention: Retention,
}

impl Record {
    pub(crate) fn of(node: &Node) -> Self {
        let &Node { used, created, hits, retention, .. } = node;
        Self { used, created, hits, retention }
    }

    /// Where it belongs at the tick `now`.
    pub(crate) fn place(&self, policy: Policy, now: u64) -> Place {
        let until = self.retention.until;
        if until > now { (true, (until, self.used)) } else { (false, self.rank(policy)) }
    }

    fn rank(&self, policy: Policy) -> Rank {
        let first = match policy {
            Policy::Lru => 0,
            Policy::Lfu => u64::from(self.hits),
            Policy::Fifo => self.created,
            Policy::Mru => return (0, !self.used),
            // The order of the signed numbers, kept in unsigned ones.
            Policy::Priority => u64::from(self.retention.priority.cast_unsigned() ^ 1 << 31),
            Policy::SegmentedLru => u64::from(self.hits > 0),
        };
        (first, self.used)
    }
}

/// Every candidate for eviction, first to go first: what is retained goes when nothing else is
/// left.
#[derive(Debug)]
pub(crate) struct Order<K, R> {
    plain: RankHeap<K, R>,
    /// Those whose rank begins with the tick at which their retention ends.
    retained: RankHeap<K, R>,
}

/// The order of a tier: its unpinned leaves.
pub(crate) type LeafOrder = Order<NodeIndex, Rank>;

impl<K, R> Default for Order<K, R> {
    fn default() -> Self {
        Self { plain: RankHeap::default(), retained: RankHeap::default() }
    }
}

impl<K: Numbered, R: Copy + Ord> Order<K, R> {
    pub(crate) fn len(&self) -> usize {
        self.plain.len() + self.retained.len()
    }

    /// Entries looked at since the beginning, for those who watch the cost of the order.
    pub(crate) fn steps(&self) -> u64 {
        self.plain.steps() + self.retained.steps()
    }

    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.plain.bytes() + self.retained.bytes()
    }

    /// Who goes next.
    pub(crate) fn first(&self) -> Option<K> {
        self.plain.first().or_else(|| self.retained.first())
    }

    /// Of the retained ones, who goes first.
    pub(crate) fn first_retained(&self) -> Option<K> {
        self.retained.first()
    }

    /// Where a candidate was filed, if it was.
    pub(crate) fn place_of(&self, member: K) -> Option<Place<R>> {
        let plain = self.plain.rank_of(member).map(|rank| (false, rank));
        plain.or_else(|| self.retained.rank_of(member).map(|rank| (true, rank)))
    }

    /// Whether a candidate is filed, among the retained ones or the others.
    pub(crate) fn is_filed(&self, member: K, among_retained: bool) -> bool {
        if among_retained { self.retained.contains(member) } else { self.plain.contains(member) }
    }

    /// Files somebody who is not filed.
    pub(crate) fn insert(&mut self, member: K, place: Place<R>) {
        match place {
            (false, rank) => self.plain.insert(member, rank),
            (true, rank) => self.retained.insert(member, rank),
        }
    }

    /// Takes somebody out. True if it was in.
    pub(crate) fn remove(&mut self, member: K) -> bool {
        self.plain.remove(member) || self.retained.remove(member)
    }

    pub(crate) fn clear(&mut self) {
        self.plain.clear();
        self.retained.clear();
    }
}
