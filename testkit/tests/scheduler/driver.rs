//! Runs a workload on the shadow backend, checks everything after every step, and compares every
//! sequence with what it generates alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use engine_core::Token;
use engine_core::backend::{
    Batch, CompileOptions, Deadline, Executor, GroupId, Limits, Row, SlotSampling, StepError,
    StepResult, Ticket,
};
use engine_core::schedule::{
    Arrival, Event, FinishReason, ForkError, Plan, Refusal, RequestId, Scheduler, SchedulerConfig,
    SchedulerStats, SequenceId,
};
use testkit::faults::Faults;
use testkit::shadow::{Expectation, Ledger, ShadowExecutor, Violation, model};

use crate::log::{Entry, Snapshot};
use crate::workload::{Action, Case, Request};

/// What a run found wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the engine broke the backend's contract: {0}")]
    Violation(Violation),
    #[error("the scheduler gave up: {0}")]
    Scheduler(String),
    /// Something that can be seen from outside.
    #[error("a rule doesn't hold: {0}")]
    Rule(String),
    #[error("it panicked")]
    Panic,
    #[error("{id:?} generates {found:?}, but alone {expected:?}")]
    Tokens { id: SequenceId, expected: Vec<Token>, found: Vec<Token> },
}

/// What a run that went well leaves behind.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) stats: SchedulerStats,
    pub(crate) log: Vec<Entry>,
    pub(crate) strikes: u64,
}

/// Runs a case to its end.
pub(crate) fn run(case: &Case) -> Result<Report, Failure> {
    let mut driver = Driver::new(case)?;
    driver.run(case)?;
    driver.check_end(case)
}

/// Limits of an executor for a scheduler's steps.
pub(crate) fn limits(config: &SchedulerConfig) -> Limits {
    Limits {
        rows: config.max_running,
        tokens: config.step_tokens() as u32,
        outputs: config.max_running,
        slots: config.max_running,
        pages: vec![config.pages],
    }
}

struct Driver {
    scheduler: Scheduler,
    executor: Faults<ShadowExecutor>,
    ledger: Arc<Ledger>,
    tracked: HashMap<SequenceId, Tracked>,
    /// First sample of each request, by the order of the actions, where it was not refused.
    requests: Vec<Option<SequenceId>>,
    arrivals: u64,
    launched: VecDeque<Launched>,
    /// Seeds of the sequences that a fault has to end.
    struck: HashSet<u64>,
    result: StepResult,
    cached_tokens: u64,
    log: Vec<Entry>,
}

/// A step that was launched, or tried to be.
struct Launched {
    ticket: Result<Ticket, StepError>,
    /// Seeds of its rows' sequences.
    seeds: Vec<u64>,
    /// The memory was lost after its launch: whatever comes of it concerns nobody any more.
    is_lost: bool,
}

/// A sequence, as its caller sees it.
#[derive(Debug)]
struct Tracked {
    prompt: Vec<Token>,
    sampling: Arc<SlotSampling>,
    max_tokens: usize,
    stop_tokens: Arc<[Token]>,
    tokens: Vec<Token>,
    samples: u32,
    was_admitted: bool,
    /// It was asked to end for this reason.
    asked: Option<FinishReason>,
    finished: Option<FinishReason>,
}

impl Driver {
    fn new(case: &Case) -> Result<Self, Failure> {
        let config = case.config.clone();
        let ledger = Arc::new(Ledger::default());
        let options = CompileOptions::new(
            limits(&config),
            config.page_size as u32,
            config.context_length as u32,
        );
        let shadow = ShadowExecutor::new(&options, case.vocab_size, ledger.clone())
            .map_err(|error| Failure::Rule(error.to_string()))?;
        let mut scheduler = Scheduler::new(config).map_err(broken)?;
        if let Some(bug) = case.cache_bug {
            scheduler.plant_in_cache(bug);
        }
        Ok(Self {
            scheduler,
            executor: Faults::new(shadow, case.faults.iter().cloned())
                .on_kv_lost(ShadowExecutor::lose_kv),
            ledger,
            tracked: HashMap::new(),
            requests: Vec::new(),
            arrivals: 0,
            launched: VecDeque::new(),
            struck: HashSet::new(),
            result: StepResult::default(),
            cached_tokens: 0,
            log: Vec::new(),
        })
    }

