//! Launches are checked and queued; waiting runs them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use engine_core::backend::sample::pool;
use engine_core::backend::{
    BackendError, Batch, BatchBounds, CompileOptions, Deadline, Executor, GroupId, InputToken,
    Limits, Mask, Masks, PageCopy, Progress, Sampled, SlotSampling, Span, StepError, StepResult,
    Ticket, Want,
};
use engine_core::{PageId, Token};

use super::Ledger;
use super::commands::{Command, KeptMask, Sampling, Step, StepOutput, StepRow};
use super::kv::{Kv, Sequence};
use super::model::{self, Chain, Seen};
use super::resident::Resident;
use super::transfers::Transfers;
use super::violation::Violation;

/// The executor of a [`ShadowBackend`](super::ShadowBackend). A [`Violation`] is recorded in the
/// [`Ledger`] and reported as [`StepError::Dead`].
#[derive(Debug)]
pub struct ShadowExecutor {
    options: CompileOptions,
    bounds: BatchBounds,
    /// By group; `None` is full attention.
    windows: Vec<Option<u32>>,
    vocab_size: u32,
    ledger: Arc<Ledger>,
    resident: Resident,
    queue: VecDeque<Command>,
    /// Pages to poison with the next launch.
    freed: Vec<Command>,
    kv: Kv,
    transfers: Transfers,
    live: HashMap<u64, Live>,
    /// Seed and position of everything that was sampled for sequences with a seed of their own.
    sampled: HashSet<(u64, u32)>,
    tickets: u64,
    last_step: Option<u64>,
    steps_run: u64,
    logits: Vec<f32>,
}

/// A sequence in a slot, as far as running steps need it.
#[derive(Debug)]
struct Live {
    sampling: Arc<SlotSampling>,
    next: Option<Token>,
    /// Sampled since the slot was opened.
    sampled: Vec<Token>,
}

impl ShadowExecutor {
    /// An executor with unwritten memory.
    ///
    /// # Errors
    ///
    /// A page size or a vocabulary of zero.
    pub fn new(
        options: &CompileOptions,
        vocab_size: u32,
        ledger: Arc<Ledger>,
    ) -> Result<Self, BackendError> {
        if options.page_size == 0 || vocab_size == 0 {
            return Err(BackendError::Option {
                option: "page_size or vocab_size",
                reason: "it is zero".into(),
            });
        }
        let (limits, page_size) = (&options.limits, options.page_size as usize);
        let windows = vec![None; limits.pages.len()];
        Ok(Self {
            resident: Resident::new(limits, page_size, ledger.clone()),
            kv: Kv::new(page_size, &limits.pages),
            transfers: Transfers::new(page_size, &limits.pages, &options.host_pages),
            bounds: BatchBounds::of_sizes(vocab_size, windows.clone(), options),
            windows,
            options: options.clone(),
            vocab_size,
            ledger,
            queue: VecDeque::new(),
            freed: Vec::new(),
            live: HashMap::new(),
            sampled: HashSet::new(),
            tickets: 0,
            last_step: None,
            steps_run: 0,
            logits: Vec::new(),
        })
    }

    /// With a window for each group; `None` is full attention.
    #[must_use]
    pub fn with_windows(mut self, windows: impl IntoIterator<Item = Option<u32>>) -> Self {
        let groups = self.windows.len();
        self.windows = windows.into_iter().take(groups).collect();
        self.windows.resize(groups, None);
        self.bounds = BatchBounds::of_sizes(self.vocab_size, self.windows.clone(), &self.options);
        self
    }

    /// Makes the pages of a group for which `is_free` holds unreadable, from the next launch on.
    /// To be called once that launch is planned: its rows may not read these pages, though its
    /// events may still copy from them.
    pub fn poison(&mut self, group: GroupId, is_free: impl Fn(PageId) -> bool) {
        let pages = self.bounds.limits().pages.get(group.index()).copied().unwrap_or(0);
        let pages: Vec<_> = (0..pages).map(PageId).filter(|&page| is_free(page)).collect();
        if let Err(violation) = self.transfers.check_free(group, &pages) {
            self.ledger.record(violation);
        }
        self.freed.push(Command::Free { group, pages });
    }

