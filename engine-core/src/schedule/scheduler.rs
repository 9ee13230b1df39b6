//! The state machine, as its user sees it.

use radix_cache::Token;

use super::arrival::{Arrival, FinishReason, RequestId, SequenceId};
use super::committer;
use super::config::SchedulerConfig;
use super::error::{InputError, Refusal, ScheduleError};
use super::forks;
use super::input::Input;
use super::planner::{Decision, Planner};
use super::report::{Event, Plan, SchedulerStats, Step};
use super::state::State;
use super::transfers::Transfers;
use crate::kv::{GroupKind, KvPool, PageCounts};

/// Decides what runs next. See the [module](super).
#[derive(Debug)]
pub struct Scheduler {
    state: State,
    planner: Planner,
}

impl Scheduler {
    /// A scheduler with empty cache and queue.
    ///
    /// # Errors
    ///
    /// A page size or limits that make no sense, or windowed groups together with a host tier.
    pub fn new(config: SchedulerConfig) -> Result<Self, ScheduleError> {
        // A page for every slot in one step is common: they grow in step. The two lists change
        // places at each launch.
        let events = 2 * config.max_running as usize;
        Ok(Self { state: State::new(config)?, planner: Planner::new(events) })
    }

    /// Applies what happened.
    ///
    /// # Errors
    ///
    /// [`InputError::Refused`] for a sequence that can't run; nothing changes then. Others mean
    /// that the scheduler or the backend is broken: a commit without a launch, a result that lacks a
    /// token, pages without an owner.
    pub fn apply(&mut self, input: Input<'_>) -> Result<(), InputError> {
        let state = &mut self.state;
        match input {
            Input::Arrive(arrival) => return Ok(arrive(state, arrival)?),
            Input::Fork { parent, branch } => return forks::fork(state, parent, branch),
            Input::End { id, reason } => end(state, id, reason)?,
            Input::Append { id, tokens } => committer::append(state, id, &tokens)?,
            Input::Abort { request, samples } => abort(state, request, samples)?,
            Input::EndAll { reason } => end_all(state, &reason)?,
            Input::Commit { result, error } => {
                committer::commit(state, &result, error.as_deref())?;
                self.check_in_debug()?;
            }
            Input::CopiesDone { error } => {
                committer::copies_done(state, error.as_deref())?;
                self.check_in_debug()?;
            }
            Input::Tick { now } => state.pages.pool_mut().cache_mut().advance(now),
            Input::ClearCache => {
                state.pages.pool_mut().clear().map_err(ScheduleError::from)?;
            }
        }
        Ok(())
    }

    /// Decides the next step. What the plan lends counts as launched and started.
    ///
    /// # Errors
    ///
    /// Broken accounting.
    pub fn plan(&mut self) -> Result<Plan<'_>, ScheduleError> {
        self.planner.plan(&mut self.state)?;
        Ok(self.last_plan())
    }

    /// What the last call of [`plan`](Self::plan) decided, lent once more.
    pub fn last_plan(&self) -> Plan<'_> {
        let copies = self.planner.copies();
        match self.planner.decision() {
            Decision::Launch => Plan::Launch(Step {
                batch: self.planner.batch(self.state.pages.slots()),
                deferred: self.planner.deferred(),
                copies,
            }),
            Decision::Sync => Plan::Sync { copies },
            Decision::Idle => Plan::Idle,
        }
    }

    /// What it was built with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.state.config
    }

    /// What happened since the events were cleared, in order.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = Event<'_>> + '_ {
        self.state.news.iter()
    }

    /// Forgets the events, once they have been passed on.
    pub fn clear_events(&mut self) {
        self.state.news.clear();
    }

    /// Takes the changes of the cache that nobody has taken yet.
    pub fn drain_cache_events(&mut self) -> impl Iterator<Item = radix_cache::Event> + '_ {
        self.state.pages.pool_mut().cache_mut().drain_events()
    }

    /// The known tokens of a sequence, prompt first.
    pub fn tokens(&self, id: SequenceId) -> Option<&[Token]> {
        let key = self.state.sequences.find(id)?;
        Some(&self.state.sequences.get(key)?.tokens)
    }

    /// Steps launched and not committed.
    pub fn in_flight(&self) -> usize {
        self.state.flights.len()
    }

    /// Copies started and not committed, counted by plan.
    pub fn copies_in_flight(&self) -> usize {
        self.state.transfers.as_ref().map_or(0, Transfers::in_flight)
    }

    /// Whether nothing runs, waits or is in flight, copies included.
    pub fn is_idle(&self) -> bool {
        self.state.sequences.len() == 0 && !self.state.is_anything_in_flight()
    }

    /// Counts.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.state.sequences.running().len(),
            waiting: self.state.queue.len(),
            steps: self.state.flights.launched(),
            evicted_pages: self.state.pages.pool().evicted(),
            ..self.state.stats
        }
    }

    /// Pages of full groups by owner.
    pub fn pages(&self) -> PageCounts {
        self.state.pages.pool().counts(GroupKind::Full)
    }

    /// Pages of windowed groups by owner; all zero where there is none.
    pub fn windowed_pages(&self) -> PageCounts {
        self.state.pages.pool().counts(GroupKind::Windowed)
    }

    /// The page pool, to look at.
    pub fn pool(&self) -> &KvPool {
        self.state.pages.pool()
    }

    /// Checks that every page and slot has exactly one owner. Looks at everything: for tests
    /// and debug builds.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn check(&self) -> Result<(), ScheduleError> {
        self.state.check()
    }

    fn check_in_debug(&self) -> Result<(), ScheduleError> {
        if cfg!(debug_assertions) { self.check() } else { Ok(()) }
    }
}

fn arrive(state: &mut State, arrival: Arrival) -> Result<(), Refusal> {
    state.config.check_arrival(&arrival)?;
    if state.queue.len() >= state.config.max_waiting {
        return Err(Refusal::QueueFull { waiting: state.queue.len() });
    }
    let priority = arrival.priority;
    let key = state.sequences.add(arrival, &state.config)?;
    if !state.config.cache {
        state.sequences.isolate(key);
    }
    state.queue.join(key, priority);
    Ok(())
}

fn abort(state: &mut State, request: RequestId, samples: u32) -> Result<(), ScheduleError> {
    (0..samples)
        .try_for_each(|index| end(state, SequenceId { request, index }, FinishReason::Abort))
}

fn end(state: &mut State, id: SequenceId, reason: FinishReason) -> Result<(), ScheduleError> {
    match state.sequences.find(id) {
        None => Ok(()),
        Some(key) => state.finish(key, reason),
    }
}

fn end_all(state: &mut State, reason: &FinishReason) -> Result<(), ScheduleError> {
    let last_running = |state: &State| state.sequences.running().last().copied();
    while let Some(key) = last_running(state).or(state.queue.last()) {
        state.finish(key, reason.clone())?;
    }
    Ok(())
}