    fn run(&mut self, case: &Case) -> Result<(), Failure> {
        let mut actions = case.actions.iter().peekable();
        let mut time = 0;
        // Every round launches or retires a step. Twenty times the positions is far more than a
        // live scheduler needs, retractions included.
        let most_rounds = time + 20 * case.positions() as u64 + 2000;
        for _ in 0..most_rounds {
            while let Some((_, action)) = actions.next_if(|(due, _)| *due <= time) {
                self.act(action)?;
            }
            match self.plan()? {
                Plan::Launch => {
                    let is_launched = self.launch();
                    // Nothing is planned on top of a launch that failed.
                    let in_flight = usize::from(case.overlapped && is_launched);
                    while self.launched.len() > in_flight {
                        self.commit()?;
                    }
                }
                Plan::Sync if self.launched.is_empty() => {
                    return Err(Failure::Rule("sync, but nothing is in flight".into()));
                }
                Plan::Sync => self.commit()?,
                Plan::Idle => match actions.peek() {
                    None => return Ok(()),
                    Some(&&(due, _)) => time = due,
                },
            }
            time += 1;
        }
        Err(Failure::Rule(format!("not at its end after {most_rounds} rounds")))
    }

    fn act(&mut self, action: &Action) -> Result<(), Failure> {
        match action {
            Action::Arrive(request) => self.arrive(request),
            Action::Abort(index) => {
                let Some(&Some(id)) = self.requests.get(*index) else { return Ok(()) };
                let samples = self.tracked[&id].samples;
                for index in 0..samples {
                    self.ask(SequenceId { index, ..id }, FinishReason::Abort);
                }
                self.log.push(Entry::Abort(id.request, samples));
                self.scheduler.abort(id.request, samples).map_err(broken)?;
                self.after_change()
            }
            Action::Stop(index) => {
                let Some(&Some(id)) = self.requests.get(*index) else { return Ok(()) };
                self.ask(id, FinishReason::Stop);
                self.log.push(Entry::End(id, FinishReason::Stop));
                self.scheduler.end(id, FinishReason::Stop).map_err(broken)?;
                self.after_change()
            }
            Action::Fork(index, request) => {
                let Some(&Some(parent)) = self.requests.get(*index) else { return Ok(()) };
                self.fork(parent, request)
            }
        }
    }

    fn ask(&mut self, id: SequenceId, reason: FinishReason) {
        if let Some(tracked) = self.tracked.get_mut(&id)
            && tracked.finished.is_none()
        {
            tracked.asked.get_or_insert(reason);
        }
    }

    fn arrive(&mut self, request: &Request) -> Result<(), Failure> {
        let number = self.next_request();
        let mut first = None;
        for (index, sampling) in request.samples.iter().enumerate() {
            let id = SequenceId { request: number, index: index as u32 };
            let arrival = arrival(id, request, sampling);
            let refusal =
                self.scheduler.config().check(arrival.prompt.len(), arrival.max_tokens as usize);
            self.log.push(Entry::Arrive(arrival.clone()));
            match self.scheduler.arrive(arrival.clone()) {
                Ok(()) => {
                    self.track(arrival, request.samples.len() as u32);
                    first = first.or(Some(id));
                }
                Err(found) if refusal.as_ref() == Err(&found) => {}
                Err(Refusal::QueueFull { waiting })
                    if waiting >= self.scheduler.config().max_waiting => {}
                Err(found) => return Err(Failure::Rule(format!("refused: {found}"))),
            }
        }
        self.requests.push(first);
        self.after_change()
    }

