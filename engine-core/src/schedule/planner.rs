//! What the next step is.

use super::admission;
use super::assembly::Assembly;
use super::error::ScheduleError;
use super::proposer;
use super::report::Deferred;
use super::retraction;
use super::rows::{self, Budget};
use super::sequence::SequenceKey;
use super::state::State;
use crate::backend::{Batch, PageCopy, Slots};
use crate::schedule::config::Speculation;

/// Puts steps together. Owns what the last plan lends.
#[derive(Debug)]
pub(super) struct Planner {
    decision: Decision,
    assembly: Assembly,
    /// Copies that the last plan starts.
    copies: Vec<PageCopy>,
    /// Sequences that decode in this step and verify proposals, with the proposed ones of their
    /// known tokens.
    drafts: Vec<(SequenceKey, std::ops::Range<usize>)>,
    /// Running sequences that don't decode in this step: what is left of their prompts is next.
    others: Vec<SequenceKey>,
    last_forced_retraction: u64,
}

/// What is to be done. The planner lends the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Launch,
    Sync,
    Idle,
}

impl Planner {
    pub(super) fn new(events: usize) -> Self {
        Self {
            decision: Decision::Idle,
            assembly: Assembly::new(events),
            copies: Vec::new(),
            drafts: Vec::new(),
            others: Vec::new(),
            last_forced_retraction: 0,
        }
    }

    /// Decides the next step, and counts it and the copies that go with it as launched.
    pub(super) fn plan(&mut self, state: &mut State) -> Result<(), ScheduleError> {
        self.decision = self.plan_step(state)?;
        self.copies.clear();
        if let Some(transfers) = &mut state.transfers {
            transfers.start(&mut self.copies);
        }
        Ok(())
    }

    /// What was decided last.
    pub(super) fn decision(&self) -> Decision {
        self.decision
    }

    /// The batch of the last [`Decision::Launch`].
    pub(super) fn batch<'a>(&'a self, slots: &'a Slots) -> Batch<'a> {
        self.assembly.batch(slots)
    }

    pub(super) fn deferred(&self) -> &[Deferred] {
        self.assembly.deferred()
    }

    pub(super) fn copies(&self) -> &[PageCopy] {
        &self.copies
    }

    fn plan_step(&mut self, state: &mut State) -> Result<Decision, ScheduleError> {
        let waits = state.flights.is_draining() && state.is_anything_in_flight();
        if waits || !state.flights.has_room() {
            return Ok(Decision::Sync);
        }
        // Each failed attempt puts a sequence back; alone, the first one has room for a row.
        for _ in 0..=state.pages.slots().len() {
            if let Some(decision) = self.try_plan(state)? {
                return Ok(decision);
            }
        }
        Err(ScheduleError::Stuck { waiting: state.queue.len() })
    }

    /// One attempt. `None` if half-computed prompts held all the pages: one of them went back, so
    /// that the others can go on.
    fn try_plan(&mut self, state: &mut State) -> Result<Option<Decision>, ScheduleError> {
        let is_forced = self.is_retraction_forced(state);
        if is_forced || retraction::is_needed(state) {
            if state.is_anything_in_flight() {
                return Ok(Some(Decision::Sync));
            }
            if is_forced {
                self.last_forced_retraction = state.flights.launched();
                retraction::retract_one(state)?;
            }
            retraction::until_decode_fits(state)?;
        }
        self.assembly.begin(state.flights.rows());
        self.plan_decode(state)?;
        let config = &state.config;
        let mut budget = Budget { tokens: config.chunk(), answers: config.prompt_outputs() };
        for key in self.others.drain(..) {
            rows::push_chunk(state, &mut self.assembly, key, &mut budget)?;
        }
        admission::admit(state, &mut self.assembly, budget)?;
        let rows = self.assembly.take_rows();
        if !self.assembly.is_empty() {
            if let Some(transfers) = &mut state.transfers {
                transfers.demote_ahead(state.pages.pool_mut())?;
            }
            state.pages.swap_events(self.assembly.events_mut());
            // Rows of windowed groups have different pages left of a common prefix.
            if state.config.windowed.is_none() {
                self.assembly.find_shared(state.pages.slots(), state.config.page_size);
            }
            self.assembly.number(state.flights.launch(rows));
            state.reserve.decay();
            return Ok(Some(Decision::Launch));
        }
        state.flights.recycle(rows);
        // What copies hold comes back, so nobody is put back for it.
        if state.is_anything_in_flight() {
            return Ok(Some(Decision::Sync));
        }
        if !state.sequences.running().is_empty() {
            retraction::retract_one(state)?;
            return Ok(None);
        }
        match state.queue.len() {
            0 => Ok(Some(Decision::Idle)),
            waiting => Err(ScheduleError::Stuck { waiting }),
        }
    }

    /// A row for each running sequence that may generate more: decode rows, then rows that
    /// verify proposals.
    fn plan_decode(&mut self, state: &mut State) -> Result<(), ScheduleError> {
        self.drafts.clear();
        self.others.clear();
        if let Some(speculation) = state.config.speculation {
            self.propose(state, speculation);
        }
        let mut drafts = 0;
        for index in 0..state.sequences.running().len() {
            let key = state.sequences.running()[index];
            if self.drafts.get(drafts).is_some_and(|(drafted, _)| *drafted == key) {
                drafts += 1;
            } else if !rows::push_decode(state, &mut self.assembly, key, 0..0)? {
                self.others.push(key);
            }
        }
        for (key, draft) in self.drafts.drain(..) {
            rows::push_decode(state, &mut self.assembly, key, draft)?;
        }
        Ok(())
    }

    /// Finds proposals for the sequences that decode next. A plain step is better for the batch
    /// where so many decode that the step's tokens are spent on them, and for a sequence whose
    /// proposals keep failing; proposals never take a page that a decode row needs.
    fn propose(&mut self, state: &State, speculation: Speculation) {
        let decoding = state.sequences.iter_running().filter(|s| s.can_decode());
        let mut rows = decoding.count();
        let mut tokens = (speculation.step_tokens as usize).saturating_sub(rows);
        let mut pages = state.pages.available().saturating_sub(rows::pages_for_decode(state));
        for &key in state.sequences.running() {
            let sequence = state.sequences.of(key);
            let Some(running) = sequence.running().filter(|_| sequence.can_decode()) else {
                continue;
            };
            let share = tokens / rows.max(1);
            rows -= 1;
            let Some(drafting) = &sequence.drafting else { continue };
            // The row itself brings a token, whatever becomes of the proposals.
            let most = share.min(sequence.tokens_left().saturating_sub(1));
            let most = most.min(drafting.most(sequence.known()));
            let draft = proposer::propose(&sequence.tokens, running.pending, most, &speculation);
            let Some(draft) = draft else { continue };
            let holding = &running.holding;
            let plain = state.pages.missing(holding, running.launched + 1);
            let needed = state.pages.missing(holding, running.launched + 1 + draft.len()) - plain;
            if needed <= pages {
                pages -= needed;
                tokens -= draft.len();
                self.drafts.push((key, draft));
            }
        }
    }

    fn is_retraction_forced(&self, state: &State) -> bool {
        let since = state.flights.launched() - self.last_forced_retraction;
        !state.sequences.running().is_empty()
            && state.config.retract_every.is_some_and(|every| since >= every)
    }
}
