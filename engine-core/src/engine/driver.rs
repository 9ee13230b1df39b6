//! What the scheduler thread owns, and the few verbs that the loops are written in.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::{Command, Submission, TextMessage};
use super::constraints::{Constraints, Wanted};
use super::embeddings::Embeddings;
use super::flight::{Flight, Launched, Step, launch, of_whole_step, start_copies};
use super::meters::Meters;
use super::options::EngineOptions;
use super::recorder::Recorded;
use super::shared::Shared;
use crate::backend::{
    Batch, Deadline, Executor, InputToken, Mask, Masks, StepError, StepResult, Ticket,
};
use crate::error::EngineDead;
use crate::request::TokenLogprobs;
use crate::schedule::{
    Arrival, Deferred, Event, FinishReason, Input, InputError, Plan, PromptWant, SequenceId,
};

/// The scheduler, its executor, and what is in flight between them.
pub(super) struct Driver {
    scheduler: Recorded,
    executor: Box<dyn Executor>,
    shared: Arc<Shared>,
    step_deadline: Option<Duration>,
    /// Started and not committed, oldest first. At most two of them are steps.
    in_flight: VecDeque<Flight>,
    /// Outputs of the step launched last that wait for
    /// [`sample_deferred`](Driver::sample_deferred).
    deferred: Vec<Wanted>,
    constraints: Constraints,
    embeddings: Embeddings,
    /// Sequences that ended by their constraint, until the scheduler says so, and why.
    broken: Vec<(SequenceId, String)>,
    is_closing: bool,
    meters: Meters,
    last_retired: Option<Instant>,
    // Kept for their memory.
    result: StepResult,
    commands: Vec<Command>,
    messages: Vec<TextMessage>,
}

