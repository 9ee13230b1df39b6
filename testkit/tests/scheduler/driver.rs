//! Runs a workload on the shadow backend, checks everything after every step, and compares every
//! sequence with what it generates alone.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use engine_core::Token;
use engine_core::backend::{
    CompileOptions, Deadline, Executor, GroupId, InputToken, Limits, Mask, Masks, SlotSampling,
    StepError, StepResult, Ticket,
};
use engine_core::kv::GroupKind;
use engine_core::schedule::{
    Arrival, Deferred, FinishReason, Input, InputError, InputLog, Plan, PromptWant, Refusal,
    RequestId, Scheduler, SchedulerConfig, SequenceId,
};
use testkit::faults::Faults;
use testkit::shadow::{Expectation, Ledger, ShadowExecutor};

use crate::log::{Entry, Planned};
use crate::rules::{Failure, Report};
use crate::workload::{Action, Case, Request};

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
        outputs: config.step_outputs() as u32,
        slots: config.max_running,
        pages: config.groups.iter().map(|&kind| pages_of(config, kind)).collect(),
    }
}

fn pages_of(config: &SchedulerConfig, kind: GroupKind) -> u32 {
    match kind {
        GroupKind::Full => config.pages,
        GroupKind::Windowed => config.windowed.map_or(0, |group| group.pages),
    }
}

pub(crate) struct Driver {
    pub(crate) scheduler: Scheduler,
    pub(crate) executor: Faults<ShadowExecutor>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) tracked: HashMap<SequenceId, Tracked>,
    /// First sample of each request, by the order of the actions, where it was not refused.
    pub(crate) requests: Vec<Option<SequenceId>>,
    pub(crate) arrivals: u64,
    pub(crate) launched: VecDeque<Launched>,
    /// Outputs of the step launched last that wait for masks, with the tokens proposed in each.
    deferred: Vec<(Deferred, Vec<Token>)>,
    /// Seeds of the sequences that a fault has to end.
    pub(crate) struck: HashSet<u64>,
    pub(crate) result: StepResult,
    pub(crate) cached_tokens: u64,
    pub(crate) admitted: Vec<SequenceId>,
    pub(crate) log: Vec<Entry>,
    pub(crate) recorded: Option<InputLog<Vec<u8>>>,
}

/// What came of a plan.
enum Started {
    /// A step was launched, or could not be.
    Step {
        is_launched: bool,
    },
    /// Nothing, or copies alone.
    Nothing,
    Idle,
}

/// What one plan launched and started, or tried to.
#[derive(Debug)]
pub(crate) struct Launched {
    /// None where only copies were started.
    pub(crate) ticket: Option<Result<Ticket, StepError>>,
    /// Copies that were started after it.
    pub(crate) copies: Option<Result<Ticket, StepError>>,
    /// Seeds of its rows' sequences.
    pub(crate) seeds: Vec<u64>,
    /// The memory was lost after its launch: whatever comes of it concerns nobody any more.
    pub(crate) is_lost: bool,
}

/// A sequence, as its caller sees it.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) prompt: Vec<Token>,
    pub(crate) sampling: Arc<SlotSampling>,
    pub(crate) max_tokens: usize,
    pub(crate) stop_tokens: Arc<[Token]>,
    pub(crate) constrained: bool,
    pub(crate) tokens: Vec<Token>,
    pub(crate) samples: u32,
    pub(crate) was_admitted: bool,
    /// It was asked to end for this reason.
    pub(crate) asked: Option<FinishReason>,
    pub(crate) finished: Option<FinishReason>,
}

