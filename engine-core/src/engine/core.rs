//! What the scheduler thread owns, and the few verbs that the loops are written in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::{Command, Submission, TextMessage};
use super::constraints::Constraints;
use super::meters::Meters;
use super::shared::Shared;
use crate::backend::{
    Deadline, Executor, Mask, Masks, RowFailure, Sampled, StepError, StepResult, Ticket,
};
use crate::error::EngineDead;
use crate::request::TokenLogprobs;
use crate::schedule::{Event, FinishReason, ForkError, Plan, Scheduler, SequenceId};

/// The scheduler, its executor, and what is in flight between them.
pub(super) struct Core {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    shared: Arc<Shared>,
    step_deadline: Option<Duration>,
    /// Started and not committed, oldest first. At most two of them are steps.
    in_flight: VecDeque<Flight>,
    /// The step launched last waits for [`sample_deferred`](Core::sample_deferred).
    is_deferred: bool,
    constraints: Constraints,
    is_closing: bool,
    meters: Meters,
    last_retired: Option<Instant>,
    // Kept for their memory.
    result: StepResult,
    commands: Vec<Command>,
    messages: Vec<TextMessage>,
}

/// What one plan started: a step, copies between the tiers, or a step and copies behind it.
#[derive(Debug, Default)]
struct Flight {
    step: Option<Step>,
    copies: Option<Result<Ticket, StepError>>,
}

/// A launched step.
#[derive(Debug)]
struct Step {
    outcome: Launched,
    rows: u32,
    launched_at: Instant,
}

#[derive(Debug)]
enum Launched {
    Ticket(Ticket),
    /// It never ran. The error is committed in its turn, after the steps launched before it.
    Failed(StepError),
}

