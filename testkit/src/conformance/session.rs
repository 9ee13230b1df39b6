//! A little of what an engine does: page tables, positions and slot events, so that a case is
//! written in terms of rows.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use engine_core::backend::{
    Backend, Batch, CompileOptions, Compute, Deadline, Draft, Executor, GroupId, InputToken,
    KvFormat, Limits, Mask, Masks, OutputRequest, PageCopy, ProgramId, Row, SlotEvent, SlotId,
    SlotSampling, Slots, Span, StepError, StepResult, Ticket, Want,
};
use engine_core::{PageId, Token};

use super::failure::{CaseError, Failure};
use super::models::Model;
use crate::random::Random;

/// No step of these sizes takes this long on a device that works.
const DEADLINE: Duration = Duration::from_secs(120);

/// Sizes that an executor is compiled for.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) page_size: u32,
    pub(super) slots: u32,
    pub(super) context_length: u32,
    pub(super) kv_format: KvFormat,
    pub(super) compute: Compute,
    pub(super) host_pages: u32,
    /// Hidden states and pooled vectors are wanted.
    pub(super) hidden: bool,
}

impl Setup {
    /// Eight slots of up to 128 positions, in pages of 16.
    pub(super) fn new() -> Self {
        Self {
            page_size: 16,
            slots: 8,
            context_length: 128,
            kv_format: KvFormat::F32,
            compute: Compute::Exact,
            host_pages: 0,
            hidden: false,
        }
    }

    pub(super) fn page_size(self, page_size: u32) -> Self {
        Self { page_size, ..self }
    }

    /// As compile options for a program with `groups` page groups.
    pub(super) fn options(&self, groups: usize) -> CompileOptions {
        let pages = self.slots * self.context_length.div_ceil(self.page_size) + 2;
        let limits = Limits {
            rows: self.slots,
            tokens: 128,
            outputs: 64,
            slots: self.slots,
            pages: vec![pages; groups],
        };
        let mut options = CompileOptions::new(limits, self.page_size, self.context_length);
        (options.kv_format, options.hidden) = (self.kv_format, self.hidden);
        options.compute = self.compute;
        if self.host_pages > 0 {
            options.host_pages = vec![self.host_pages; groups];
        }
        options
    }
}

/// A row of a step that a case asks for.
#[derive(Clone, Debug)]
pub(super) struct RowPlan {
    slot: u32,
    tokens: Vec<InputToken>,
    wants: Vec<Wanted>,
}

/// Something wanted of a row.
#[derive(Clone, Debug)]
struct Wanted {
    /// After which of the row's tokens.
    run: Range<usize>,
    what: Want,
    /// The tokens to score.
    targets: Vec<Token>,
}

impl RowPlan {
    /// New known tokens for a slot, of which nothing is wanted.
    pub(super) fn known(slot: u32, tokens: &[Token]) -> Self {
        let tokens = tokens.iter().map(|&token| InputToken::Known(token)).collect();
        Self { slot, tokens, wants: Vec::new() }
    }

    /// The token that the step before samples for the slot; sample the next.
    pub(super) fn produced(slot: u32) -> Self {
        Self { slot, tokens: vec![InputToken::Produced(SlotId(slot))], wants: Vec::new() }.sample()
    }

    /// The token that the step before samples for the slot, and known ones after it.
    pub(super) fn produced_and(slot: u32, known: &[Token]) -> Self {
        let known = known.iter().map(|&token| InputToken::Known(token));
        let tokens = std::iter::once(InputToken::Produced(SlotId(slot))).chain(known).collect();
        Self { slot, tokens, wants: Vec::new() }
    }

    /// Sample after the last token.
    pub(super) fn sample(self) -> Self {
        let last = self.tokens.len() - 1;
        self.want(last..last + 1, Want::Sample)
    }

    /// All log probabilities after each token.
    pub(super) fn score_all(self) -> Self {
        (0..self.tokens.len()).fold(self, |plan, token| plan.score(token))
    }

    /// All log probabilities after the last token.
    pub(super) fn score_last(self) -> Self {
        let last = self.tokens.len() - 1;
        self.score(last)
    }

    /// All log probabilities after a token.
    pub(super) fn score(self, token: usize) -> Self {
        self.score_of(token, 0, u8::MAX)
    }

    /// The log probability of `target` after a token, and of the `top` likeliest.
    pub(super) fn score_of(self, token: usize, target: Token, top: u8) -> Self {
        self.score_run(token..token + 1, &[target], top)
    }

