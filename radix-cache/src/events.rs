//! What changed, told to those who follow: routers that place requests by cached prefix.
//!
//! The events carry what SGLang's and vLLM's KV events carry (hashes of blocks, their parent's
//! hash, tokens, block size, adapter, medium), so that what follows those can follow this.
//!
//! # Hashes
//!
//! A page's hash is `XXH3_64(tokens, seed)`: the page's tokens as little-endian 32-bit numbers,
//! and as seed the hash of the page before it, or for the first page of a prompt
//! [`Namespace::seed`]. Equal hashes thus stand for equal prefixes, as far as 64 bits can tell. The
//! algorithm is part of the interface and will not change within a major version. The cache itself
//! never relies on it.

use core::ops::Range;
use std::collections::VecDeque;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cache::RadixCache;
use crate::node::NodeIndex;
use crate::types::{Namespace, PageGroup, Tier, Token};
use crate::windowed::stretches;

/// One change, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Event {
    /// Counts changes from 0 without a gap. Whoever sees a gap has missed some, because the buffer
    /// was full, and starts anew from [`dump`](RadixCache::dump_events).
    pub sequence: u64,
    /// What changed.
    pub change: Change,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Change {
    /// Pages were added behind a prefix.
    Stored(Stored),
    /// Pages are no longer there.
    Removed {
        /// Whose they were.
        namespace: Namespace,
        /// Where they were.
        tier: Tier,
        /// Of which group they were.
        group: PageGroup,
        /// Their hashes, in the order of the prompt.
        hashes: Vec<u64>,
    },
    /// Nothing is left, in any namespace and on any tier.
    Cleared,
}

/// Pages that were added behind a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stored {
    /// Whose they are.
    pub namespace: Namespace,
    /// Where they are.
    pub tier: Tier,
    /// Of which group they are. Those of the [windowed](PageGroup::Windowed) group stand for
    /// prefixes that are stored in the full group, and leave no later than these: a prompt can
    /// be continued where both have what it needs.
    pub group: PageGroup,
    /// The hash of the page before them; none at the start of a prompt.
    pub parent: Option<u64>,
    /// The position of their first token in the prompt.
    pub start: usize,
    /// Tokens a page holds.
    pub page_size: usize,
    /// One hash a page.
    pub hashes: Vec<u64>,
    /// Their tokens: `page_size` for each hash.
    pub tokens: Vec<Token>,
}

impl Namespace {
    /// The seed of the [hash](page_hash) of a prompt's first page: the tenant's number without a
    /// salt, `XXH3_64(salt as 8 little-endian bytes, tenant)` with one.
    #[must_use]
    pub fn seed(self) -> u64 {
        match self.salt {
            0 => self.tenant,
            salt => xxh3_64_with_seed(&salt.to_le_bytes(), self.tenant),
        }
    }
}

/// The hash of a page that follows a prefix with the hash `seed`, or that starts a prompt of a
/// namespace with this [`seed`](Namespace::seed).
///
/// ```
/// let prompt = radix_cache::page_hash(radix_cache::Namespace::tenant(7).seed(), &[1, 2, 3, 4]);
/// let longer = radix_cache::page_hash(prompt, &[5, 6, 7, 8]);
/// assert_ne!(prompt, longer);
/// ```
#[must_use]
pub fn page_hash(seed: u64, tokens: &[Token]) -> u64 {
    // The largest page is 512 tokens; longer input is a caller's, and takes the slow way.
    let mut buffer = [0; 512 * size_of::<Token>()];
    let Some(bytes) = buffer.get_mut(..size_of_val(tokens)) else {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        return xxh3_64_with_seed(&bytes, seed);
    };
    for (bytes, token) in bytes.chunks_exact_mut(size_of::<Token>()).zip(tokens) {
        bytes.copy_from_slice(&token.to_le_bytes());
    }
    xxh3_64_with_seed(bytes, seed)
}

/// The events nobody has taken yet. Without a capacity, none are made.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    capacity: usize,
    waiting: VecDeque<Event>,
    next: u64,
}

impl EventLog {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.capacity > 0
    }

    fn push(&mut self, change: Change) {
        if self.waiting.len() >= self.capacity {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Event { sequence: self.next, change });
        self.next += 1;
    }
}

impl RadixCache {
    /// Takes the events that nobody has taken yet, oldest first. At most as many wait as
    /// [`CacheConfig::events`](crate::CacheConfig::events) allows; when more happen the oldest are
    /// lost, which the sequence numbers show.
    pub fn drain_events(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.events.waiting.drain(..)
    }