impl Core {
    pub(super) fn new(
        scheduler: Scheduler,
        executor: Box<dyn Executor>,
        shared: Arc<Shared>,
        step_deadline: Option<Duration>,
    ) -> Self {
        Self {
            scheduler,
            executor,
            step_deadline,
            in_flight: VecDeque::with_capacity(2),
            is_deferred: false,
            constraints: Constraints::new(shared.vocab_size),
            is_closing: false,
            meters: Meters::new(),
            last_retired: None,
            messages: shared.texts.buffer(),
            shared,
            result: StepResult::default(),
            commands: Vec::new(),
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Does what has been asked for since. Sleeps while there is nothing else to do; false when
    /// it is time to end.
    pub(super) fn receive(&mut self) -> Result<bool, EngineDead> {
        let shared = Arc::clone(&self.shared);
        self.scheduler.advance(shared.clock.tick());
        if !self.scheduler.is_idle() {
            shared.commands.take(&mut self.commands);
        } else if self.is_closing {
            return Ok(false);
        } else {
            self.publish_snapshot();
            self.last_retired = None;
            shared.commands.wait(&mut self.commands);
            if self.commands.is_empty() {
                return Ok(false); // Closed.
            }
        }
        if self.commands.is_empty() {
            return Ok(true);
        }
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            self.obey(command)?;
        }
        self.commands = commands;
        self.pass_on_events();
        Ok(true)
    }

    /// Decides the next step.
    pub(super) fn plan(&mut self) -> Result<Plan, EngineDead> {
        let plan = self.scheduler.plan().map_err(EngineDead::new)?;
        if plan == Plan::Launch {
            // Sequences that were admitted say so before their first token. They are counted as
            // running before they stop counting as queued.
            self.publish_snapshot();
            self.pass_on_events();
        }
        Ok(plan)
    }

    /// Starts the step that was planned.
    pub(super) fn launch(&mut self) -> Result<(), EngineDead> {
        let batch = self.scheduler.batch();
        let rows = batch.rows.len() as u32;
        let _span = tracing::trace_span!("launch", step = batch.step, rows).entered();
        let launched_at = Instant::now();
        let outcome = match self.executor.launch(&batch) {
            Ok(ticket) => {
                self.is_deferred = batch.is_deferred();
                Launched::Ticket(ticket)
            }
            Err(StepError::Dead { reason }) => return Err(EngineDead::new(reason)),
            Err(error) => Launched::Failed(of_whole_step(error, rows)),
        };
        self.meters.launched(&batch);
        let step = Some(Step { outcome, rows, launched_at });
        self.in_flight.push_back(Flight { step, copies: None });
        Ok(())
    }

    /// Starts the copies between the tiers that were planned: after the plan's launch, if there was
    /// one, so that no step waits for them.
    pub(super) fn start_copies(&mut self, plan: Plan) -> Result<(), EngineDead> {
        let copies = self.scheduler.copies();
        if copies.is_empty() {
            return Ok(());
        }
        if plan != Plan::Launch {
            self.in_flight.push_back(Flight::default());
        }
        let Some(flight) = self.in_flight.back_mut() else { return Ok(()) };
        let started = match &flight.step {
            // There is nothing left to copy.
            Some(Step { outcome: Launched::Failed(error @ StepError::KvLost { .. }), .. }) => {
                Err(error.clone())
            }
            _ => self.executor.transfer(copies),
        };
        if let Err(StepError::Dead { reason }) = started {
            return Err(EngineDead::new(reason));
        }
        flight.copies = Some(started);
        Ok(())
    }

    /// Completes the step launched last, if a constraint had its sampling put off. The step
    /// before it has been committed, so constraints have seen its tokens.
    pub(super) fn sample_deferred(&mut self) -> Result<(), EngineDead> {
        if !std::mem::take(&mut self.is_deferred) {
            return Ok(());
        }
        let constrained = self.scheduler.constrained_outputs();
        let (outputs, broken) = self.constraints.compute_masks(constrained);
        for (id, reason) in broken {
            let reason = FinishReason::Error(reason.to_owned());
            self.scheduler.end(id, reason).map_err(EngineDead::new)?;
        }
        let masks = outputs.iter().zip(self.constraints.masks());
        let entries: Vec<Mask<'_>> =
            masks.map(|(&output, allowed)| Mask { output, index: 0, allowed }).collect();
        let Some(Flight { step: Some(step), .. }) = self.in_flight.back_mut() else {
            return Ok(());
        };
        let Launched::Ticket(ticket) = &step.outcome else { return Ok(()) };
        match self.executor.sample(ticket, &Masks { entries: &entries }) {
            Ok(()) => Ok(()),
            Err(StepError::Dead { reason }) => Err(EngineDead::new(reason)),
            Err(error) => {
                let failed = Launched::Failed(of_whole_step(error, step.rows));
                // The ticket must still be waited for, before any later one.
                match std::mem::replace(&mut step.outcome, failed) {
                    Launched::Ticket(ticket) => self.wait(ticket).map(|_| ()),
                    Launched::Failed(_) => Ok(()),
                }
            }
        }
    }

    /// Waits for the oldest step in flight and commits it, and then for the copies that were
    /// started behind it: the step's tokens don't wait for those.
    pub(super) fn retire(&mut self) -> Result<(), EngineDead> {
        let Some(Flight { step, copies }) = self.in_flight.pop_front() else { return Ok(()) };
        if let Some(step) = step {
            self.retire_step(step)?;
        }
        match copies {
            Some(started) => self.retire_copies(started),
            None => Ok(()),
        }
    }

    fn retire_step(&mut self, step: Step) -> Result<(), EngineDead> {
        let Step { outcome, launched_at, .. } = step;
        let _span = tracing::trace_span!("retire").entered();
        let error = match outcome {
            Launched::Ticket(ticket) => self.wait(ticket)?,
            Launched::Failed(error) => {
                self.result.clear();
                Some(error)
            }
        };
        if let Some(error) = &error {
            tracing::warn!(%error, "a step failed");
        }
        // The device began with this step when it was launched or the one before it ended.
        let now = Instant::now();
        let began = self.last_retired.replace(now).map_or(launched_at, |t| t.max(launched_at));
        self.meters.retired(now - began);
        self.scheduler.commit(&self.result, error.as_ref()).map_err(EngineDead::new)?;
        self.pass_on_events();
        self.publish_snapshot();
        Ok(())
    }

    fn retire_copies(&mut self, started: Result<Ticket, StepError>) -> Result<(), EngineDead> {
        let _span = tracing::trace_span!("retire_copies").entered();
        let deadline = self.deadline();
        let ended = started.and_then(|ticket| self.executor.wait_transfer(ticket, deadline));
        if let Err(error) = &ended {
            if let StepError::Dead { reason } = error {
                return Err(EngineDead::new(reason));
            }
            tracing::warn!(%error, "a copy between the tiers failed");
        }
        self.scheduler.commit_copies(ended.as_ref().err()).map_err(EngineDead::new)?;
        self.pass_on_events();
        self.publish_snapshot();
        Ok(())
    }

    fn deadline(&self) -> Deadline {
        self.step_deadline.map_or(Deadline::NEVER, Deadline::after)
    }

    /// Blocks until the step has ended. The error, if any, is one to commit.
    fn wait(&mut self, ticket: Ticket) -> Result<Option<StepError>, EngineDead> {
        let deadline = self.deadline();
        match self.executor.wait(ticket, deadline, &mut self.result) {
            Ok(()) => Ok(None),
            Err(StepError::Dead { reason }) => Err(EngineDead::new(reason)),
            Err(error) => Ok(Some(error)),
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), EngineDead> {
        match command {
            Command::Submit(samples) => {
                for Submission { arrival, constraint, stream } in samples {
                    let id = arrival.id;
                    self.messages.push(TextMessage::Open(id, Box::new(stream)));
                    match self.scheduler.arrive(arrival) {
                        Ok(()) => self.constraints.insert(id, constraint),
                        Err(refusal) => self.messages.push(TextMessage::Refused { id, refusal }),
                    }
                }
                Ok(())
            }
            Command::Fork { parent, branches } => {
                branches.into_iter().try_for_each(|branch| self.fork(parent, branch))
            }
            Command::Abort { request, samples } => {
                self.scheduler.abort(request, samples).map_err(EngineDead::new)
            }
            Command::Stop(id) => {
                self.scheduler.end(id, FinishReason::Stop).map_err(EngineDead::new)
            }
            Command::Drain => {
                self.is_closing = true;
                Ok(())
            }
            Command::AbortAll => {
                self.is_closing = true;
                self.scheduler.end_all(&FinishReason::Abort).map_err(EngineDead::new)
            }
        }
    }

    fn fork(&mut self, parent: SequenceId, branch: Submission) -> Result<(), EngineDead> {
        let Submission { arrival, constraint, stream } = branch;
        let id = arrival.id;
        self.messages.push(TextMessage::Open(id, Box::new(stream)));
        match self.scheduler.fork(parent, arrival) {
            Ok(()) => {
                let tokens = self.scheduler.tokens(id).unwrap_or_default();
                let prompt_tokens = tokens.len() as u32;
                let last_token = tokens.last().copied();
                self.messages.push(TextMessage::Forked { id, prompt_tokens, last_token });
                self.constraints.insert(id, constraint);
                Ok(())
            }
            Err(ForkError::Refused(refusal)) => {
                self.messages.push(TextMessage::Refused { id, refusal });
                Ok(())
            }
            Err(ForkError::Schedule(error)) => Err(EngineDead::new(error)),
        }
    }

    /// Tells the text thread what happened, and constraints what was sampled.
    fn pass_on_events(&mut self) {
        let at = Instant::now();
        for event in self.scheduler.events() {
            let message = match event {
                &Event::Admitted { id, cached_tokens } => {
                    TextMessage::Admitted { id, cached_tokens }
                }
                &Event::Token { id, sampled } => {
                    // The scheduler has read this very entry during its commit.
                    let Some(sampled) = self.result.tokens.get(sampled as usize) else { continue };
                    self.constraints.advance(id, sampled.token);
                    let logprobs = logprobs(sampled, &self.result);
                    TextMessage::Token { id, token: sampled.token, logprobs, at }
                }
                Event::Finished { id, reason } => {
                    self.constraints.remove(*id);
                    TextMessage::Finished { id: *id, reason: reason.clone(), at }
                }
            };
            self.messages.push(message);
        }
        self.scheduler.clear_events();
        self.shared.texts.post_all(&mut self.messages);
    }

    /// Moves changes of the cache to where handles find them.
    fn pass_on_cache_events(&mut self) {
        let most = self.scheduler.config().cache_events;
        if most == 0 {
            return;
        }
        let mut events = self.shared.cache_events.lock();
        events.extend(self.scheduler.drain_cache_events());
        // Whoever reads too seldom finds a gap in the sequence numbers.
        let surplus = events.len().saturating_sub(most);
        events.drain(..surplus);
    }

    fn publish_snapshot(&mut self) {
        self.pass_on_cache_events();
        let stats = self.scheduler.stats();
        let pages = self.scheduler.pages();
        let compiles = self.executor.compiles_in_traffic();
        let queued = self.shared.queue.len();
        let cache = self.scheduler.pool().cache().statistics();
        let snapshot = self.meters.observe(stats, pages, cache, queued, compiles);
        *self.shared.snapshot.lock() = snapshot;
    }
}

/// Log probabilities, where they were asked for.
fn logprobs(sampled: &Sampled, result: &StepResult) -> Option<Box<TokenLogprobs>> {
    if sampled.logprob.is_nan() {
        return None;
    }
    let top = result.top.get(sampled.top.range()).unwrap_or_default().to_vec();
    Some(Box::new(TokenLogprobs { logprob: sampled.logprob, top }))
}

/// A step that was not completed has no result for any of its rows, whichever it was that failed.
fn of_whole_step(error: StepError, rows: u32) -> StepError {
    let StepError::Rows(mut failures) = error else { return error };
    for row in 0..rows {
        if !failures.iter().any(|failure| failure.row == row) {
            failures.push(RowFailure { row, reason: "another row failed its launch".to_owned() });
        }
    }
    StepError::Rows(failures)
}
