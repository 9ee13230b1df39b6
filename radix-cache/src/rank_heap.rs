//! A heap that knows where each of its members is.

/// What a heap can hold: something that is numbered, densely, from 0.
pub(crate) trait Numbered: Copy {
    /// Its number.
    fn number(self) -> usize;
}

/// A four-way heap of numbered members, smallest rank first, from which a member can leave from
/// the middle.
///
/// A balanced tree would do as well in theory. The heap wins in practice: a leaf that was just used
/// has the largest rank under most policies and stays where it is appended, most leaves sit on
/// the lowest levels and leave from there, and nothing is ever allocated but the two arrays.
#[derive(Debug)]
pub(crate) struct RankHeap<K, R> {
    entries: Vec<Entry<K, R>>,
    /// Where the member of a number stands in `entries`, or `ABSENT`.
    positions: Vec<u32>,
    /// Entries looked at since the beginning.
    steps: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry<K, R> {
    rank: R,
    member: K,
}

const ABSENT: u32 = u32::MAX;
const ARITY: usize = 4;

impl<K, R> Default for RankHeap<K, R> {
    fn default() -> Self {
        Self { entries: Vec::new(), positions: Vec::new(), steps: 0 }
    }
}

impl<K: Numbered, R: Copy + Ord> RankHeap<K, R> {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries looked at since the beginning, for those who watch the cost of the order.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry<K, R>>()
            + self.positions.capacity() * size_of::<u32>()
    }

    pub(crate) fn first(&self) -> Option<K> {
        self.entries.first().map(|entry| entry.member)
    }

    /// The rank a member was inserted with.
    pub(crate) fn rank_of(&self, member: K) -> Option<R> {
        let position = *self.positions.get(member.number())?;
        self.entries.get(position as usize).map(|entry| entry.rank)
    }

    /// Whether a member is in the heap.
    pub(crate) fn contains(&self, member: K) -> bool {
        self.positions.get(member.number()).is_some_and(|&position| position != ABSENT)
    }

    /// Adds a member that is not in the heap.
    pub(crate) fn insert(&mut self, member: K, rank: R) {
        if self.positions.len() <= member.number() {
            self.positions.resize(member.number() + 1, ABSENT);
        }
        debug_assert_eq!(self.positions[member.number()], ABSENT);
        let entry = Entry { rank, member };
        self.entries.push(entry);
        self.sift_up(self.entries.len() - 1, entry);
    }

    /// Takes a member out. True if it was in.
    pub(crate) fn remove(&mut self, member: K) -> bool {
        let Some(position) = self.positions.get_mut(member.number()) else {
            return false;
        };
        let hole = core::mem::replace(position, ABSENT);
        if hole == ABSENT {
            return false;
        }
        let hole = hole as usize;
        let Some(last) = self.entries.pop() else {
            return false;
        };
        if hole < self.entries.len() {
            if hole > 0 && last.rank < self.entries[(hole - 1) / ARITY].rank {
                self.sift_up(hole, last);
            } else {
                self.sift_down(hole, last);
            }
        }
        true
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.positions.fill(ABSENT);
    }

    fn sift_up(&mut self, mut hole: usize, entry: Entry<K, R>) {
        while hole > 0 {
            let parent = (hole - 1) / ARITY;
            self.steps += 1;
            if self.entries[parent].rank <= entry.rank {
                break;
            }
            self.place(hole, self.entries[parent]);
            hole = parent;
        }
        self.place(hole, entry);
    }

    fn sift_down(&mut self, mut hole: usize, entry: Entry<K, R>) {
        loop {
            let first = hole * ARITY + 1;
            let Some(children) = self.entries.get(first..) else {
                break;
            };
            let nearest = children.iter().take(ARITY).enumerate();
            let Some((offset, least)) = nearest.min_by_key(|(_, child)| child.rank) else {
                break;
            };
            self.steps += 1;
            if entry.rank <= least.rank {
                break;
            }
            let least = *least;
            self.place(hole, least);
            hole = first + offset;
        }
        self.place(hole, entry);
    }

    fn place(&mut self, position: usize, entry: Entry<K, R>) {
        self.entries[position] = entry;
        self.positions[entry.member.number()] = position as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    impl Numbered for u8 {
        fn number(self) -> usize {
            usize::from(self)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u8),
        Remove(u8),
        Pop,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (any::<u8>(), any::<u8>()).prop_map(|(node, rank)| Step::Insert(node, rank)),
            1 => any::<u8>().prop_map(Step::Remove),
            1 => Just(Step::Pop),
        ]
    }

    proptest! {
        #[test]
        fn heap_orders_like_a_sorted_set(steps in prop::collection::vec(step(), 0..400)) {
            let mut heap = RankHeap::default();
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Insert(node, rank) => {
                        let known = model.iter().any(|&(_, other)| other == node);
                        if !known {
                            let rank = (u64::from(rank), u64::from(node));
                            heap.insert(node, rank);
                            model.insert((rank, node));
                        }
                    }
                    Step::Remove(node) => {
                        let entry = model.iter().copied().find(|&(_, other)| other == node);
                        let removed = heap.remove(node);
                        prop_assert_eq!(removed, entry.is_some());
                        if let Some(entry) = entry {
                            model.remove(&entry);
                        }
                    }
                    Step::Pop => {
                        let first = heap.first();
                        let expected = model.pop_first();
                        prop_assert_eq!(first, expected.map(|(_, node)| node));
                        if let Some(node) = first {
                            prop_assert!(heap.remove(node));
                        }
                    }
                }
                prop_assert_eq!(heap.len(), model.len());
            }
        }
    }
}
