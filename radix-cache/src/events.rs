//! What changed, told to those who follow: routers that place requests by cached prefix.
//!
//! The events carry what SGLang's and vLLM's KV events carry (hashes of blocks, their parent's
//! hash, tokens, block size, adapter, medium), so that what follows those can follow this.

use core::ops::Range;
use std::collections::VecDeque;

use crate::tree::{NodeIndex, Tree};
use crate::types::{Namespace, PageGroup, Tier, Token};
use crate::windowed::{WindowedGroup, stretches};

/// One change, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Event {
    /// Counts changes from 0 without a gap. Whoever sees a gap has missed some, because the buffer
    /// was full, and starts anew from [`dump`](crate::RadixCache::dump_events).
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

/// The events that wait to be taken.
#[derive(Debug)]
pub(crate) struct EventLog {
    capacity: usize,
    waiting: VecDeque<Event>,
    next: u64,
}

impl EventLog {
    /// A log of at most `capacity` events; none if that is none at all.
    pub(crate) fn new(capacity: usize) -> Option<Self> {
        (capacity > 0).then(|| Self { capacity, waiting: VecDeque::new(), next: 0 })
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.waiting.drain(..)
    }

    /// The sequence number the next event will have.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Tells of pages of a node that are there anew.
    pub(crate) fn stored(
        &mut self,
        tree: &Tree,
        node: NodeIndex,
        pages: Range<u32>,
        (tier, group): (Tier, PageGroup),
    ) {
        self.push(Change::Stored(stored(tree, node, pages, (tier, group))));
    }

    /// Tells of a node's pages from `from` on, which are about to be removed from a tier.
    pub(crate) fn removed(&mut self, tree: &Tree, node: NodeIndex, from: u32, tier: Tier) {
        let run = tree.node(node).run;
        let hashes = tree.store().hashes(run, from..run.pages);
        let (namespace, group) = (tree.namespace_of(node), PageGroup::Full);
        self.push(Change::Removed { namespace, tier, group, hashes });
    }

    /// Tells of windowed pages of a namespace that are about to be removed, or just were.
    pub(crate) fn windowed_removed(
        &mut self,
        tree: &Tree,
        root: NodeIndex,
        slots: impl Iterator<Item = usize>,
    ) {
        let hashes: Vec<u64> = slots.filter_map(|slot| tree.store().hash_at(slot)).collect();
        if !hashes.is_empty() {
            let namespace = tree.namespace_of(root);
            let (tier, group) = (Tier::Device, PageGroup::Windowed);
            self.push(Change::Removed { namespace, tier, group, hashes });
        }
    }

    /// Tells that nothing is left.
    pub(crate) fn cleared(&mut self) {
        self.push(Change::Cleared);
    }

    /// All that is there as events with the next event's number, parents first.
    pub(crate) fn dump(&self, tree: &Tree, windowed: Option<&WindowedGroup>) -> Vec<Event> {
        let all = tree.parents_first().into_iter().flat_map(|node| {
            let on = [Tier::Device, Tier::Host].into_iter();
            let on = on.filter(move |&tier| tree.node(node).is_on(tier));
            let everything = 0..tree.node(node).run.pages;
            let full =
                on.map(move |tier| stored(tree, node, everything.clone(), (tier, PageGroup::Full)));
            let places = windowed.iter().flat_map(|group| group.pages_in(tree, node));
            let windowed = stretches(places.map(|(place, _)| place).collect()).into_iter();
            let group = (Tier::Device, PageGroup::Windowed);
            full.chain(windowed.map(move |pages| stored(tree, node, pages, group)))
        });
        all.map(|stored| Event { sequence: self.next, change: Change::Stored(stored) }).collect()
    }

    fn push(&mut self, change: Change) {
        if self.waiting.len() >= self.capacity {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Event { sequence: self.next, change });
        self.next += 1;
    }
}

fn stored(
    tree: &Tree,
    node: NodeIndex,
    pages: Range<u32>,
    (tier, group): (Tier, PageGroup),
) -> Stored {
    let page_size = tree.page_size();
    let run = tree.node(node).run;
    let tokens = tree.store().extents_of(run).flat_map(|(tokens, _)| tokens);
    let tokens = tokens.skip(pages.start as usize * page_size).take(pages.len() * page_size);
    Stored {
        namespace: tree.namespace_of(node),
        tier,
        group,
        parent: tree.hash_before(node, pages.start),
        start: (tree.node(node).start() + pages.start) as usize * page_size,
        page_size,
        hashes: tree.store().hashes(run, pages),
        tokens: tokens.copied().collect(),
    }
}
