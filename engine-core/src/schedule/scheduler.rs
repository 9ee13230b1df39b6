//! The state machine: its state, what it is told, and what can be asked of it.

use std::collections::VecDeque;

use hashbrown::HashMap;
use radix_cache::{CacheConfig, Namespace};
use slotmap::SlotMap;

use super::config::{Refusal, SchedulerConfig};
use super::report::{Event, Plan, ScheduleError, SchedulerStats};
use super::reserve::ReserveRatio;
use super::seeded::SeededBug;
use super::sequence::{Arrival, FinishReason, RequestId, Sequence, SequenceId, SequenceKey};
use super::tier::Tier;
use crate::backend::{
    Batch, GroupId, InputToken, OutputRequest, Row, SlotEvent, SlotId, Slots, Span,
};
use crate::kv::{KvPool, PageCounts};

/// The one page group of today's programs.
pub(super) const GROUP: GroupId = GroupId(0);

/// Most steps that are launched and not committed.
pub(super) const MAX_IN_FLIGHT: usize = 2;

/// Decides what runs next. See the [module](super).
#[derive(Debug)]
pub struct Scheduler {
    pub(super) config: SchedulerConfig,
    pub(super) sequences: SlotMap<SequenceKey, Sequence>,
    pub(super) by_id: HashMap<SequenceId, SequenceKey>,
    /// In queue order; resumed ones in front.
    pub(super) waiting: VecDeque<SequenceKey>,
    /// In the order of admission.
    pub(super) running: Vec<SequenceKey>,
    pub(super) pool: KvPool,
    pub(super) tier: Tier,
    pub(super) slots: Slots,
    pub(super) free_slots: Vec<SlotId>,
    /// Launched steps, oldest first.
    pub(super) in_flight: VecDeque<Launched>,
    /// Retired ones, for their memory.
    spare: Vec<Launched>,
    pub(super) next: NextBatch,
    /// Slot events since the last launch; they travel with the next one.
    pub(super) slot_events: Vec<SlotEvent>,
    pub(super) reserve: ReserveRatio,
    pub(super) events: Vec<Event>,
    pub(super) stats: SchedulerStats,
    /// KV was lost: plan nothing until all steps launched before have been committed.
    pub(super) draining: bool,
    pub(super) last_forced_retraction: u64,
    step: u64,
    arrivals: u64,
}

/// A launched step, as far as its commit needs it.
#[derive(Debug, Default)]
pub(super) struct Launched {
    pub(super) step: u64,
    pub(super) rows: Vec<LaunchedRow>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LaunchedRow {
    pub(super) key: SequenceKey,
    pub(super) epoch: u32,
    pub(super) slot: SlotId,
    /// Positions that exist once the row has run.
    pub(super) end: usize,
    pub(super) outputs: Span,
    pub(super) is_prefill: bool,
}

/// The batch that was planned last. Kept for its memory.
#[derive(Debug, Default)]
pub(super) struct NextBatch {
    pub(super) tokens: Vec<InputToken>,
    pub(super) rows: Vec<Row>,
    pub(super) decode_rows: u32,
    pub(super) outputs: Vec<OutputRequest>,
    /// Outputs that need masks, and whose they are.
    pub(super) constrained: Vec<(u32, SequenceId)>,
    events: Vec<SlotEvent>,
    pub(super) launched: Launched,
}

impl Scheduler {
    /// A scheduler with empty cache and queue.
    ///
    /// # Errors
    ///
    /// A page size or limits that make no sense.
    pub fn new(config: SchedulerConfig) -> Result<Self, ScheduleError> {
        if config.max_running == 0 || config.pages == 0 || config.context_length < 2 {
            return Err(ScheduleError::Config(format!(
                "{} slots, {} pages and a context of {} tokens can't serve a request",
                config.max_running, config.pages, config.context_length
            )));
        }
        let cache = CacheConfig::default()
            .page_size(config.page_size)
            .policy(config.eviction_policy)
            .events(config.cache_events);
        let pool = config.pool(cache)?;
        // A page for every slot in one step is common: they grow in step. The two lists change
        // places at each launch.
        let events = 2 * config.max_running as usize;
        Ok(Self {
            sequences: SlotMap::with_key(),
            by_id: HashMap::new(),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(config.max_running as usize),
            pool,
            tier: Tier::new(&config),
            slots: Slots::new(config.max_running, 1),
            free_slots: (0..config.max_running).rev().map(SlotId).collect(),
            in_flight: VecDeque::with_capacity(MAX_IN_FLIGHT),
            spare: Vec::with_capacity(MAX_IN_FLIGHT + 1),
            next: NextBatch { events: Vec::with_capacity(events), ..NextBatch::default() },
            slot_events: Vec::with_capacity(events),
            reserve: ReserveRatio::new(),
            events: Vec::new(),
            stats: SchedulerStats::default(),
            draining: false,
            last_forced_retraction: 0,
            step: 0,
            arrivals: 0,
            config,
        })
    }

