//! Who is evicted first: how a policy ranks, and the order in which its candidates stand.

use crate::config::Policy;
use crate::rank_heap::{Numbered, RankHeap};
use crate::types::Retention;

/// What decides who goes first: the policy's word, then age. Smaller goes first.
pub(crate) type Rank = (u64, u64);

/// A candidate's place in the order of eviction: whether among the retained ones, and where.
pub(crate) type Place<R = Rank> = (bool, R);

/// What a policy may go by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    /// The clock of the last use.
    pub(crate) used: u64,
    /// The clock of the insertion.
    pub(crate) created: u64,
    /// The caller's tick until which it is retained.
    until: u64,
    pub(crate) hits: u32,
    priority: i32,
}

impl Record {
    /// Of somebody who comes now.
    pub(crate) fn new(clock: u64, retention: Retention) -> Self {
        let Retention { priority, until } = retention;
        Self { used: clock, created: clock, until, hits: 0, priority }
    }

    /// As it was: when it was used last and inserted, its hits and its retention.
    pub(crate) fn restored((used, created): (u64, u64), hits: u32, retention: Retention) -> Self {
        Self { used, created, hits, ..Self::new(0, retention) }
    }

    pub(crate) fn hit(&mut self) {
        self.hits = self.hits.saturating_add(1);
    }

    pub(crate) fn retention(&self) -> Retention {
        Retention { priority: self.priority, until: self.until }
    }

    pub(crate) fn is_retained(&self, now: u64) -> bool {
        self.until > now
    }

    /// Retains by the larger wish in each respect. False if that changes nothing.
    pub(crate) fn raise(&mut self, wish: Retention) -> bool {
        let before = self.retention();
        (self.priority, self.until) =
            (self.priority.max(wish.priority), self.until.max(wish.until));
        self.retention() != before
    }

    /// Where it belongs at the tick `now`.
    pub(crate) fn place(&self, policy: Policy, now: u64) -> Place {
        if self.is_retained(now) {
            (true, (self.until, self.used))
        } else {
            (false, self.rank(policy))
        }
    }

    fn rank(&self, policy: Policy) -> Rank {
        let first = match policy {
            Policy::Lru => 0,
            Policy::Lfu => u64::from(self.hits),
            Policy::Fifo => self.created,
            Policy::Mru => return (0, !self.used),
            // The order of the signed numbers, kept in unsigned ones.
            Policy::Priority => u64::from(self.priority.cast_unsigned() ^ 1 << 31),
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
