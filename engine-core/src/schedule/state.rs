//! The owners side by side, and the steps of a sequence's life that concern several of them.

use std::sync::Arc;

use super::arrival::FinishReason;
use super::config::SchedulerConfig;
use super::error::ScheduleError;
use super::flights::Flights;
use super::news::News;
use super::pages::{Holding, Pages};
use super::queue::Queue;
use super::report::SchedulerStats;
use super::reserve::{CLIPPED_OUTPUT, ReserveRatio};
use super::sequence::{Phase, Sequence, SequenceKey};
use super::sequences::Sequences;
use super::transfers::Transfers;
use crate::backend::SlotSampling;

/// All that the scheduler remembers, each part of it behind its owner's verbs.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: SchedulerConfig,
    pub(super) sequences: Sequences,
    pub(super) queue: Queue,
    pub(super) pages: Pages,
    /// `None` without a host tier.
    pub(super) transfers: Option<Transfers>,
    pub(super) flights: Flights,
    pub(super) reserve: ReserveRatio,
    pub(super) news: News,
    pub(super) stats: SchedulerStats,
}

impl State {
    pub(super) fn new(config: SchedulerConfig) -> Result<Self, ScheduleError> {
        config.validate()?;
        let pages = Pages::new(&config)?;
        let groups = pages.full_groups();
        let transfers = config.host_tier.map(|tier| Transfers::new(tier, &config, groups));
        Ok(Self {
            sequences: Sequences::new(config.max_running as usize),
            queue: Queue::new(config.queue_policy),
            transfers,
            pages,
            flights: Flights::new(),
            reserve: ReserveRatio::new(),
            news: News::default(),
            stats: SchedulerStats::default(),
            config,
        })
    }

    /// Whether a step or copies are launched or about to be, and not committed.
    pub(super) fn is_anything_in_flight(&self) -> bool {
        !self.flights.is_empty() || self.transfers.as_ref().is_some_and(Transfers::is_busy)
    }

    /// Slots that are free and reserved for nobody who is being loaded for.
    pub(super) fn unreserved_slots(&self) -> usize {
        let loading = self.transfers.as_ref().map_or(0, |transfers| transfers.loading().count());
        self.pages.free_slots().saturating_sub(loading)
    }

    /// A waiting sequence runs from here on in what it was given to hold, of which `cached`
    /// positions have KV.
    pub(super) fn settle(
        &mut self,
        key: SequenceKey,
        holding: Holding,
        cached: usize,
    ) -> Result<(), ScheduleError> {
        let sequence = self.sequences.of_mut(key);
        let room = sequence.max_tokens.min(CLIPPED_OUTPUT) + 1;
        sequence.tokens.reserve(room);
        let positions = sequence.known() + room;
        let sampling = sampling_of(sequence);
        self.pages.open(&holding, sampling, sequence.retention, positions)?;
        let waited = self.sequences.start(key, holding, cached);
        if !waited.resumed {
            let sequence = self.sequences.of(key);
            let loaded = waited.loaded.end.min(cached).saturating_sub(waited.loaded.start);
            self.stats.prompt_tokens += sequence.prompt_len as u64;
            self.stats.cached_tokens += cached as u64;
            self.stats.host_cached_tokens += loaded as u64;
            self.stats.host_hits += u64::from(loaded > 0);
            self.news.admitted(sequence.id, cached);
        }
        Ok(())
    }

    /// Moves what a running sequence has computed, in whole pages, into the tree.
    pub(super) fn protect(&mut self, key: SequenceKey) -> Result<(), ScheduleError> {
        let Sequence { phase, tokens, .. } = self.sequences.of_mut(key);
        match phase {
            Phase::Running(running) => {
                self.pages.protect(&mut running.holding, tokens, running.computed)
            }
            Phase::Waiting(_) | Phase::Loading(_) => Ok(()),
        }
    }

    /// Puts a running sequence back to the front of the queue, with all its tokens. Its rows in
    /// flight become stale.
    pub(super) fn put_back(&mut self, key: SequenceKey) -> Result<(), ScheduleError> {
        let holding = self.sequences.put_back(key)?;
        self.pages.vacate(holding)?;
        self.queue.rejoin(key);
        Ok(())
    }

    /// Takes a sequence out, wherever it is, and frees what it holds. Rows in flight become stale.
    pub(super) fn finish(
        &mut self,
        key: SequenceKey,
        reason: FinishReason,
    ) -> Result<(), ScheduleError> {
        let is_sound = !matches!(reason, FinishReason::Error(_));
        if is_sound {
            self.protect(key)?;
        }
        let Some(sequence) = self.sequences.remove(key) else { return Ok(()) };
        match sequence.phase {
            Phase::Waiting(_) | Phase::Loading(_) => self.queue.leave(key),
            Phase::Running(running) => {
                if let Some(transfers) = self.transfers.as_mut().filter(|_| is_sound) {
                    transfers.save(self.pages.pool_mut(), running.holding.lock())?;
                }
                self.pages.vacate(running.holding)?;
            }
        }
        self.news.finished(sequence.id, reason);
        Ok(())
    }

    /// Checks that every page and slot has exactly one owner.
    pub(super) fn check(&self) -> Result<(), ScheduleError> {
        let holdings = self.sequences.iter_running();
        let holdings =
            holdings.filter_map(|sequence| Some((sequence.id, &sequence.running()?.holding)));
        let transfers: Vec<_> = self.transfers.iter().flat_map(Transfers::iter).collect();
        self.pages.check(holdings, &transfers)?;
        let waiting = self.queue.len();
        let running = self.sequences.running().len();
        if waiting + running != self.sequences.len() {
            let what = format!("{waiting} sequences wait and {running} run, others do neither");
            return Err(ScheduleError::Ownership(what));
        }
        let loading: Vec<_> =
            self.transfers.iter().flat_map(|transfers| transfers.loading()).collect();
        for key in self.queue.iter() {
            let sequence = self.sequences.of(key);
            if sequence.is_loading() && !loading.iter().any(|(other, _)| *other == key) {
                let what = format!("{:?} waits for a load that ended", sequence.id);
                return Err(ScheduleError::Ownership(what));
            }
        }
        Ok(())
    }
}

/// The slot's sampling state. Penalties read the tokens so far, so those travel with it.
fn sampling_of(sequence: &Sequence) -> Arc<SlotSampling> {
    if !sequence.sampling.has_penalties() {
        return sequence.sampling.clone();
    }
    let mut sampling = SlotSampling::clone(&sequence.sampling);
    sampling.history = sequence.tokens.as_slice().into();
    sampling.history_prompt = sequence.prompt_len as u32;
    Arc::new(sampling)
}
