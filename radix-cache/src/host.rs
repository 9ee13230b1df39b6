//! The second tier: copies of pages in the memory of the host.
//!
//! The cache only decides. It returns [`Transfer`](crate::Transfer)s, copies between numbered
//! pages, which the engine executes and then [confirms](crate::RadixCache::confirm) or
//! [fails](crate::RadixCache::fail). What a transfer reads and writes is pinned until then, so
//! neither end of it can be evicted under way. The pages of the host are numbered by the cache
//! itself.
//!
//! Two rules keep every node reachable: a node on the device has its parent on the device, and a
//! node on the host has its parent on the host. Copies to the host therefore start at the first
//! ancestor that is not there yet.

use hashbrown::HashMap;

use crate::config::{HostTier, WritePolicy};
use crate::error::CacheError;
use crate::residents::Residents;
use crate::tree::NodeIndex;
use crate::types::{PageId, Tier, TransferId};

/// The pages of the host: free, in the tree, or about to be filled.
#[derive(Debug)]
pub(crate) struct Host {
    tier: HostTier,
    residents: Residents,
    free: Vec<PageId>,
    under_way: HashMap<TransferId, UnderWay>,
    next: u64,
}

/// What ends with a transfer.
#[derive(Debug)]
pub(crate) struct UnderWay {
    /// The last node of the range, pinned.
    pub(crate) end: NodeIndex,
    /// Where the range starts: pages from the root.
    pub(crate) from: u32,
    /// The tier that is written.
    pub(crate) to: Tier,
    /// The pages that change hands: the host's on the way there, the device's on the way back.
    pub(crate) pages: Vec<PageId>,
    /// Where the part starts that is to leave the device: pages from the root.
    pub(crate) leaves_from: Option<u32>,
}

impl Host {
    pub(crate) fn new(tier: HostTier) -> Self {
        Self {
            tier,
            residents: Residents::new(Tier::Host, tier.policy),
            free: (0..tier.pages).rev().map(PageId).collect(),
            under_way: HashMap::new(),
            next: 0,
        }
    }

    pub(crate) fn write_policy(&self) -> WritePolicy {
        self.tier.write
    }

    pub(crate) fn residents(&self) -> &Residents {
        &self.residents
    }

    pub(crate) fn residents_mut(&mut self) -> &mut Residents {
        &mut self.residents
    }

    /// Where pages go that leave the tree.
    pub(crate) fn free_mut(&mut self) -> &mut Vec<PageId> {
        &mut self.free
    }

    /// How many pages have to be evicted before `count` are free; none if that can't be enough.
    pub(crate) fn missing(&self, count: usize) -> Option<usize> {
        let missing = count.saturating_sub(self.free.len());
        (missing <= self.residents.idle()).then_some(missing)
    }

    /// Takes free pages, or none at all.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<PageId>> {
        let kept = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(kept))
    }

    /// Numbers a transfer.
    pub(crate) fn set_out(&mut self, under_way: UnderWay) -> TransferId {
        let id = TransferId(self.next);
        self.next += 1;
        self.under_way.insert(id, under_way);
        id
    }

    /// Ends a transfer.
    pub(crate) fn finish(&mut self, transfer: TransferId) -> Result<UnderWay, CacheError> {
        self.under_way.remove(&transfer).ok_or(CacheError::UnknownTransfer { transfer })
    }

    /// Where transfers end that are under way, for those who check.
    pub(crate) fn ends(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        self.under_way.values().map(|it| it.end)
    }

    /// Pages of the host by owner, and how many there should be, for those who check.
    pub(crate) fn owned(&self) -> (usize, usize) {
        let to_host = self.under_way.values().filter(|it| it.to == Tier::Host);
        let on_their_way: usize = to_host.map(|it| it.pages.len()).sum();
        let owned = self.free.len() + self.residents.total() + on_their_way;
        (owned, self.tier.pages as usize)
    }

    /// Empties the host. Ids of transfers go on, and so does the time.
    pub(crate) fn reset(&mut self) {
        self.residents.reset();
        self.free = (0..self.tier.pages).rev().map(PageId).collect();
        self.under_way.clear();
    }
}