    /// The log probabilities of `targets` after each token of a run, and of the `top` likeliest.
    pub(super) fn score_run(mut self, run: Range<usize>, targets: &[Token], top: u8) -> Self {
        let what = Want::Score { targets: Span::default(), top };
        self.wants.push(Wanted { run, what, targets: targets.to_vec() });
        self
    }

    /// Verifies the row's tokens from `first` on: the one after is the first proposal.
    pub(super) fn verify(self, first: usize) -> Self {
        let end = self.tokens.len();
        self.want(first..end, Want::Verify(Draft::Chain))
    }

    /// Something of a run of tokens.
    pub(super) fn want(mut self, run: Range<usize>, what: Want) -> Self {
        self.wants.push(Wanted { run, what, targets: Vec::new() });
        self
    }

    fn is_decode(&self) -> bool {
        self.tokens.len() == 1 && self.wants.len() == 1
    }
}

/// The answer to an output.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// Which output of the step.
    pub(super) output: u32,
    /// The token: sampled, or the one that was to be scored.
    pub(super) token: Token,
    /// Its log probability; NaN unless it was asked for.
    pub(super) logprob: f32,
    /// The likeliest tokens, in the order in which they came.
    pub(super) top: Vec<(Token, f32)>,
    /// Hidden states or a pooled vector, instead of all the others.
    pub(super) vector: Vec<f32>,
}

impl Answer {
    /// Log probabilities by token, where all of a vocabulary came.
    pub(super) fn by_token(&self) -> Vec<f32> {
        let mut sorted = self.top.clone();
        sorted.sort_by_key(|&(token, _)| token);
        sorted.into_iter().map(|(_, logprob)| logprob).collect()
    }
}

/// An executor with the core's half of its state.
pub(super) struct Session {
    executor: Box<dyn Executor>,
    slots: Slots,
    page_size: u32,
    /// By group, in an order without meaning.
    free: Vec<Vec<PageId>>,
    /// What the next launches run.
    program: ProgramId,
    /// By program: its number of page groups.
    groups: Vec<usize>,
    /// By program and slot: where its next token goes.
    positions: Vec<Vec<u32>>,
    events: Vec<SlotEvent>,
    next_step: u64,
}

impl Session {
    pub(super) fn new(
        backend: &dyn Backend,
        model: &Model,
        setup: &Setup,
    ) -> Result<Self, Failure> {
        let groups: Vec<usize> =
            model.programs.iter().map(|program| program.groups().len()).collect();
        let options = setup.options(groups.iter().sum());
        let compiled = backend.compile(&model.programs, &model.weights, &options);
        let executor = compiled.map_err(|source| Failure::Compile {
            program: model.program().name().to_owned(),
            source,
        })?;
        // Scrambled: a backend that takes pages for consecutive is found out.
        let mut random = Random::new(7);
        let shuffled = |pages: u32, random: &mut Random| {
            let mut pages: Vec<PageId> = (0..pages).map(PageId).collect();
            (1..pages.len()).for_each(|i| pages.swap(i, random.below(i + 1)));
            pages
        };
        let free = options.limits.pages.iter().map(|&pages| shuffled(pages, &mut random)).collect();
        Ok(Self {
            executor,
            slots: Slots::new(setup.slots, groups.iter().sum()),
            page_size: setup.page_size,
            free,
            program: ProgramId(0),
            positions: vec![vec![0; setup.slots as usize]; groups.len()],
            groups,
            events: Vec::new(),
            next_step: 0,
        })
    }

    /// Runs another of the compiled programs from now on.
    pub(super) fn use_program(&mut self, program: ProgramId) {
        self.program = program;
    }

