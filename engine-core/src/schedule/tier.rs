//! Copies between the device and the host: which are ordered, and what follows when they end.
//!
//! ```text
//!             order                  plan           engine              commit_copies
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
//! is [`Plan::Sync`](super::Plan::Sync) then); what is demoted ahead of need is a small part of the pool; and with
//! nothing under way a plan finds the pages that it would find without a host tier.

use std::collections::VecDeque;

use radix_cache::{Direction, LockId, Match, PageId, Transfer, WritePolicy};

use super::admit::Admission;
use super::config::{HostTierConfig, SchedulerConfig};
use super::queue::{MOST_HELD, matchable};
use super::report::ScheduleError;
use super::scheduler::{GROUP, MAX_IN_FLIGHT, Scheduler};
use super::seeded::SeededBug;
use super::sequence::SequenceKey;
use crate::backend::{PageCopy, SlotEvent, StepError, Tier as Memory};

/// Demoting ahead of need keeps at most this part of the pool free.
const MOST_AHEAD: usize = 8;

/// What the scheduler knows of the host tier.
#[derive(Debug, Default)]
pub(super) struct Tier {
    config: Option<HostTierConfig>,
    /// Ordered, to be started with the next plan.
    queued: Vec<Ordered>,
    /// Started, as many at once as one plan ordered, oldest first. Emptied when the KV was lost.
    started: VecDeque<Vec<Ordered>>,
    /// What the last plan started.
    copies: Vec<PageCopy>,
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
    /// Only a seeded bug confirms a copy before it is executed.
    Confirmed,
}

impl Tier {
    pub(super) fn new(config: &SchedulerConfig) -> Self {
        // What two steps may take: a chunk each, and a page for every sequence now and then.
        let a_step = (config.chunk() + config.max_running as usize).div_ceil(config.page_size);
        let most = (config.pages as usize / MOST_AHEAD).max(1);
        Self { config: config.host_tier, ahead: (2 * a_step).min(most), ..Self::default() }
    }

    /// Whether a copy was ordered and has not ended.
    pub(super) fn is_busy(&self) -> bool {
        !self.queued.is_empty() || !self.started.is_empty()
    }

    /// The sequences that are being loaded for, and where their KV will end on the device.
    pub(super) fn loading(&self) -> impl Iterator<Item = (SequenceKey, usize)> + '_ {
        self.under_way().filter_map(|ordered| match ordered.purpose {
            Purpose::Load { key, end } => Some((key, end)),
            _ => None,
        })
    }

    /// Every transfer that has not ended.
    pub(super) fn transfers(&self) -> impl Iterator<Item = &Transfer> + '_ {
        let counts = |ordered: &&Ordered| !matches!(ordered.purpose, Purpose::Confirmed);
        self.under_way().filter(counts).map(|ordered| &ordered.transfer)
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
        self.config.is_some_and(|config| config.write == WritePolicy::Back)
    }
}

impl Scheduler {
    /// Copies between the tiers that the last [`plan`](Self::plan) orders. They are to be started
    /// after its launch, if there is one, and take effect after it. When they have been executed,
    /// or couldn't be, [`commit_copies`](Self::commit_copies) is told.
    pub fn copies(&self) -> &[PageCopy] {
        &self.tier.copies
    }

    /// Retires the oldest copies in flight: all that one plan ordered. With the error, if
    /// [`Executor::transfer`](crate::backend::Executor::transfer) or
    /// [`Executor::wait_transfer`](crate::backend::Executor::wait_transfer) gave one. Then none of
    /// them counts, and what was to be loaded is computed instead.
    ///
    /// # Errors
    ///
    /// No copies in flight, broken accounting.
    pub fn commit_copies(&mut self, error: Option<&StepError>) -> Result<(), ScheduleError> {
        let ended = self.tier.started.pop_front().ok_or(ScheduleError::NothingInFlight)?;
        if let Some(error @ StepError::KvLost { .. }) = error
            && !ended.is_empty()
        {
            self.tier.started.push_front(ended);
            self.lose_kv(&[], &error.to_string())?;
            self.tier.started.pop_front();
        } else {
            let executed = error.is_none();
            for Ordered { transfer, purpose } in &ended {
                self.end_transfer(transfer, *purpose, executed)?;
            }
            for Ordered { purpose, .. } in &ended {
                if let Purpose::Load { key, .. } = *purpose {
                    self.admit_loaded(key)?;
                }
            }
        }
        if cfg!(debug_assertions) { self.check() } else { Ok(()) }
    }