    /// What it was built with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Puts a sequence into the queue.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]; nothing changes then.
    pub fn arrive(&mut self, arrival: Arrival) -> Result<(), Refusal> {
        self.config.check_arrival(&arrival)?;
        if self.waiting.len() >= self.config.max_waiting {
            return Err(Refusal::QueueFull { waiting: self.waiting.len() });
        }
        let request = arrival.id.request;
        let key = self.add(arrival)?;
        if !self.config.cache {
            // Nothing is kept for others, so a request shares with itself alone.
            self.sequences[key].namespace.salt = request.0;
        }
        self.waiting.push_back(key);
        Ok(())
    }

    /// Tells the time, for prefixes that are to be kept for a while: ticks of whatever clock the
    /// caller gave [`Arrival::retention`] in.
    pub fn advance(&mut self, now: u64) {
        self.pool.advance(now);
    }

    /// Takes the changes of the cache that nobody has taken yet.
    pub fn drain_cache_events(&mut self) -> impl Iterator<Item = radix_cache::Event> + '_ {
        self.pool.drain_events()
    }

    /// Ends a request's sequences wherever they are. Rows that are in flight will be dropped.
    /// Does nothing where they have ended already.
    ///
    /// # Errors
    ///
    /// Broken accounting.
    pub fn abort(&mut self, request: RequestId, samples: u32) -> Result<(), ScheduleError> {
        (0..samples)
            .try_for_each(|index| self.end(SequenceId { request, index }, FinishReason::Abort))
    }

    /// Ends one sequence with a reason that the scheduler can't see, such as a stop string in
    /// its text. Does nothing where it has ended already.
    ///
    /// # Errors
    ///
    /// Broken accounting.
    pub fn end(&mut self, id: SequenceId, reason: FinishReason) -> Result<(), ScheduleError> {
        match self.by_id.get(&id) {
            None => Ok(()),
            Some(&key) => self.finish(key, reason),
        }
    }

    /// Ends every sequence, waiting or running.
    ///
    /// # Errors
    ///
    /// Broken accounting.
    pub fn end_all(&mut self, reason: &FinishReason) -> Result<(), ScheduleError> {
        while let Some(&key) = self.running.last().or(self.waiting.back()) {
            self.finish(key, reason.clone())?;
        }
        Ok(())
    }

    /// Decides the next step. On [`Plan::Launch`] the batch is counted as launched: launch it.
    /// Then, whatever the plan is, start its [`copies`](Self::copies) if there are any: they
    /// are counted as started.
    ///
    /// # Errors
    ///
    /// Broken accounting.
    pub fn plan(&mut self) -> Result<Plan, ScheduleError> {
        let plan = self.plan_step()?;
        self.start_copies();
        Ok(plan)
    }

    fn plan_step(&mut self) -> Result<Plan, ScheduleError> {
        if self.in_flight.len() >= MAX_IN_FLIGHT || (self.draining && self.is_anything_in_flight())
        {
            return Ok(Plan::Sync);
        }
        self.draining = false;
        // Each failed attempt puts a sequence back; alone, the first one has room for a row.
        for _ in 0..=self.slots.len() {
            if let Some(plan) = self.try_plan()? {
                return Ok(plan);
            }
        }
        Err(ScheduleError::Stuck { waiting: self.waiting.len() })
    }

