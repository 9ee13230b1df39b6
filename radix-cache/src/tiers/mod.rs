//! The second tier: copies of pages in the memory of the host.
//!
//! The cache only decides. It returns [`Transfer`]s, copies between numbered pages, which the
//! engine executes and then [confirms](crate::RadixCache::confirm) or
//! [fails](crate::RadixCache::fail). What a transfer reads and writes is locked until then, so
//! neither end of it can be evicted under way. The pages of the host are numbered by the cache
//! itself.
//!
//! Two rules keep every node reachable: a node on the device has its parent on the device, and a
//! node on the host has its parent on the host. Copies to the host therefore start at the first
//! ancestor that is not there yet.

mod placing;
mod transfers;

use core::fmt;

use hashbrown::HashMap;

use crate::config::Policy;
use crate::order::LeafOrder;
use crate::types::{LockId, PageId};

/// The host's part of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct HostTier {
    pub(crate) pages: u32,
    pub(crate) policy: Policy,
    pub(crate) write: WritePolicy,
}

impl HostTier {
    /// Room for so many pages, least recently used first, written through.
    pub fn new(pages: u32) -> Self {
        Self { pages, policy: Policy::default(), write: WritePolicy::default() }
    }

    /// Which pages the host loses first. [Retained](crate::Retention::until) ones go last there too.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Which pages are copied to it, and when.
    pub fn write(mut self, write: WritePolicy) -> Self {
        self.write = write;
        self
    }
}

/// When pages are copied to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum WritePolicy {
    /// As soon as they are [saved](crate::RadixCache::save). Evicting them then costs nothing.
    #[default]
    Through,
    /// When they are [saved](crate::RadixCache::save) after so many hits, which spares the copies of
    /// prompts that never come back.
    ThroughAfterHits(u32),
    /// When they are [demoted](crate::RadixCache::demote), which spares all copies but those of pages
    /// that have to go.
    Back,
}

/// A transfer that was ordered. Ids are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(u64);

impl fmt::Display for TransferId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "transfer {}", self.0)
    }
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Direction {
    /// From the device to the host.
    ToHost,
    /// From the host to the device.
    ToDevice,
}

/// Pages to be copied: each of `device` to or from the one at the same place in `host`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "its pages stay locked until it is confirmed or failed"]
#[non_exhaustive]
pub struct Transfer {
    /// To be confirmed or failed.
    pub id: TransferId,
    /// Which way.
    pub direction: Direction,
    /// Pages on the device.
    pub device: Vec<PageId>,
    /// Pages on the host, as many.
    pub host: Vec<PageId>,
}

/// What the cache remembers of the host.
#[derive(Debug)]
pub(crate) struct HostState {
    pub(crate) tier: HostTier,
    pub(crate) free: Vec<PageId>,
    /// Every unpinned leaf of the host's part, first to go first.
    pub(crate) order: LeafOrder,
    /// Pages on the host in nodes that are not pinned.
    pub(crate) idle: usize,
    under_way: HashMap<TransferId, UnderWay>,
    next: u64,
}

/// What ends with a transfer.
#[derive(Debug)]
pub(crate) struct UnderWay {
    /// Holds the last node of the range.
    lock: LockId,
    /// Where the range starts: pages from the root.
    from: u32,
    direction: Direction,
    /// The pages that change hands: the host's on the way there, the device's on the way back.
    pages: Vec<PageId>,
    /// Where the part starts that is to leave the device: pages from the root.
    leaves_from: Option<u32>,
}

impl HostState {
    pub(crate) fn new(tier: HostTier) -> Self {
        Self {
            tier,
            free: (0..tier.pages).rev().map(PageId).collect(),
            order: LeafOrder::default(),
            idle: 0,
            under_way: HashMap::new(),
            next: 0,
        }
    }

    /// Pages of the host that transfers to it will fill.
    pub(crate) fn on_their_way(&self) -> usize {
        let to_host = self.under_way.values().filter(|it| it.direction == Direction::ToHost);
        to_host.map(|it| it.pages.len()).sum()
    }

    /// Empties the host. Ids of transfers go on.
    pub(crate) fn reset(&mut self) {
        *self = Self { next: self.next, ..Self::new(self.tier) };
    }
}