    /// Copies started and not committed, counted by plan.
    pub fn copies_in_flight(&self) -> usize {
        self.tier.started.len()
    }

    /// Starts what was ordered since the last plan.
    pub(super) fn start_copies(&mut self) {
        self.tier.copies.clear();
        if self.tier.queued.is_empty() || self.tier.started.len() >= MAX_IN_FLIGHT {
            return;
        }
        let started = std::mem::take(&mut self.tier.queued);
        let transfers = started.iter().map(|ordered| &ordered.transfer);
        self.tier.copies.extend(transfers.flat_map(page_copies));
        self.tier.started.push_back(started);
    }

    /// Orders a copy of what a lock holds, as far as the write policy asks for it.
    pub(super) fn save(&mut self, lock: LockId) -> Result<(), ScheduleError> {
        if self.tier.config.is_some()
            && let Some(transfer) = self.pool.save(lock)?
        {
            self.tier.queued.push(Ordered { transfer, purpose: Purpose::Save });
        }
        Ok(())
    }

    /// Makes room for steps to come, where that takes copying.
    pub(super) fn demote_ahead(&mut self) -> Result<(), ScheduleError> {
        if !self.tier.is_write_back() {
            return Ok(());
        }
        let coming = self.pool.free() + self.tier.leaving();
        self.demote(self.tier.ahead.saturating_sub(coming))
    }

    /// Whether so much of a prefix is on the host that loading it is worth the wait.
    pub(super) fn is_worth_loading(&self, key: SequenceKey, found: Match) -> bool {
        self.tier.config.is_some_and(|config| {
            let least = config.min_load_tokens.max(1);
            self.sequences[key].may_load && found.host_tokens >= least
        })
    }

    /// Orders a load of what was `found` on the host for a waiting sequence that would be admitted
    /// otherwise. `None` if it is to be admitted as it is.
    pub(super) fn order_load(
        &mut self,
        key: SequenceKey,
        found: Match,
    ) -> Result<Option<Admission>, ScheduleError> {
        let pages = found.host_tokens / self.pool.page_size();
        let is_patient = self.sequences[key].held < MOST_HELD;
        // A fork's page that is still to be copied may have become free since. The launch that
        // copies it goes first.
        let copies_page = |event: &SlotEvent| matches!(event, SlotEvent::CopyPage { .. });
        if self.slot_events.iter().any(copies_page) {
            return Ok(is_patient.then_some(Admission::Held));
        }
        if is_patient && self.waits_for_demotion(pages)? {
            return Ok(Some(Admission::Held));
        }
        if pages > self.pool.available() {
            // What others copy holds the rest: nobody who runs does, as there is room.
            return Ok(Some(Admission::Full));
        }
        let sequence = &self.sequences[key];
        let loaded = self.pool.load(sequence.namespace, matchable(sequence), pages)?;
        let Some(transfer) = loaded else { return Ok(None) };
        let sequence = &mut self.sequences[key];
        sequence.may_load = false;
        sequence.loading = Some(transfer.id);
        let tokens = transfer.device.len() * self.config.page_size;
        // Making room may have taken from the front of it, which then is loaded first.
        let after = self.pool.probe(sequence.namespace, matchable(sequence)).tokens;
        sequence.loaded = after..after + tokens;
        let purpose = Purpose::Load { key, end: after + tokens };
        if self.config.has_bug(SeededBug::LoadConfirmedTooEarly) {
            self.end_transfer(&transfer, purpose, true)?;
            self.tier.queued.push(Ordered { transfer, purpose: Purpose::Confirmed });
            return Ok(None);
        }
        self.tier.queued.push(Ordered { transfer, purpose });
        Ok(Some(Admission::Loading))
    }

    /// Under write-back, whether pages are being demoted that a load of so many should wait for:
    /// evicting would forget what can be kept.
    fn waits_for_demotion(&mut self, pages: usize) -> Result<bool, ScheduleError> {
        if !self.tier.is_write_back() || pages <= self.pool.free() {
            return Ok(false);
        }
        // The load takes what was kept free for steps.
        let coming = self.pool.free() + self.tier.leaving();
        self.demote((pages + self.tier.ahead).saturating_sub(coming))?;
        Ok(pages > self.pool.free() && self.tier.leaving() > 0)
    }

