//! Copies between the device and the host, from their order to their end.
//!
//! ```text
//!             order                  plan           engine              input
//! queued:  save | demote | load  ->  started  ->  copies executed  ->  confirmed or failed
//! ```
//!
//! - **Load.** A waiting sequence whose prefix is on the host has it loaded into pages that are its
//!   own from then on, waits with a slot reserved while others go on, and is admitted when the copy
//!   has been executed. It is loaded for once: if that fails, the prefix is computed.
//! - **Save.** Under write-through, what a sequence computed is copied when it ends.
//! - **Demote.** Under write-back, pages are copied before they are needed: whenever fewer are free
//!   than the next two steps may take. A step that still finds too few evicts; no step waits
//!   for a copy to the host.
//!
//! Copies lock what they read, so less can be had while they are under way. Three rules keep
//! everybody going: nobody is put back and nobody is stuck while anything is under way (the plan
//! is [`Plan::Sync`](super::Plan::Sync) then); what is demoted ahead of need is a small part of
//! the pool; and with nothing under way a plan finds the pages that it would find without a host
//! tier.

use std::collections::VecDeque;

use radix_cache::{LockId, Match, Namespace, PageId, Token, Transfer, WritePolicy};

use super::config::{HostTierConfig, SchedulerConfig};
use super::error::ScheduleError;
use super::flights::MAX_IN_FLIGHT;
use super::report::SchedulerStats;
use super::sequence::SequenceKey;
use crate::backend::{GroupId, PageCopy, Tier};
use crate::kv::{KvPool, PoolError};

/// Demoting ahead of need keeps at most this part of the pool free.
const MOST_AHEAD: usize = 8;

/// Owns the copies that were ordered and have not ended.
#[derive(Debug)]
pub(super) struct Transfers {
    config: HostTierConfig,
    page_size: usize,
    /// Groups whose pages are copied.
    groups: Vec<GroupId>,
    /// Ordered, to be started with the next plan.
    queued: Vec<Ordered>,
    /// Started, as many at once as one plan ordered, oldest first. Emptied when the KV was lost.
    started: VecDeque<Vec<Ordered>>,
    /// Pages that are to be free before they are needed, under write-back.
    ahead: usize,
}

/// A copy that was ordered and has not ended.
#[derive(Debug)]
struct Ordered {
    transfer: Transfer,
    purpose: Purpose,
}

#[derive(Clone, Copy, Debug)]
enum Purpose {
    Save,
    /// Frees pages when it ends; so many, those of the copies ordered with it included.
    Demotion {
        leaving: usize,
    },
    /// For a sequence, whose KV will then be on the device up to a position.
    Load {
        key: SequenceKey,
        end: usize,
    },
}

/// A load that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) key: SequenceKey,
    /// The copy was executed.
    pub(super) executed: bool,
}

impl Transfers {
    pub(super) fn new(
        config: HostTierConfig,
        scheduler: &SchedulerConfig,
        groups: &[GroupId],
    ) -> Self {
        // What two steps may take: a chunk each, and a page for every sequence now and then.
        let page_size = scheduler.page_size;
        let a_step = (scheduler.chunk() + scheduler.max_running as usize).div_ceil(page_size);
        let most = (scheduler.pages as usize / MOST_AHEAD).max(1);
        Self {
            config,
            page_size,
            groups: groups.to_vec(),
            queued: Vec::new(),
            started: VecDeque::new(),
            ahead: (2 * a_step).min(most),
        }
    }

    /// Whether a copy was ordered and has not ended.
    pub(super) fn is_busy(&self) -> bool {
        !self.queued.is_empty() || !self.started.is_empty()
    }

