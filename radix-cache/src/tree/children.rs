//! How a child is found: one table for all nodes, by the hash of (parent, first page).

use hashbrown::HashTable;

use crate::tree::node::NodeIndex;
use crate::types::Token;

/// The children of all nodes. Matches never rest on the hash: whoever looks compares the tokens.
#[derive(Debug)]
pub(super) struct Children {
    table: HashTable<NodeIndex>,
    seed: u64,
}

impl Children {
    pub(super) fn new(seed: u64) -> Self {
        Self { table: HashTable::new(), seed }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        self.table.allocation_size()
    }

    pub(super) fn find(&self, hash: u32, is_it: impl Fn(NodeIndex) -> bool) -> Option<NodeIndex> {
        self.table.find(spread(hash), |&child| is_it(child)).copied()
    }

    /// Files a node; `hash_of` gives the hash of every node that is filed.
    pub(super) fn file(&mut self, node: NodeIndex, hash_of: impl Fn(NodeIndex) -> u32) {
        let spread_of = |&child: &NodeIndex| spread(hash_of(child));
        self.table.insert_unique(spread_of(&node), node, spread_of);
    }

    /// Files a node where another one is filed, under the hash of both.
    pub(super) fn replace(&mut self, hash: u32, old: NodeIndex, new: NodeIndex) {
        if let Ok(mut entry) = self.table.find_entry(spread(hash), |&child| child == old) {
            *entry.get_mut() = new;
        }
    }

    pub(super) fn remove(&mut self, hash: u32, node: NodeIndex) {
        if let Ok(entry) = self.table.find_entry(spread(hash), |&child| child == node) {
            entry.remove();
        }
    }

    pub(super) fn clear(&mut self) {
        self.table.clear();
    }

    /// Hashes (parent, page) by folded multiplication, as wyhash and its kin do: 16 bytes a
    /// multiplication.
    pub(super) fn hash(&self, parent: NodeIndex, page: &[Token]) -> u32 {
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