    /// The batch of the last [`Plan::Launch`].
    pub fn batch(&self) -> Batch<'_> {
        let NextBatch { tokens, rows, decode_rows, outputs, events, launched, .. } = &self.next;
        let step = self.in_flight.back().map_or(launched.step, |launched| launched.step);
        Batch::new(step, tokens, rows, *decode_rows, outputs, events, &self.slots)
    }

    /// Outputs of the last batch whose sequences are constrained. If there are any, the batch
    /// defers its sampling.
    pub fn constrained_outputs(&self) -> &[(u32, SequenceId)] {
        &self.next.constrained
    }

    /// What happened since the events were cleared, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Forgets the events, once they have been passed on.
    pub fn clear_events(&mut self) {
        self.events.clear();
    }

    /// The known tokens of a sequence, prompt first.
    pub fn tokens(&self, id: SequenceId) -> Option<&[radix_cache::Token]> {
        let key = self.by_id.get(&id)?;
        Some(&self.sequences[*key].tokens)
    }

    /// Steps launched and not committed.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether nothing runs, waits or is in flight, copies included.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && !self.is_anything_in_flight()
    }

    /// Counts.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            steps: self.step,
            evicted_pages: self.pool.evicted(),
            ..self.stats
        }
    }

    /// Pages by owner.
    pub fn pages(&self) -> PageCounts {
        self.pool.counts()
    }

    /// The page pool, to look at.
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Adds a sequence that is neither waiting nor running yet.
    pub(super) fn add(&mut self, arrival: Arrival) -> Result<SequenceKey, Refusal> {
        let id = arrival.id;
        if self.by_id.contains_key(&id) {
            return Err(Refusal::Exists(id));
        }
        let mut sequence = Sequence::new(arrival, self.arrivals);
        // The context's limit is a limit like the request's own. Arrivals leave room for a token.
        let room = self.config.context_length.saturating_sub(sequence.prompt_len);
        sequence.max_tokens = sequence.max_tokens.min(room);
        if self.has_bug(SeededBug::NamespaceIgnored) {
            sequence.namespace = Namespace::default();
        }
        self.arrivals += 1;
        let key = self.sequences.insert(sequence);
        self.by_id.insert(id, key);
        Ok(key)
    }

    pub(super) fn has_bug(&self, bug: SeededBug) -> bool {
        self.config.has_bug(bug)
    }

    /// Whether a step or copies are launched or about to be, and not committed.
    pub(super) fn is_anything_in_flight(&self) -> bool {
        !self.in_flight.is_empty() || self.tier.is_busy()
    }

    /// One attempt to plan. `None` if half-computed prompts held all the pages: one of them went
    /// back, so that the others can go on.
    fn try_plan(&mut self) -> Result<Option<Plan>, ScheduleError> {
        if self.must_retract() {
            if self.is_anything_in_flight() && !self.has_bug(SeededBug::RetractionUnderPendingStep)
            {
                return Ok(Some(Plan::Sync));
            }
            self.retract_until_decode_fits()?;
        }
        self.begin_batch();
        self.plan_decode()?;
        let mut budget = self.plan_prefill()?;
        self.admit(&mut budget)?;
        if !self.next.rows.is_empty() {
            self.demote_ahead()?;
            self.end_batch();
            return Ok(Some(Plan::Launch));
        }
        let unused = std::mem::take(&mut self.next.launched);
        self.spare.push(unused);
        // What copies hold comes back, so nobody is put back for it.
        if self.is_anything_in_flight() {
            return Ok(Some(Plan::Sync));
        }
        if !self.running.is_empty() {
            self.retract_one()?;
            return Ok(None);
        }
        match self.waiting.len() {
            0 => Ok(Some(Plan::Idle)),
            waiting => Err(ScheduleError::Stuck { waiting }),
        }
    }

    fn begin_batch(&mut self) {
        let batch = &mut self.next;
        batch.tokens.clear();
        batch.rows.clear();
        batch.outputs.clear();
        batch.constrained.clear();
        batch.decode_rows = 0;
        batch.launched = self.spare.pop().unwrap_or_default();
        batch.launched.rows.clear();
    }

    fn end_batch(&mut self) {
        self.next.events.clear();
        std::mem::swap(&mut self.next.events, &mut self.slot_events);
        let mut launched = std::mem::take(&mut self.next.launched);
        launched.step = self.step;
        self.step += 1;
        self.in_flight.push_back(launched);
        self.reserve.decay();
    }

    pub(super) fn retire(&mut self, launched: Launched) {
        self.spare.push(launched);
    }
}