    fn fork(&mut self, parent: SequenceId, request: &Request) -> Result<(), Failure> {
        let id = SequenceId { request: self.next_request(), index: 0 };
        let Some(sampling) = request.samples.first() else { return Ok(()) };
        let mut branch = arrival(id, request, sampling);
        self.log.push(Entry::Fork(parent, branch.clone()));
        let is_live = self.tracked[&parent].finished.is_none();
        let mut prompt = self.scheduler.tokens(parent).unwrap_or_default().to_vec();
        prompt.extend_from_slice(&branch.prompt);
        let namespace = self.ledger_namespace(parent);
        match self.scheduler.fork(parent, branch.clone()) {
            Ok(()) => {
                branch.prompt = prompt;
                branch.namespace.0 = namespace;
                self.track(branch, 1);
            }
            Err(ForkError::Refused(Refusal::Unknown(_))) if !is_live => {}
            Err(ForkError::Refused(Refusal::QueueFull { waiting }))
                if waiting >= self.scheduler.config().max_waiting => {}
            Err(ForkError::Refused(found)) if is_live => {
                let config = self.scheduler.config();
                let refusal = config.check(prompt.len(), branch.max_tokens as usize);
                if refusal != Err(found.clone()) {
                    return Err(Failure::Rule(format!("a fork was refused: {found}")));
                }
            }
            Err(error) => return Err(Failure::Scheduler(error.to_string())),
        }
        self.after_change()
    }

    fn ledger_namespace(&self, id: SequenceId) -> u64 {
        let seed = self.tracked[&id].sampling.seed;
        self.ledger.expectation(seed).map_or(0, |expectation| expectation.namespace)
    }

    fn next_request(&mut self) -> RequestId {
        self.arrivals += 1;
        RequestId(self.arrivals)
    }

    fn track(&mut self, arrival: Arrival, samples: u32) {
        let room = self.scheduler.config().context_length - arrival.prompt.len();
        let max_tokens = (arrival.max_tokens as usize).min(room);
        let longest = (arrival.prompt.len() + max_tokens - 1) as u32;
        let namespace = arrival.namespace.0;
        self.ledger.expect(arrival.sampling.seed, Expectation { namespace, longest });
        let tracked = Tracked {
            prompt: arrival.prompt,
            sampling: arrival.sampling,
            max_tokens,
            stop_tokens: arrival.stop_tokens,
            tokens: Vec::new(),
            samples,
            was_admitted: false,
            asked: None,
            finished: None,
        };
        self.tracked.insert(arrival.id, tracked);
    }

    fn plan(&mut self) -> Result<Plan, Failure> {
        let (in_flight, before) = (self.scheduler.in_flight(), self.scheduler.stats());
        let plan = self.scheduler.plan().map_err(broken)?;
        let after = self.scheduler.stats();
        if in_flight > 0 && after.retractions > before.retractions {
            return Err(Failure::Rule("retracted while a step is in flight".into()));
        }
        self.check_admission()?;
        let batch = (plan == Plan::Launch).then(|| Snapshot::of(&self.scheduler.batch()));
        if let Some(batch) = &batch {
            self.check_prefill(batch)?;
        }
        self.log.push(Entry::Plan(plan, batch));
        self.after_change()?;
        Ok(plan)
    }

    /// Whoever was admitted beside others finds pages for its whole answer, even once its
    /// prompt has its own.
    fn check_admission(&self) -> Result<(), Failure> {
        let newest = self.scheduler.events().iter().rev().find_map(|event| match event {
            Event::Admitted { id, .. } => self.tracked.get(id),
            _ => None,
        });
        let Some(newest) = newest else { return Ok(()) };
        let available = self.scheduler.pool().available() * self.scheduler.config().page_size;
        let is_alone = self.scheduler.stats().running == 1;
        if is_alone || available >= newest.max_tokens {
            return Ok(());
        }
        Err(Failure::Rule(format!(
            "admitted where only {available} positions are left: {newest:?}"
        )))
    }