    /// Plans whose copies have not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.started.len()
    }

    /// The sequences that are being loaded for, and where their KV will end on the device.
    pub(super) fn loading(&self) -> impl Iterator<Item = (SequenceKey, usize)> + '_ {
        self.under_way().filter_map(|ordered| match ordered.purpose {
            Purpose::Load { key, end } => Some((key, end)),
            _ => None,
        })
    }

    /// Every transfer that has not ended.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Transfer> + '_ {
        self.under_way().map(|ordered| &ordered.transfer)
    }

    /// Starts what was ordered since the last plan: appends the copies.
    pub(super) fn start(&mut self, copies: &mut Vec<PageCopy>) {
        if self.queued.is_empty() || self.started.len() >= MAX_IN_FLIGHT {
            return;
        }
        let started = std::mem::take(&mut self.queued);
        for ordered in &started {
            for &group in &self.groups {
                copies.extend(page_copies(&ordered.transfer, group));
            }
        }
        self.started.push_back(started);
    }

    /// Orders a copy of what a lock holds, as far as the write policy asks for it.
    pub(super) fn save(&mut self, pool: &mut KvPool, lock: LockId) -> Result<(), ScheduleError> {
        if let Some(transfer) = pool.cache_mut().save(lock).map_err(PoolError::from)? {
            self.queued.push(Ordered { transfer, purpose: Purpose::Save });
        }
        Ok(())
    }

    /// Makes room for steps to come, where that takes copying.
    pub(super) fn demote_ahead(&mut self, pool: &mut KvPool) -> Result<(), ScheduleError> {
        if !self.is_write_back() {
            return Ok(());
        }
        let coming = pool.free() + self.leaving();
        self.demote(pool, self.ahead.saturating_sub(coming))
    }

    /// Whether so much of a prefix is on the host that loading it is worth the wait.
    pub(super) fn is_worth_loading(&self, found: Match) -> bool {
        found.host_tokens >= self.config.min_load_tokens.max(1)
    }

    /// Under write-back, whether pages are being demoted that a load of so many should wait for:
    /// evicting would forget what can be kept.
    pub(super) fn waits_for_demotion(
        &mut self,
        pool: &mut KvPool,
        pages: usize,
    ) -> Result<bool, ScheduleError> {
        if !self.is_write_back() || pages <= pool.free() {
            return Ok(false);
        }
        // The load takes what was kept free for steps.
        let coming = pool.free() + self.leaving();
        self.demote(pool, (pages + self.ahead).saturating_sub(coming))?;
        Ok(pages > pool.free() && self.leaving() > 0)
    }

    /// Orders a load of `pages` that follow the match of `tokens` on the device. Returns where the
    /// KV of the sequence will begin to be loaded, and how many tokens will be; `None` if there is
    /// nothing to load.
    pub(super) fn load(
        &mut self,
        pool: &mut KvPool,
        key: SequenceKey,
        (namespace, tokens): (Namespace, &[Token]),
        pages: usize,
    ) -> Result<Option<std::ops::Range<usize>>, ScheduleError> {
        let Some(transfer) = pool.load(namespace, tokens, pages)? else { return Ok(None) };
        // Making room may have taken from the front of it, which then is loaded first.
        let start = pool.cache().probe(namespace, tokens).tokens;
        let end = start + transfer.device.len() * self.page_size;
        self.queued.push(Ordered { transfer, purpose: Purpose::Load { key, end } });
        Ok(Some(start..end))
    }

    /// The oldest copies in flight have ended: all that one plan ordered. Returns the loads among
    /// them, in order.
    pub(super) fn end(
        &mut self,
        pool: &mut KvPool,
        executed: bool,
        stats: &mut SchedulerStats,
    ) -> Result<Vec<Loaded>, ScheduleError> {
        let ended = self.started.pop_front().ok_or(ScheduleError::NothingInFlight)?;
        let mut loads = Vec::new();
        for Ordered { transfer, purpose } in ended {
            if executed {
                pool.confirm(&transfer)?;
            } else {
                pool.fail(&transfer)?;
            }
            let pages = transfer.device.len() as u64;
            match (executed, transfer.to) {
                (false, _) => stats.failed_transfers += 1,
                (true, Tier::Host) => stats.pages_to_host += pages,
                (true, _) => stats.loaded_tokens += pages * self.page_size as u64,
            }
            stats.transfers += u64::from(executed);
            if let Purpose::Load { key, .. } = purpose {
                loads.push(Loaded { key, executed });
            }
        }
        Ok(loads)
    }

    /// The oldest copies in flight took the KV with them. Whether there is anything left that
    /// [`forget`](Self::forget) has not forgotten before.
    pub(super) fn took_kv(&mut self) -> Result<bool, ScheduleError> {
        let oldest = self.started.front().ok_or(ScheduleError::NothingInFlight)?;
        Ok(!oldest.is_empty())
    }

    /// Copies that were forgotten while they were in flight have ended.
    pub(super) fn end_forgotten(&mut self) {
        self.started.pop_front();
    }

    /// The KV is lost: copies that are under way are of no use to anyone. Those that are started
    /// still end. Returns the sequences that were being loaded for.
    pub(super) fn forget(&mut self, pool: &mut KvPool) -> Result<Vec<SequenceKey>, ScheduleError> {
        let started = self.started.iter_mut().flat_map(std::mem::take);
        let mut keys = Vec::new();
        for Ordered { transfer, purpose } in started.chain(std::mem::take(&mut self.queued)) {
            pool.forget(&transfer)?;
            if let Purpose::Load { key, .. } = purpose {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    fn under_way(&self) -> impl Iterator<Item = &Ordered> + '_ {
        self.started.iter().flatten().chain(&self.queued)
    }

    /// Pages that demotions will free when they end.
    fn leaving(&self) -> usize {
        let leaving = self.under_way().map(|ordered| match ordered.purpose {
            Purpose::Demotion { leaving } => leaving,
            _ => 0,
        });
        leaving.sum()
    }

    fn is_write_back(&self) -> bool {
        self.config.write == WritePolicy::Back
    }

    fn demote(&mut self, pool: &mut KvPool, pages: usize) -> Result<(), ScheduleError> {
        if pages == 0 {
            return Ok(());
        }
        let mut transfers = Vec::new();
        let mut leaving = pool.demote(pages, &mut transfers)?;
        // They are ordered, started and ended together, so the first stands for all.
        self.queued.extend(transfers.into_iter().map(|transfer| {
            let purpose = Purpose::Demotion { leaving: std::mem::take(&mut leaving) };
            Ordered { transfer, purpose }
        }));
        Ok(())
    }
}

fn page_copies(transfer: &Transfer, group: GroupId) -> impl Iterator<Item = PageCopy> + '_ {
    let to_host = transfer.to == Tier::Host;
    let pairs = transfer.device.iter().zip(&transfer.host);
    pairs.map(move |(&device, &host): (&PageId, &PageId)| {
        let (device, host) = ((Tier::Device, device), (Tier::Host, host));
        let (from, to) = if to_host { (device, host) } else { (host, device) };
        PageCopy { group, from, to }
    })
}