    fn demote(&mut self, pages: usize) -> Result<(), ScheduleError> {
        if pages == 0 {
            return Ok(());
        }
        let mut transfers = Vec::new();
        let mut leaving = self.pool.demote(pages, &mut transfers)?;
        for transfer in transfers {
            // They are ordered, started and ended together, so the first stands for all.
            let mut purpose = Purpose::Demotion { leaving: std::mem::take(&mut leaving) };
            if self.has_bug(SeededBug::DemotedPagesFreedTooEarly) {
                self.end_transfer(&transfer, purpose, true)?;
                purpose = Purpose::Confirmed;
            }
            self.tier.queued.push(Ordered { transfer, purpose });
        }
        Ok(())
    }

    fn end_transfer(
        &mut self,
        transfer: &Transfer,
        purpose: Purpose,
        executed: bool,
    ) -> Result<(), ScheduleError> {
        if matches!(purpose, Purpose::Confirmed) {
            return Ok(());
        }
        if executed || self.has_bug(SeededBug::FailedCopyTrusted) {
            self.pool.confirm(transfer)?;
        } else {
            self.pool.fail(transfer)?;
        }
        let pages = transfer.device.len() as u64;
        match (executed, transfer.direction) {
            (false, _) => self.stats.failed_transfers += 1,
            (true, Direction::ToHost) => self.stats.pages_to_host += pages,
            (true, _) => self.stats.loaded_tokens += pages * self.config.page_size as u64,
        }
        self.stats.transfers += u64::from(executed);
        if let Purpose::Load { key, .. } = purpose
            && let Some(sequence) = self.sequences.get_mut(key)
        {
            sequence.loading = None;
            if !executed {
                sequence.loaded = 0..0;
            }
        }
        Ok(())
    }

    /// Admits a sequence that was waiting for a load, at once, so that nobody evicts it again. Without
    /// room it waits on like any other.
    fn admit_loaded(&mut self, key: SequenceKey) -> Result<(), ScheduleError> {
        let Some(sequence) = self.sequences.get(key) else { return Ok(()) };
        let arrival = sequence.arrival;
        // Reserved slots are of those who are still being loaded for.
        if self.free_slots.len() > self.tier.loading().count()
            && self.try_admit(key)? == Admission::Admitted
        {
            self.waiting.retain(|&other| other != key);
            self.count_passed_over(arrival);
        }
        Ok(())
    }

    /// The KV is lost: copies that are under way are of no use to anyone.
    pub(super) fn forget_copies(&mut self) -> Result<(), ScheduleError> {
        let started = self.tier.started.iter_mut().flat_map(std::mem::take);
        for Ordered { transfer, purpose } in started.chain(std::mem::take(&mut self.tier.queued)) {
            if matches!(purpose, Purpose::Confirmed) {
                continue;
            }
            self.pool.forget(&transfer)?;
            if self.config.has_bug(SeededBug::LoadOutlivesKvLoss) {
                continue;
            }
            if let Purpose::Load { key, .. } = purpose
                && let Some(sequence) = self.sequences.get_mut(key)
            {
                (sequence.loading, sequence.may_load, sequence.loaded) = (None, true, 0..0);
            }
        }
        Ok(())
    }
}

impl Tier {
    /// Only a seeded bug forgets a load that is under way.
    pub(super) fn forget_load(&mut self, gone: SequenceKey) {
        let stays = |ordered: &Ordered| match ordered.purpose {
            Purpose::Load { key, .. } => key != gone,
            _ => true,
        };
        self.queued.retain(stays);
        self.started.iter_mut().for_each(|started| started.retain(stays));
    }
}

fn page_copies(transfer: &Transfer) -> impl Iterator<Item = PageCopy> + '_ {
    let to_host = transfer.direction == Direction::ToHost;
    let pairs = transfer.device.iter().zip(&transfer.host);
    pairs.map(move |(&device, &host): (&PageId, &PageId)| {
        let (device, host) = ((Memory::Device, device), (Memory::Host, host));
        let (from, to) = if to_host { (device, host) } else { (host, device) };
        PageCopy { group: GROUP, from, to }
    })
}