    /// Prompts take no more than the chunk budget, and in whole pages unless they end.
    fn check_prefill(&self, batch: &Snapshot) -> Result<(), Failure> {
        let prefill = &batch.rows[batch.decode_rows as usize..];
        let tokens: usize = prefill.iter().map(|row| row.tokens.len as usize).sum();
        let config = self.scheduler.config();
        if tokens > config.chunk() {
            return Err(Failure::Rule(format!("{tokens} tokens of prompts in a step")));
        }
        let is_ragged = |row: &Row| {
            row.outputs.len == 0 && !(row.kv_len() as usize).is_multiple_of(config.page_size)
        };
        match prefill.iter().find(|row| is_ragged(row)) {
            Some(row) => Err(Failure::Rule(format!("a chunk ends inside a page: {row:?}"))),
            None => Ok(()),
        }
    }

    fn launch(&mut self) -> bool {
        let pool = self.scheduler.pool();
        self.executor.inner_mut().poison(GroupId(0), |page| pool.is_free(page));
        let batch: Batch<'_> = self.scheduler.batch();
        let seeds = batch.rows.iter().map(|row| batch.slots.sampling(row.slot).seed).collect();
        let ticket = self.executor.launch(&batch);
        let is_launched = ticket.is_ok();
        self.launched.push_back(Launched { ticket, seeds, is_lost: false });
        is_launched
    }

    /// Waits for the oldest step and commits it.
    fn commit(&mut self) -> Result<(), Failure> {
        let Some(launched) = self.launched.pop_front() else { return Ok(()) };
        let outcome = match launched.ticket {
            Ok(ticket) => self.executor.wait(ticket, Deadline::NEVER, &mut self.result),
            Err(error) => {
                self.result.clear();
                Err(error)
            }
        };
        if let Some(violation) = self.ledger.violations().into_iter().next() {
            return Err(Failure::Violation(violation));
        }
        let error = outcome.err();
        self.strike(&launched.seeds, launched.is_lost, error.as_ref());
        self.log.push(Entry::Commit(self.result.clone(), error.clone()));
        self.scheduler.commit(&self.result, error.as_ref()).map_err(broken)?;
        self.after_change()
    }

    /// Notes whom an error has to end: of those that are still there.
    fn strike(&mut self, seeds: &[u64], is_lost: bool, error: Option<&StepError>) {
        let rows: Vec<usize> = match error {
            _ if is_lost => return,
            None => return,
            Some(StepError::Rows(failures)) => {
                failures.iter().map(|failure| failure.row as usize).collect()
            }
            Some(_) => {
                self.launched.iter_mut().for_each(|step| step.is_lost = true);
                (0..seeds.len()).collect()
            }
        };
        let live: HashSet<u64> = self
            .tracked
            .values()
            .filter(|tracked| tracked.finished.is_none())
            .map(|tracked| tracked.sampling.seed)
            .collect();
        let struck = rows.into_iter().filter_map(|row| seeds.get(row));
        self.struck.extend(struck.filter(|seed| live.contains(seed)));
    }

    /// Passes events on and checks what must hold at every moment.
    fn after_change(&mut self) -> Result<(), Failure> {
        for event in self.scheduler.events().to_vec() {
            self.notice(event)?;
        }
        self.scheduler.clear_events();
        self.scheduler.check().map_err(broken)
    }