    /// The sequence number the next event will have.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.events.next
    }

    /// The whole cache as events, parents first, for somebody who starts to follow or who missed
    /// some. They carry the sequence number of the next event: what follows them is whatever has
    /// that number or a larger one. Empty if events are off.
    #[must_use]
    pub fn dump_events(&self) -> Vec<Event> {
        if !self.events.is_on() {
            return Vec::new();
        }
        let nodes = self.tree.parents_first();
        let stored = nodes.into_iter().flat_map(|node| {
            let (device, host) = (self.tree.node(node).device, self.tree.node(node).host);
            let tiers = [(Tier::Device, device), (Tier::Host, host)];
            let on = tiers.into_iter().filter(|(_, is_there)| *is_there);
            let full = on.map(move |(tier, _)| self.stored(node, self.all_of(node), tier));
            let windowed = stretches(self.windowed_in(node).map(|(place, _)| place).collect());
            full.chain(windowed.into_iter().map(move |pages| Stored {
                group: PageGroup::Windowed,
                ..self.stored(node, pages, Tier::Device)
            }))
        });
        stored
            .map(|stored| Event { sequence: self.events.next, change: Change::Stored(stored) })
            .collect()
    }

    /// Hashes the pages of a node from `from` on, which are new, and tells of them.
    pub(crate) fn note_stored(&mut self, node: NodeIndex, from: u32) {
        if !self.events.is_on() {
            return;
        }
        let seed = self.seed(node, from).unwrap_or_else(|| self.tree.namespace_of(node).seed());
        let run = self.tree.node(node).run;
        self.tree.store.chain(run, from, seed);
        let stored = self.stored(node, from..run.pages, Tier::Device);
        self.events.push(Change::Stored(stored));
    }

    /// Tells of a node's pages that are on a tier anew.
    pub(crate) fn note_stored_on(&mut self, node: NodeIndex, tier: Tier) {
        if self.events.is_on() {
            let stored = self.stored(node, self.all_of(node), tier);
            self.events.push(Change::Stored(stored));
        }
    }

    /// Tells of a node that is about to be removed from wherever it is.
    pub(crate) fn note_removed(&mut self, node: NodeIndex) {
        let (device, host) = (self.tree.node(node).device, self.tree.node(node).host);
        for (tier, is_there) in [(Tier::Device, device), (Tier::Host, host)] {
            if is_there {
                self.note_removed_from(node, 0, tier);
            }
        }
    }

    /// Tells of pages of a node, from `from` on, that are about to be removed from a tier.
    pub(crate) fn note_removed_from(&mut self, node: NodeIndex, from: u32, tier: Tier) {
        if !self.events.is_on() {
            return;
        }
        let run = self.tree.node(node).run;
        let hashes = self.tree.store.hashes(run, from..run.pages);
        let namespace = self.tree.namespace_of(node);
        let group = PageGroup::Full;
        self.events.push(Change::Removed { namespace, tier, group, hashes });
    }

    /// Tells of pages of a node that have windowed pages anew.
    pub(crate) fn note_windowed_stored(&mut self, node: NodeIndex, pages: Range<u32>) {
        let stored = self.stored(node, pages, Tier::Device);
        self.events.push(Change::Stored(Stored { group: PageGroup::Windowed, ..stored }));
    }

    /// Tells of windowed pages of a namespace that are about to be removed, or just were.
    pub(crate) fn note_windowed_removed(
        &mut self,
        root: NodeIndex,
        slots: impl Iterator<Item = usize>,
    ) {
        let namespace = self.tree.namespace_of(root);
        let hashes: Vec<u64> = slots.filter_map(|slot| self.tree.store.hash_at(slot)).collect();
        let (tier, group) = (Tier::Device, PageGroup::Windowed);
        if !hashes.is_empty() {
            self.events.push(Change::Removed { namespace, tier, group, hashes });
        }
    }

    pub(crate) fn note_cleared(&mut self) {
        if self.events.is_on() {
            self.events.push(Change::Cleared);
        }
    }

    fn all_of(&self, node: NodeIndex) -> Range<u32> {
        0..self.tree.node(node).run.pages
    }

    fn stored(&self, node: NodeIndex, pages: Range<u32>, tier: Tier) -> Stored {
        let page_size = self.page_size();
        let run = self.tree.node(node).run;
        let start = (self.tree.node(node).start() + pages.start) as usize * page_size;
        let all = self.tree.store.extents_of(run).flat_map(|(tokens, _)| tokens);
        Stored {
            namespace: self.tree.namespace_of(node),
            tier,
            group: PageGroup::Full,
            parent: self.seed(node, pages.start),
            start,
            page_size,
            hashes: self.tree.store.hashes(run, pages.clone()),
            tokens: all
                .skip(pages.start as usize * page_size)
                .take(pages.len() * page_size)
                .copied()
                .collect(),
        }
    }

    /// The hash of the page before the page `from` of a node; none at the start of a prompt.
    fn seed(&self, node: NodeIndex, from: u32) -> Option<u64> {
        let (run, at) = match from {
            0 => {
                let parent = self.tree.node(self.tree.node(node).parent);
                (parent.run, parent.run.pages)
            }
            _ => (self.tree.node(node).run, from),
        };
        self.tree.store.hash_before(run, at)
    }
}