    /// A slot goes on at an earlier position: what a draft proposed beyond it did not hold.
    pub(super) fn rewind(&mut self, slot: u32, position: u32) {
        self.positions[self.program.index()][slot as usize] = position;
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(super) fn executor(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// The page table of a slot in the first group.
    pub(super) fn table(&self, slot: u32) -> &[PageId] {
        self.slots.pages(SlotId(slot), GroupId(0))
    }

    /// A sequence moves in.
    pub(super) fn open(&mut self, slot: u32, sampling: SlotSampling) {
        self.slots.open(SlotId(slot), Arc::new(sampling));
        self.events.push(SlotEvent::Open { slot: SlotId(slot) });
        self.positions.iter_mut().for_each(|positions| positions[slot as usize] = 0);
    }

    /// A sequence moves out, and its pages are free for whoever comes next.
    pub(super) fn close(&mut self, slot: u32) {
        self.events.push(SlotEvent::Close { slot: SlotId(slot) });
        for group in self.groups() {
            let pages = std::mem::take(self.slots.pages_mut(SlotId(slot), group));
            self.free[usize::from(group.0)].extend(pages);
        }
    }

    /// A sequence moves in that goes on from `parent`'s first `positions` positions: whole pages
    /// are shared, a partial one is copied.
    ///
    /// Only for slots that aren't closed afterwards, as nobody counts who shares a page.
    pub(super) fn fork(
        &mut self,
        parent: u32,
        child: u32,
        positions: u32,
        sampling: SlotSampling,
    ) -> Result<(), Failure> {
        let (whole, partial) = (positions / self.page_size, positions % self.page_size);
        for group in self.groups() {
            let pages = self.slots.pages(SlotId(parent), group);
            let mut table = pages[..whole as usize].to_vec();
            if partial > 0 {
                let (from, to) = (pages[whole as usize], self.allocate(group)?);
                table.push(to);
                self.events.push(SlotEvent::CopyPage { group, from, to });
            }
            *self.slots.pages_mut(SlotId(child), group) = table;
        }
        self.open(child, sampling);
        for group in self.groups() {
            let len = self.slots.pages(SlotId(child), group).len() as u32;
            self.announce(child, group, Span { start: 0, len });
        }
        self.positions[self.program.index()][child as usize] = positions;
        Ok(())
    }

    /// A sequence moves in whose first positions others put into pages that nobody has. Returns
    /// its table in the first group.
    pub(super) fn adopt(
        &mut self,
        slot: u32,
        positions: u32,
        sampling: SlotSampling,
    ) -> Result<Vec<PageId>, Failure> {
        self.open(slot, sampling);
        self.extend(slot, positions)?;
        self.positions[self.program.index()][slot as usize] = positions;
        Ok(self.table(slot).to_vec())
    }

    /// Moves a page of a slot elsewhere, contents included, as the core does with duplicates.
    pub(super) fn move_page(&mut self, slot: u32, entry: u32) -> Result<(), Failure> {
        for group in self.groups() {
            let to = self.allocate(group)?;
            let table = self.slots.pages_mut(SlotId(slot), group);
            let from = std::mem::replace(&mut table[entry as usize], to);
            self.events.push(SlotEvent::CopyPage { group, from, to });
            self.announce(slot, group, Span { start: entry, len: 1 });
            self.free[usize::from(group.0)].push(from);
        }
        Ok(())
    }

    /// Launches a step and waits for it.
    pub(super) fn run(&mut self, plans: &[RowPlan]) -> Result<Vec<Answer>, Failure> {
        let ticket = self.launch(plans)?;
        self.wait(ticket)
    }

    /// Launches a step that samples at once.
    pub(super) fn launch(&mut self, plans: &[RowPlan]) -> Result<Ticket, Failure> {
        self.start(plans, &[])
    }

    /// Launches a step whose sampling [`sample`](Self::sample) completes.
    pub(super) fn launch_deferred(&mut self, plans: &[RowPlan]) -> Result<Ticket, Failure> {
        let all: Vec<u32> = (0..plans.len() as u32).collect();
        self.start(plans, &all)
    }

    /// Launches a step of which [`sample`](Self::sample) samples some rows only.
    pub(super) fn launch_deferring(
        &mut self,
        plans: &[RowPlan],
        rows: &[u32],
    ) -> Result<Ticket, Failure> {
        self.start(plans, rows)
    }

    pub(super) fn sample(&mut self, ticket: &Ticket, masks: &[Mask<'_>]) -> Result<(), Failure> {
        let sampled = self.executor.sample(ticket, &Masks { entries: masks });
        sampled.map_err(|source| Failure::Step { step: self.next_step, source })
    }

    /// Waits for a step that must succeed.
    pub(super) fn wait(&mut self, ticket: Ticket) -> Result<Vec<Answer>, Failure> {
        let (answers, outcome) = self.wait_any(ticket);
        outcome.map_err(|source| Failure::Step { step: self.next_step, source })?;
        Ok(answers)
    }

    /// Waits for a step that may fail.
    pub(super) fn wait_any(&mut self, ticket: Ticket) -> (Vec<Answer>, Result<(), StepError>) {
        let mut result = StepResult::default();
        let outcome = self.executor.wait(ticket, Deadline::after(DEADLINE), &mut result);
        let mut answers = Vec::new();
        for output in &result.outputs {
            let vector = result.vector_of(output);
            if !vector.is_empty() {
                let (token, logprob, top) = (Token::MAX, f32::NAN, Vec::new());
                let (output, vector) = (output.output, vector.to_vec());
                answers.push(Answer { output, token, logprob, top, vector });
                continue;
            }
            answers.extend(result.tokens_of(output).iter().map(|sampled| Answer {
                output: output.output,
                token: sampled.token,
                logprob: sampled.logprob,
                top: result.top.get(sampled.top.range()).unwrap_or_default().to_vec(),
                vector: Vec::new(),
            }));
        }
        (answers, outcome)
    }

    /// Copies pages between tiers and waits until that is done.
    pub(super) fn transfer(&mut self, copies: &[PageCopy]) -> Result<(), Failure> {
        let failed = |source| Failure::Step { step: self.next_step, source };
        let ticket = self.executor.transfer(copies).map_err(failed)?;
        self.executor.wait_transfer(ticket, Deadline::after(DEADLINE)).map_err(failed)
    }

    /// Takes a page that no sequence has.
    pub(super) fn allocate(&mut self, group: GroupId) -> Result<PageId, Failure> {
        let page = self.free[usize::from(group.0)].pop();
        page.ok_or(Failure::Case(CaseError::TooFew { what: "pages" }))
    }

    /// The executor's groups of the program that runs.
    fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        let first: usize = self.groups[..self.program.index()].iter().sum();
        let groups = first..first + self.groups[self.program.index()];
        groups.map(|group| GroupId(group as u8))
    }

    fn announce(&mut self, slot: u32, group: GroupId, entries: Span) {
        self.events.push(SlotEvent::Pages { slot: SlotId(slot), group, entries });
    }

    /// Makes a slot's tables long enough for `positions`.
    fn extend(&mut self, slot: u32, positions: u32) -> Result<(), Failure> {
        let needed = positions.div_ceil(self.page_size) as usize;
        for group in self.groups() {
            let start = self.slots.pages(SlotId(slot), group).len();
            for _ in start..needed {
                let page = self.allocate(group)?;
                self.slots.pages_mut(SlotId(slot), group).push(page);
            }
            if needed > start {
                let len = (needed - start) as u32;
                self.announce(slot, group, Span { start: start as u32, len });
            }
        }
        Ok(())
    }

    fn start(&mut self, plans: &[RowPlan], deferred: &[u32]) -> Result<Ticket, Failure> {
        let (mut tokens, mut rows, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        let mut targets = Vec::new();
        for (index, plan) in (0..).zip(plans) {
            let position = self.positions[self.program.index()][plan.slot as usize];
            let start = tokens.len() as u32;
            let first_output = outputs.len() as u32;
            for Wanted { run, what, targets: scored } in &plan.wants {
                let first = targets.len() as u32;
                targets.extend_from_slice(scored);
                let mut want = *what;
                if let Want::Score { targets, .. } = &mut want {
                    *targets = Span { start: first, len: scored.len() as u32 };
                }
                let (start, len) = (start + run.start as u32, run.len() as u32);
                let is_sampled = matches!(want, Want::Sample | Want::Verify(_));
                let deferred = is_sampled && deferred.contains(&index);
                outputs.push(OutputRequest {
                    row: index,
                    tokens: Span { start, len },
                    want,
                    deferred,
                });
            }
            rows.push(Row {
                slot: SlotId(plan.slot),
                tokens: Span { start, len: plan.tokens.len() as u32 },
                position,
                outputs: Span { start: first_output, len: plan.wants.len() as u32 },
            });
            tokens.extend_from_slice(&plan.tokens);
            let kv_len = position + plan.tokens.len() as u32;
            self.extend(plan.slot, kv_len)?;
            self.positions[self.program.index()][plan.slot as usize] = kv_len;
        }
        let decode_rows = plans.iter().take_while(|plan| plan.is_decode()).count() as u32;
        let events = std::mem::take(&mut self.events);
        let step = self.next_step;
        self.next_step += 1;
        let mut batch =
            Batch::new(step, &tokens, &rows, decode_rows, &outputs, &events, &self.slots);
        (batch.program, batch.targets) = (self.program, &targets);
        self.executor.launch(&batch).map_err(|source| Failure::Step { step, source })
    }
}