    /// Loses all KV at once; steps in flight fail with [`StepError::KvLost`].
    pub fn lose_kv(&mut self) {
        self.kv.lose();
        self.sampled.clear();
        for command in &mut self.queue {
            match command {
                Command::Step(step) => step.lost = true,
                Command::Transfer { lost, .. } => *lost = true,
                _ => {}
            }
        }
    }

    /// Steps that have run.
    pub fn steps_run(&self) -> u64 {
        self.steps_run
    }

    fn report(&self, violation: Violation) -> StepError {
        let reason = violation.to_string();
        self.ledger.record(violation);
        StepError::Dead { reason }
    }

    fn waited(&mut self, ticket: Ticket, result: &mut StepResult) -> Result<(), StepError> {
        match self.try_wait(ticket.number(), result) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StepError::KvLost { reason: "it was lost before this ran".into() }),
            Err(violation) => Err(self.report(violation)),
        }
    }

    fn try_launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, Violation> {
        batch.check(&self.bounds)?;
        if let Some(before) = self.last_step
            && batch.step != before + 1
        {
            return Err(Violation::StepNumber { before, found: batch.step });
        }
        self.resident.apply(batch, &mut self.queue)?;
        self.transfers.check_events(batch.events)?;
        self.queue.extend(self.freed.drain(..));
        let mut rows = Vec::with_capacity(batch.rows.len());
        for row in batch.rows {
            self.resident.check_row(batch, row, self.last_step)?;
            let tables = self.resident.tables(row);
            self.transfers.check_row(row, &tables)?;
            let tokens = &batch.tokens[row.tokens.range()];
            if tokens.contains(&InputToken::Produced(row.slot)) {
                self.check_sampled()?;
            }
            let occupant = self.resident.occupant(row)?;
            let expectation = occupant.expectation;
            rows.push(StepRow {
                sequence: Sequence {
                    slot: row.slot,
                    namespace: expectation.map_or(0, |expectation| expectation.namespace),
                },
                opening: occupant.opening,
                own_seed: expectation.map(|_| occupant.sampling.seed),
                tokens: tokens
                    .iter()
                    .map(|token| match token {
                        InputToken::Known(token) => Some(*token),
                        InputToken::Produced(_) => None,
                    })
                    .collect(),
                first_token: row.tokens.start,
                position: row.position,
                tables,
                outputs: row
                    .outputs
                    .range()
                    .map(|index| StepOutput::new(batch, index as u32))
                    .collect(),
            });
        }
        let sampling = if batch.is_deferred() { Sampling::Deferred } else { Sampling::AtOnce };
        let ticket = self.next_ticket();
        self.last_step = Some(batch.step);
        self.queue.push_back(Command::Step(Step {
            ticket,
            number: batch.step,
            rows,
            sampling,
            lost: false,
        }));
        Ok(Ticket::new(ticket))
    }

    fn try_transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, Violation> {
        let ticket = self.next_ticket();
        self.transfers.start(ticket, copies)?;
        self.queue.push_back(Command::Transfer { ticket, copies: copies.to_vec(), lost: false });
        Ok(Ticket::new(ticket))
    }

    fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets - 1
    }

    /// The step launched last must have been sampled before another step continues it.
    fn check_sampled(&self) -> Result<(), Violation> {
        let last = self.queue.iter().rev().find_map(|command| match command {
            Command::Step(step) => Some(step),
            _ => None,
        });
        match last {
            Some(Step { sampling: Sampling::Deferred, number, .. }) => {
                Err(Violation::NeverSampled { step: *number })
            }
            _ => Ok(()),
        }
    }

    fn try_sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), Violation> {
        let step = self.queue.iter_mut().find_map(|command| match command {
            Command::Step(step) if step.ticket == ticket.number() => Some(step),
            _ => None,
        });
        let Some(step) = step else {
            return Err(Violation::NotDeferred { step: ticket.number() });
        };
        if !matches!(step.sampling, Sampling::Deferred) {
            return Err(Violation::NotDeferred { step: step.number });
        }
        let mut kept: Vec<KeptMask> = Vec::new();
        for mask in masks.entries {
            let outputs = step.rows.iter().flat_map(|row| &row.outputs);
            let mut named = outputs.filter(|output| output.index == mask.output);
            let exists = named
                .any(|output| output.request.deferred && mask.index < output.request.tokens.len);
            let place = (mask.output, mask.index);
            if !exists || kept.iter().any(|kept| kept.place == place) {
                return Err(Violation::Mask { output: mask.output });
            }
            kept.push(KeptMask { place, allowed: mask.allowed.to_vec() });
        }
        step.sampling = Sampling::Masked(kept);
        Ok(())
    }

    /// Runs everything up to the step or transfer of a ticket, and that. False if it was lost.
    fn try_wait(&mut self, ticket: u64, result: &mut StepResult) -> Result<bool, Violation> {
        let expected = self.queue.iter().find_map(Command::ticket);
        if expected != Some(ticket) {
            return Err(Violation::TicketOrder { expected, found: ticket });
        }
        while let Some(command) = self.queue.pop_front() {
            match command {
                Command::Open { opening, sampling } => {
                    self.live.insert(opening, Live { sampling, next: None, sampled: Vec::new() });
                }
                Command::Close { opening } => drop(self.live.remove(&opening)),
                Command::Copy { group, from, to } => self.kv.copy(group, from, to),
                Command::Free { group, pages } => {
                    pages.into_iter().for_each(|page| self.kv.free(group, page));
                }
                Command::Transfer { ticket, copies, lost } => {
                    self.transfers.end(ticket);
                    if !lost {
                        self.transfers.run(&mut self.kv, &copies)?;
                    }
                    return Ok(!lost);
                }
                Command::Step(step) if step.lost => return Ok(false),
                Command::Step(step) => {
                    self.run(&step, result)?;
                    self.steps_run += 1;
                    break;
                }
            }
        }
        Ok(true)
    }

    fn run(&mut self, step: &Step, result: &mut StepResult) -> Result<(), Violation> {
        let masks = match &step.sampling {
            Sampling::AtOnce => &[][..],
            Sampling::Masked(masks) => masks,
            Sampling::Deferred => return Err(Violation::NeverSampled { step: step.number }),
        };
        for row in &step.rows {
            self.run_row(row, masks, result)?;
        }
        Ok(())
    }

    fn run_row(
        &mut self,
        row: &StepRow,
        masks: &[KeptMask],
        result: &mut StepResult,
    ) -> Result<(), Violation> {
        let slot = row.sequence.slot;
        let next = self.live.get(&row.opening).ok_or(Violation::Closed { slot })?.next;
        let new = row.tokens.iter().map(|token| token.or(next));
        let new: Option<Vec<Token>> = new.collect();
        let new = new.ok_or(Violation::NoNextToken { slot })?;

        let mut known = self.read(row)?;
        let start = Chain::of(&known);
        for (group, table) in row.tables.iter().enumerate() {
            let group = GroupId(group as u8);
            let mut chain = start;
            for (position, &token) in (row.position..).zip(&new) {
                chain = self.kv.write(group, table, (token, position, chain), row.sequence)?;
            }
        }

        let mut chains = Vec::with_capacity(new.len());
        let mut chain = start;
        for &token in &new {
            chain = chain.then(token);
            chains.push(chain);
        }
        let before = known.len();
        for output in &row.outputs {
            let run = output.request.tokens.range();
            let first = run.start - row.first_token as usize;
            known.truncate(before);
            known.extend_from_slice(&new[..first]);
            let mut answers = Vec::new();
            for (index, place) in (0..).zip(first..first + run.len()) {
                known.push(new[place]);
                model::raw_logits(chains[place], self.vocab_size, &mut self.logits);
                let mask = masks.iter().find(|mask| mask.place == (output.index, index));
                let mask = mask.map(|mask| &mask.allowed[..]);
                let (token, top) = match output.request.want {
                    Want::Sample | Want::Verify(_) => {
                        self.sample_row(row, output.index, &known, mask)?
                    }
                    Want::Score { top, .. } => (output.targets[index as usize], Some(top)),
                    Want::Hidden | Want::Pool(_) => break,
                };
                answers.push(answer(result, &self.logits, token, top));
                let holds = new.get(place + 1) == Some(&token);
                if matches!(output.request.want, Want::Verify(_)) && !holds {
                    break;
                }
            }
            let hidden = chains[first..first + run.len()].iter().map(|chain| chain.hidden());
            match output.request.want {
                Want::Hidden => result.push_vector(output.index, hidden),
                Want::Pool(pooling) => {
                    let hidden: Vec<f32> = hidden.collect();
                    result.push_vector(output.index, pool(pooling, &hidden, 1));
                }
                _ => result.push_tokens(output.index, answers),
            }
        }
        Ok(())
    }

    /// Reads what a row sees of each group, and returns the tokens of all positions before it.
    fn read(&self, row: &StepRow) -> Result<Vec<Token>, Violation> {
        let groups = || (0..).map(GroupId).zip(&row.tables).zip(&self.windows);
        let mut known = None;
        for ((group, table), _) in groups().filter(|(_, window)| window.is_none()) {
            let mut tokens = Vec::new();
            self.kv.read(group, table, row.position, row.sequence, &mut tokens)?;
            known = Some(tokens);
        }
        for ((group, table), window) in groups() {
            let &Some(window) = window else { continue };
            let tokens = match &mut known {
                Some(tokens) => tokens,
                None => known.insert(self.kv.recall(group, table, row.position, row.sequence)?),
            };
            let sees = (window, row.position);
            self.kv.read_window(group, table, sees, row.sequence, tokens)?;
        }
        Ok(known.unwrap_or_default())
    }

    /// Samples after the `known` tokens, makes the token the slot's next, and returns it with
    /// the number of likeliest tokens to report.
    fn sample_row(
        &mut self,
        row: &StepRow,
        output: u32,
        known: &[Token],
        mask: Option<&[u32]>,
    ) -> Result<(Token, Option<u8>), Violation> {
        let slot = row.sequence.slot;
        let position = known.len() as u32;
        if let Some(seed) = row.own_seed
            && !self.sampled.insert((seed, position))
        {
            return Err(Violation::SampledTwice { seed, position });
        }
        let live = self.live.get_mut(&row.opening).ok_or(Violation::Closed { slot })?;
        let sampling = &live.sampling;
        let mut seen = Seen::default();
        let mut generated = Vec::new();
        if sampling.has_penalties() {
            let wrong = Violation::History { slot, known: known.len() };
            let (prompt, before) = sampling
                .history
                .split_at_checked(sampling.history_prompt as usize)
                .ok_or(wrong.clone())?;
            generated.extend_from_slice(before);
            generated.extend_from_slice(&live.sampled);
            if !prompt.iter().chain(&generated).eq(known) {
                return Err(wrong);
            }
            seen = Seen { prompt, generated: &generated };
        }
        let allowed = |token: Token| {
            mask.is_none_or(|allowed| Mask { output, index: 0, allowed }.allows(token))
        };
        let token = model::choose(&self.logits, sampling, &seen, position, allowed)
            .ok_or(Violation::Mask { output })?;
        live.next = Some(token);
        live.sampled.push(token);
        Ok((token, sampling.logprobs))
    }
}