impl Driver {
    pub(super) fn new(
        scheduler: Recorded,
        executor: Box<dyn Executor>,
        shared: Arc<Shared>,
        constraints: Constraints,
        options: &EngineOptions,
    ) -> Self {
        Self {
            scheduler,
            executor,
            step_deadline: options.step_deadline,
            in_flight: VecDeque::with_capacity(2),
            deferred: Vec::new(),
            constraints,
            embeddings: Embeddings::default(),
            broken: Vec::new(),
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
        self.tell(Input::Tick { now: shared.clock.tick() })?;
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

    /// Decides what is next and starts it: a step, and copies between the tiers behind it, so that
    /// no step waits for them. Returns whether a step was launched.
    pub(super) fn start(&mut self) -> Result<bool, EngineDead> {
        let (step, copies) = match self.scheduler.plan().map_err(EngineDead::new)? {
            Plan::Launch(step) => {
                self.deferred.clear();
                let launched = launch(self.executor.as_mut(), &step.batch)?;
                if matches!(launched.outcome, Launched::Ticket(_)) {
                    self.deferred.extend(step.deferred.iter().map(|d| wanted(d, &step.batch)));
                }
                self.meters.launched(&step.batch);
                (Some(launched), step.copies)
            }
            Plan::Sync { copies } => (None, copies),
            Plan::Idle => return Ok(false),
        };
        let copies = start_copies(self.executor.as_mut(), step.as_ref(), copies)?;
        let has_launched = step.is_some();
        if has_launched || copies.is_some() {
            self.in_flight.push_back(Flight { step, copies });
        }
        if has_launched {
            // Sequences that were admitted say so before their first token. They are counted as
            // running before they stop counting as queued.
            self.publish_snapshot();
            self.pass_on_events();
        }
        Ok(has_launched)
    }

    /// Completes the step launched last, if a constraint had its sampling put off. The step
    /// before it has been committed, so constraints have seen its tokens.
    pub(super) fn sample_deferred(&mut self) -> Result<(), EngineDead> {
        if self.deferred.is_empty() {
            return Ok(());
        }
        let masked = self.constraints.compute(&mut self.deferred);
        for output in &masked {
            let id = output.id;
            if let Some(problem) = &output.problem {
                self.broken.push((id, problem.clone()));
                let reason = FinishReason::Error(format!("its token constraint {problem}"));
                self.tell(Input::End { id, reason })?;
            } else if !output.forced.is_empty() {
                self.tell(Input::Append { id, tokens: Cow::Borrowed(&output.forced) })?;
            }
        }
        self.pass_on_events();
        let mut entries = Vec::with_capacity(masked.len());
        for of_output in masked.iter().filter(|output| output.problem.is_none()) {
            for (mask, index) in of_output.masks.iter().zip(0..) {
                entries.push(Mask { output: of_output.output, index, allowed: mask });
            }
        }
        let sampled = self.sample(&Masks { entries: &entries });
        drop(entries);
        self.constraints.recycle(masked);
        sampled
    }

    fn sample(&mut self, masks: &Masks<'_>) -> Result<(), EngineDead> {
        let Some(Flight { step: Some(step), .. }) = self.in_flight.back_mut() else {
            return Ok(());
        };
        let Launched::Ticket(ticket) = &step.outcome else { return Ok(()) };
        match self.executor.sample(ticket, masks) {
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
        let error = error.as_ref().map(Cow::Borrowed);
        let commit = Input::Commit { result: Cow::Borrowed(&self.result), error };
        self.scheduler.apply(commit).map_err(EngineDead::new)?;
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
        self.tell(Input::CopiesDone { error: ended.err().map(Cow::Owned) })?;
        self.pass_on_events();
        self.publish_snapshot();
        Ok(())
    }

    /// Tells the scheduler something that it can't refuse.
    fn tell(&mut self, input: Input<'_>) -> Result<(), EngineDead> {
        self.scheduler.apply(input).map_err(EngineDead::new)
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
            Command::Submit(samples) => samples.into_iter().try_for_each(|sample| {
                let id = sample.arrival.id;
                self.open(id, sample, None)
            }),
            Command::Fork { parent, branches } => branches.into_iter().try_for_each(|branch| {
                let id = branch.arrival.id;
                self.open(id, branch, Some(parent))
            }),
            Command::Abort { request, samples } => self.tell(Input::Abort { request, samples }),
            Command::End { id, reason } => self.tell(Input::End { id, reason }),
            Command::ClearCache => self.tell(Input::ClearCache),
            Command::DumpCache(answer) => {
                // Waiting changes come before what the dump says.
                self.pass_on_cache_events();
                answer.give(self.scheduler.pool().cache().dump_events());
                Ok(())
            }
            Command::Drain => {
                self.is_closing = true;
                Ok(())
            }
            Command::AbortAll => {
                self.is_closing = true;
                self.tell(Input::EndAll { reason: FinishReason::Abort })
            }
        }
    }

    /// A sample arrives: one of its own, or a branch of a parent.
    fn open(
        &mut self,
        id: SequenceId,
        sample: Submission,
        parent: Option<SequenceId>,
    ) -> Result<(), EngineDead> {
        let Submission { mut arrival, constraint, text } = sample;
        self.messages.push(TextMessage::Open(id, Box::new(text)));
        let counts_tokens = arrival.sampling.has_penalties();
        let pooling = match arrival.want {
            PromptWant::Vector(pooling) => Some(pooling),
            _ => None,
        };
        let arrived = match parent {
            None => self.scheduler.apply(Input::Arrive(arrival)),
            Some(parent) => {
                let taken_over = self.scheduler.tokens(parent).map_or(0, <[_]>::len);
                count_from(&mut arrival, taken_over);
                self.scheduler.apply(Input::Fork { parent, branch: arrival })
            }
        };
        match arrived {
            Ok(()) => {}
            Err(InputError::Refused(refusal)) => {
                self.messages.push(TextMessage::Refused { id, refusal });
                return Ok(());
            }
            Err(error) => return Err(EngineDead::new(error)),
        }
        if parent.is_some() {
            let tokens = self.scheduler.tokens(id).unwrap_or_default();
            let (prompt_tokens, last_token) = (tokens.len() as u32, tokens.last().copied());
            self.messages.push(TextMessage::Forked { id, prompt_tokens, last_token });
        }
        if let Some(constraint) = constraint {
            self.constraints.insert(id, constraint, !counts_tokens);
        }
        if let Some(pooling) = pooling {
            self.embeddings.open(id, pooling);
        }
        Ok(())
    }

    /// Tells the text thread what happened, and constraints what was sampled.
    fn pass_on_events(&mut self) {
        let at = Instant::now();
        for event in self.scheduler.events() {
            let message = match event {
                Event::Admitted { id, cached_tokens } => {
                    TextMessage::Admitted { id, cached_tokens, at }
                }
                Event::Scored { id, position, tokens, top } => {
                    let logprobs = tokens.iter().map(|scored| {
                        let top = top.get(scored.top.range()).unwrap_or_default().to_vec();
                        TokenLogprobs { logprob: scored.logprob, top }
                    });
                    TextMessage::Prompt { id, position, logprobs: logprobs.collect() }
                }
                Event::Pooled { id, positions, vector } => {
                    self.embeddings.add(id, positions, vector);
                    continue;
                }
                Event::Token { id, token, logprob, top } => {
                    self.constraints.advance(id, token);
                    let logprobs = logprob
                        .map(|logprob| Box::new(TokenLogprobs { logprob, top: top.to_vec() }));
                    TextMessage::Token { id, token, logprobs, at }
                }
                Event::Finished { id, reason } => {
                    self.constraints.remove(id);
                    if let Some(vector) = self.embeddings.close(id)
                        && *reason == FinishReason::Length
                    {
                        self.messages.push(TextMessage::Embedding { id, vector });
                    }
                    let broken = self.broken.iter().position(|(broken, _)| *broken == id);
                    match broken.map(|place| self.broken.swap_remove(place)) {
                        Some((id, problem)) => TextMessage::Broken { id, problem },
                        None => TextMessage::Finished { id, reason: reason.clone(), at },
                    }
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
        let before = events.len();
        events.extend(self.scheduler.drain_cache_events());
        if events.len() > before {
            self.shared.cache_changed.notify_all();
        }
        // Whoever reads too seldom finds a gap in the sequence numbers.
        let surplus = events.len().saturating_sub(most);
        events.drain(..surplus);
    }

    fn publish_snapshot(&mut self) {
        self.pass_on_cache_events();
        let stats = self.scheduler.stats();
        let pages = (self.scheduler.pages(), self.scheduler.windowed_pages());
        let compiles = self.executor.compiles_in_traffic();
        let queued = self.shared.queue.len();
        let cache = self.scheduler.pool().cache().statistics();
        let snapshot = self.meters.observe(stats, pages, cache, queued, compiles);
        *self.shared.snapshot.lock() = snapshot;
    }
}

/// Moves what counts positions behind the tokens that a branch takes over.
fn count_from(branch: &mut Arrival, taken_over: usize) {
    let taken_over = u32::try_from(taken_over).unwrap_or(u32::MAX);
    if branch.sampling.suppress_before > 0 {
        let sampling = Arc::make_mut(&mut branch.sampling);
        sampling.suppress_before = sampling.suppress_before.saturating_add(taken_over);
    }
    if let PromptWant::Scores { from, .. } = &mut branch.want {
        // What the branch adds is scored, its first token too: the parent's precede it.
        *from = taken_over;
    }
}

/// An output that waits for masks, with the tokens proposed for it.
fn wanted(deferred: &Deferred, batch: &Batch<'_>) -> Wanted {
    let output = batch.outputs.get(deferred.output as usize);
    let run = output.and_then(|output| batch.tokens.get(output.tokens.range()));
    let proposals = run.unwrap_or_default().iter().skip(1).filter_map(|token| match token {
        InputToken::Known(token) => Some(*token),
        InputToken::Produced(_) => None,
    });
    Wanted { output: deferred.output, id: deferred.id, drafted: proposals.collect() }
}