    fn notice(&mut self, event: Event) -> Result<(), Failure> {
        let rule = |what: &str, id: SequenceId| Err(Failure::Rule(format!("{what}: {id:?}")));
        match event {
            Event::Admitted { id, cached_tokens } => {
                self.cached_tokens += u64::from(cached_tokens);
                match self.tracked.get_mut(&id) {
                    None => rule("unknown", id),
                    Some(tracked) if tracked.was_admitted => rule("admitted twice", id),
                    Some(tracked) => {
                        tracked.was_admitted = true;
                        Ok(())
                    }
                }
            }
            Event::Token { id, sampled } => {
                let Some(tracked) = self.tracked.get_mut(&id) else { return rule("unknown", id) };
                if tracked.finished.is_some() {
                    return rule("a token after its end", id);
                }
                let Some(sampled) = self.result.sampled.get(sampled as usize) else {
                    return rule("a token that no step sampled", id);
                };
                tracked.tokens.push(sampled.token);
                Ok(())
            }
            Event::Finished { id, reason } => {
                let Some(tracked) = self.tracked.get_mut(&id) else { return rule("unknown", id) };
                match tracked.finished.replace(reason) {
                    None => Ok(()),
                    Some(_) => rule("finished twice", id),
                }
            }
            _ => Ok(()),
        }
    }

    fn check_end(self, case: &Case) -> Result<Report, Failure> {
        let rule = |what: String| Err(Failure::Rule(what));
        if !self.scheduler.is_idle() {
            return rule("idle is not idle".into());
        }
        let pages = self.scheduler.pages();
        if pages.owned_by_sequences != 0 || pages.cached_locked != 0 {
            return rule(format!("at idle something is owned or locked: {pages:?}"));
        }
        if !case.config.cache && pages.free != pages.capacity {
            return rule(format!("without a cache pages are kept: {pages:?}"));
        }
        let (mut prompt, mut generated) = (0, 0);
        for (&id, tracked) in &self.tracked {
            generated += tracked.tokens.len() as u64;
            if tracked.was_admitted {
                prompt += tracked.prompt.len() as u64;
            }
            tracked.check(id, case, self.struck.contains(&tracked.sampling.seed))?;
        }
        let stats = self.scheduler.stats();
        let counted = (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens);
        let expected = (prompt, self.cached_tokens, generated);
        if counted != expected || (stats.running, stats.waiting) != (0, 0) {
            return rule(format!("prompt, cached and generated are {expected:?}, but {stats:?}"));
        }
        Ok(Report { stats, log: self.log, strikes: self.executor.strikes() })
    }
}

impl Tracked {
    /// Compares the whole with what the sequence generates alone.
    fn check(&self, id: SequenceId, case: &Case, is_struck: bool) -> Result<(), Failure> {
        let Tracked { prompt, sampling, max_tokens, stop_tokens, .. } = self;
        let mut expected =
            model::continue_alone(prompt, sampling, case.vocab_size, *max_tokens, stop_tokens);
        let alone = match expected.last() {
            Some(last) if stop_tokens.contains(last) => FinishReason::Stop,
            _ => FinishReason::Length,
        };
        let is_whole = match &self.finished {
            None => return Err(Failure::Rule(format!("{id:?} never ended"))),
            Some(FinishReason::Error(_)) if is_struck => false,
            Some(reason) if is_struck => {
                return Err(Failure::Rule(format!("{id:?} was struck, but ended by {reason:?}")));
            }
            Some(reason) if Some(reason) == self.asked.as_ref() => {
                // It may have ended by itself before.
                *reason == alone && self.tokens.len() == expected.len()
            }
            Some(reason) if *reason == alone => true,
            Some(reason) => {
                return Err(Failure::Rule(format!("{id:?} ended by {reason:?}, not {alone:?}")));
            }
        };
        if !is_whole {
            expected.truncate(self.tokens.len());
        }
        if self.tokens != expected {
            return Err(Failure::Tokens { id, expected, found: self.tokens.clone() });
        }
        Ok(())
    }
}

fn arrival(id: SequenceId, request: &Request, sampling: &Arc<SlotSampling>) -> Arrival {
    Arrival {
        id,
        prompt: request.prompt.clone(),
        sampling: sampling.clone(),
        max_tokens: request.max_tokens,
        stop_tokens: request.stop_tokens.clone(),
        namespace: request.namespace,
        constrained: false,
    }
}

fn broken(error: impl ToString) -> Failure {
    Failure::Scheduler(error.to_string())
}