impl Executor for ShadowExecutor {
    fn limits(&self) -> &Limits {
        self.bounds.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        progress.update("shadow", 1, 1);
        Ok(())
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        self.try_launch(batch).map_err(|violation| self.report(violation))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.try_sample(ticket, masks).map_err(|violation| self.report(violation))
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        _deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        let waited = self.waited(ticket, result);
        if waited.is_err() {
            result.clear();
        }
        waited
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        if !self.transfers.has_host() {
            return Err(StepError::Unsupported { what: "transfers without a host tier" });
        }
        self.try_transfer(copies).map_err(|violation| self.report(violation))
    }

    fn wait_transfer(&mut self, ticket: Ticket, _deadline: Deadline) -> Result<(), StepError> {
        self.waited(ticket, &mut StepResult::default())
    }
}

/// A token of an answer, with log probabilities where they are asked for.
fn answer(result: &mut StepResult, logits: &[f32], token: Token, wanted: Option<u8>) -> Sampled {
    let start = result.top.len() as u32;
    let mut logprob = f32::NAN;
    if let Some(count) = wanted {
        logprob = model::log_probability(logits, token);
        result.top.extend(model::likeliest(logits, count));
    }
    let top = Span { start, len: result.top.len() as u32 - start };
    Sampled { token, logprob, top }
}