impl Driver {
    fn new(case: &Case) -> Result<Self, Failure> {
        let config = case.config.clone();
        let ledger = Arc::new(Ledger::default());
        let mut options = CompileOptions::new(
            limits(&config),
            config.page_size as u32,
            config.context_length as u32,
        );
        options.host_pages = config.host_tier.iter().map(|tier| tier.pages).collect();
        let shadow = ShadowExecutor::new(&options, case.vocab_size, ledger.clone())
            .map_err(|error| Failure::Rule(error.to_string()))?
            .with_windows(case.windows.iter().copied());
        let scheduler = Scheduler::new(config).map_err(broken)?;
        let recorded = case.is_recorded.then(|| InputLog::new(Vec::new(), scheduler.config()));
        Ok(Self {
            recorded: recorded.transpose().map_err(broken)?,
            scheduler,
            executor: Faults::new(shadow, case.faults.iter().cloned())
                .with_transfer_faults(case.transfer_faults.iter().copied())
                .on_kv_lost(ShadowExecutor::lose_kv),
            ledger,
            tracked: HashMap::new(),
            requests: Vec::new(),
            arrivals: 0,
            launched: VecDeque::new(),
            deferred: Vec::new(),
            struck: HashSet::new(),
            result: StepResult::default(),
            cached_tokens: 0,
            admitted: Vec::new(),
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
            match self.start()? {
                Started::Step { is_launched } => {
                    while self.launched.len() > 1 {
                        self.commit()?;
                    }
                    self.sample_deferred(case.vocab_size)?;
                    // Nothing is planned on top of a launch that failed.
                    if !case.overlapped || !is_launched {
                        self.commit()?;
                    }
                }
                Started::Nothing => {
                    if self.launched.is_empty() {
                        return Err(Failure::Rule("sync, but nothing is in flight".into()));
                    }
                    self.commit()?;
                }
                Started::Idle => match actions.peek() {
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
                self.tell(Input::Abort { request: id.request, samples })
            }
            Action::Stop(index) => {
                let Some(&Some(id)) = self.requests.get(*index) else { return Ok(()) };
                self.ask(id, FinishReason::Stop);
                self.tell(Input::End { id, reason: FinishReason::Stop })
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
            let refusal = self.scheduler.config().check(
                arrival.prompt.len(),
                arrival.max_tokens as usize,
                arrival.want,
            );
            match self.apply(Input::Arrive(arrival.clone())) {
                Ok(()) => {
                    self.track(arrival, request.samples.len() as u32);
                    first = first.or(Some(id));
                }
                Err(InputError::Refused(found)) if refusal.as_ref() == Err(&found) => {}
                Err(InputError::Refused(Refusal::QueueFull { waiting }))
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
        let is_live = self.tracked[&parent].finished.is_none();
        let mut prompt = self.scheduler.tokens(parent).unwrap_or_default().to_vec();
        prompt.extend_from_slice(&branch.prompt);
        let namespace = self.ledger_namespace(parent);
        match self.apply(Input::Fork { parent, branch: branch.clone() }) {
            Ok(()) => {
                branch.prompt = prompt;
                branch.namespace.tenant = namespace;
                self.track(branch, 1);
            }
            Err(InputError::Refused(Refusal::Unknown(_))) if !is_live => {}
            Err(InputError::Refused(Refusal::QueueFull { waiting }))
                if waiting >= self.scheduler.config().max_waiting => {}
            Err(InputError::Refused(found)) if is_live => {
                let config = self.scheduler.config();
                let refusal = config.check(prompt.len(), branch.max_tokens as usize, branch.want);
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
        let namespace = arrival.namespace.tenant;
        self.ledger.expect(arrival.sampling.seed, Expectation { namespace, longest });
        let tracked = Tracked {
            prompt: arrival.prompt,
            sampling: arrival.sampling,
            max_tokens,
            stop_tokens: arrival.stop_tokens,
            constrained: arrival.constrained,
            tokens: Vec::new(),
            samples,
            was_admitted: false,
            asked: None,
            finished: None,
        };
        self.tracked.insert(arrival.id, tracked);
    }

    /// Tells the scheduler something that it can't refuse.
    pub(crate) fn tell(&mut self, input: Input<'static>) -> Result<(), Failure> {
        self.apply(input).map_err(broken)?;
        self.after_change()
    }

    fn apply(&mut self, input: Input<'static>) -> Result<(), InputError> {
        self.log.push(Entry::Input(input.clone()));
        if let Some(recorded) = &mut self.recorded {
            let _written = recorded.input(&input);
        }
        self.scheduler.apply(input)
    }

    /// Plans, and starts what the plan lends.
    fn start(&mut self) -> Result<Started, Failure> {
        let in_flight = self.scheduler.in_flight() + self.scheduler.copies_in_flight();
        let before = self.scheduler.stats();
        self.tell(Input::Tick { now: before.steps })?;
        let groups = self.scheduler.config().groups.clone();
        let planned = Planned::of(&self.scheduler.plan().map_err(broken)?, groups.len());
        if let Some(recorded) = &mut self.recorded {
            recorded.plan(&self.scheduler.last_plan()).map_err(broken)?;
        }
        let after = self.scheduler.stats();
        if in_flight > 0 && after.retractions > before.retractions {
            return Err(Failure::Rule("retracted while a step is in flight".into()));
        }
        self.check_admission()?;
        if let Some(batch) = &planned.batch {
            self.check_prefill(batch)?;
        }
        self.log.push(Entry::Plan(planned.clone()));
        self.after_change()?;
        if planned.is_idle {
            return Ok(Started::Idle);
        }
        let mut ticket = None;
        self.deferred.clear();
        if let Plan::Launch(step) = self.scheduler.last_plan() {
            let pool = self.scheduler.pool();
            for (group, &kind) in (0..).map(GroupId).zip(&groups) {
                self.executor.inner_mut().poison(group, |page| pool.is_free(kind, page));
            }
            self.deferred.extend(step.deferred.iter().map(|&deferred| {
                let run = step.batch.outputs[deferred.output as usize].tokens.range();
                let proposed =
                    step.batch.tokens[run].iter().skip(1).filter_map(|token| match token {
                        InputToken::Known(token) => Some(*token),
                        InputToken::Produced(_) => None,
                    });
                (deferred, proposed.collect())
            }));
            ticket = Some(self.executor.launch(&step.batch));
        }
        let copies = self.start_copies(ticket.as_ref(), &planned.copies)?;
        let started = match &ticket {
            Some(ticket) => Started::Step { is_launched: ticket.is_ok() },
            None => Started::Nothing,
        };
        if ticket.is_some() || copies.is_some() {
            let seeds = planned.batch.map_or(Vec::new(), |batch| batch.seeds);
            self.launched.push_back(Launched { ticket, copies, seeds, is_lost: false });
        }
        Ok(started)
    }

    /// Samples what is deferred of the step launched last, under masks that depend on the tokens of
    /// all steps before it.
    fn sample_deferred(&mut self, vocab_size: u32) -> Result<(), Failure> {
        let Some(Launched { ticket: Some(Ok(ticket)), .. }) = self.launched.back() else {
            return Ok(());
        };
        if self.deferred.is_empty() {
            return Ok(());
        }
        let mut allowed: Vec<(u32, u32, [u32; 1])> = Vec::new();
        for (Deferred { output, id }, proposed) in &self.deferred {
            let Some(known) = self.scheduler.tokens(*id) else { continue };
            let mut known = known.to_vec();
            for index in 0..=proposed.len() {
                known.extend(index.checked_sub(1).map(|before| proposed[before]));
                let tokens = (0..vocab_size).filter(|&token| may_follow(&known, token));
                let bits = tokens.fold(0, |bits, token| bits | 1 << token);
                allowed.push((*output, index as u32, [bits]));
            }
        }
        let entries: Vec<Mask<'_>> = allowed
            .iter()
            .map(|(output, index, allowed)| Mask { output: *output, index: *index, allowed })
            .collect();
        let sampled = self.executor.sample(ticket, &Masks { entries: &entries });
        sampled.map_err(|_| self.first_violation())
    }

    pub(crate) fn first_violation(&self) -> Failure {
        match self.ledger.violations().into_iter().next() {
            Some(violation) => Failure::Violation(violation),
            None => Failure::Rule("the executor failed without a reason".into()),
        }
    }

    /// Waits for what is oldest and commits it.
    fn commit(&mut self) -> Result<(), Failure> {
        let Some(mut launched) = self.launched.pop_front() else { return Ok(()) };
        if let Some(ticket) = launched.ticket.take() {
            self.commit_step(ticket, &launched)?;
        }
        match launched.copies.take() {
            Some(copies) => self.commit_copies(copies),
            None => Ok(()),
        }
    }

    fn commit_step(
        &mut self,
        ticket: Result<Ticket, StepError>,
        launched: &Launched,
    ) -> Result<(), Failure> {
        let outcome = match ticket {
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
        let result = Cow::Owned(self.result.clone());
        self.tell(Input::Commit { result, error: error.map(Cow::Owned) })
    }
}

/// What constrained sequences are held to: no token twice in a row.
pub(crate) fn may_follow(known: &[Token], token: Token) -> bool {
    known.last() != Some(&token)
}

fn arrival(id: SequenceId, request: &Request, sampling: &Arc<SlotSampling>) -> Arrival {
    Arrival {
        id,
        prompt: request.prompt.clone(),
        sampling: sampling.clone(),
        max_tokens: request.max_tokens,
        stop_tokens: request.stop_tokens.clone(),
        namespace: request.namespace,
        retention: request.retention,
        constrained: request.constrained,
        // Some don't wish it.
        speculation: !sampling.seed.is_multiple_of(8),
        priority: 0,
        want: PromptWant::Nothing,
    }
}

pub(crate) fn broken(error: impl ToString) -> Failure {
    Failure::Scheduler(error.to_string())
}
