//! Drives an executor as an engine would, without one.

// Each test file uses its own part of it.
#![allow(dead_code)]

pub(crate) mod toys;

use std::{collections::HashMap, ops::Range, path::PathBuf, sync::Arc};

use backend_cpu::{CpuBackend, CpuOptions, InstructionSet};
use engine_core::{
    PageId, Token,
    backend::{
        Backend, Batch, CompileOptions, Compute, Deadline, Draft, Executor, GroupId, InputToken,
        Limits, OutputRequest, Pooling, ProgramId, Row, Sampled, SharedPrefix, SlotEvent, SlotId,
        SlotSampling, Slots, Span, StepError, StepResult, Ticket, Want,
    },
    model::Program,
    weights::Weights,
};

pub(crate) const SLOTS: u32 = 16;
pub(crate) const CONTEXT: u32 = 2048;

/// How to run a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) threads: usize,
    pub(crate) set: Option<InstructionSet>,
    pub(crate) page_size: u32,
    pub(crate) chunk: usize,
    pub(crate) compute: Compute,
}

impl Default for Setup {
    fn default() -> Self {
        Self { threads: 2, set: None, page_size: 16, chunk: usize::MAX, compute: Compute::Exact }
    }
}

/// The paths that this processor has.
pub(crate) fn instruction_sets() -> Vec<InstructionSet> {
    [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512]
        .into_iter()
        .filter(|set| CpuBackend::with_options(&CpuOptions::new().instruction_set(*set)).is_ok())
        .collect()
}

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// One row of a step to come.
#[derive(Clone, Debug)]
pub(crate) struct RowPlan {
    pub(crate) slot: u32,
    pub(crate) tokens: Vec<InputToken>,
    /// What is wanted after which of the tokens.
    pub(crate) wants: Vec<(Range<usize>, Ask)>,
    /// Whether samples and verifications wait for masks.
    pub(crate) deferred: bool,
}

/// A [`Want`] with what it refers to.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Sample,
    Verify,
    /// The tokens to score, and how many of the likeliest to report.
    Score(Vec<Token>, u8),
    Hidden,
    Pool(Pooling),
}

impl RowPlan {
    pub(crate) fn known(slot: u32, tokens: &[Token], wants: Vec<(Range<usize>, Ask)>) -> Self {
        let tokens = tokens.iter().map(|token| InputToken::Known(*token)).collect();
        Self { slot, tokens, wants, deferred: false }
    }

    /// Samples after the last of the tokens.
    pub(crate) fn sampled(slot: u32, tokens: &[Token]) -> Self {
        Self::known(slot, tokens, vec![(tokens.len() - 1..tokens.len(), Ask::Sample)])
    }

    /// Goes on with the slot's next token and proposes what follows.
    pub(crate) fn verified(slot: u32, proposals: &[Token]) -> Self {
        let mut tokens = vec![InputToken::Produced(SlotId(slot))];
        tokens.extend(proposals.iter().map(|token| InputToken::Known(*token)));
        let wants = vec![(0..tokens.len(), Ask::Verify)];
        Self { slot, tokens, wants, deferred: false }
    }

    /// Goes on with the token that the slot's last step sampled.
    pub(crate) fn produced(slot: u32) -> Self {
        Self { wants: vec![(0..1, Ask::Sample)], ..Self::verified(slot, &[]) }
    }

    pub(crate) fn deferred(mut self) -> Self {
        self.deferred = true;
        self
    }
}

/// A page group as the harness fills it.
struct Group {
    program: ProgramId,
    window: Option<u32>,
    free: Vec<PageId>,
    /// Pages that are in use, and the most there ever were.
    used: usize,
    most: usize,
}

pub(crate) struct Harness {
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) slots: Slots,
    groups: Vec<Group>,
    page_size: u32,
    next_page: u32,
    positions: HashMap<(ProgramId, u32), u32>,
    /// Slots whose page tables grow.
    growing: Vec<u32>,
    /// The program that steps run.
    pub(crate) program: ProgramId,
    pub(crate) events: Vec<SlotEvent>,
    /// Hints for the steps to come.
    pub(crate) shared: Vec<SharedPrefix>,
    step: u64,
}

impl Harness {
    pub(crate) fn new(program: &Program, weights: &dyn Weights, setup: Setup) -> Self {
        Self::of(std::slice::from_ref(program), weights, setup)
    }

    pub(crate) fn of(programs: &[Program], weights: &dyn Weights, setup: Setup) -> Self {
        let mut options = CpuOptions::new().threads(setup.threads);
        if let Some(set) = setup.set {
            options = options.instruction_set(set);
        }
        let backend = CpuBackend::with_options(&options).unwrap();
        Self::on(&backend, programs, weights, &compile_options(programs, setup))
    }

    pub(crate) fn on(
        backend: &dyn Backend,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Self {
        let windows = (0..).zip(programs).flat_map(|(program, it)| {
            it.groups().iter().map(move |group| (ProgramId(program), group.window))
        });
        let group = |((program, window), pages): (_, &u32)| Group {
            program,
            window,
            free: (0..*pages).map(PageId).collect(),
            used: 0,
            most: 0,
        };
        let groups: Vec<Group> = windows.zip(&options.limits.pages).map(group).collect();
        Self {
            executor: backend.compile(programs, weights, options).unwrap(),
            slots: Slots::new(SLOTS, groups.len()),
            groups,
            program: ProgramId::default(),
            page_size: options.page_size,
            next_page: 0,
            positions: HashMap::new(),
            growing: Vec::new(),
            events: Vec::new(),
            shared: Vec::new(),
            step: 0,
        }
    }

    /// Moves a sequence of up to `tokens` tokens into a slot. Pages are handed out in an order
    /// that leaves no two neighbours side by side.
    pub(crate) fn open(&mut self, slot: u32, tokens: u32, sampling: SlotSampling) {
        self.growing.retain(|growing| *growing != slot);
        let slot_id = SlotId(slot);
        self.slots.open(slot_id, Arc::new(sampling));
        self.events.push(SlotEvent::Open { slot: slot_id });
        let count = tokens.div_ceil(self.page_size);
        for group in 0..self.groups.len() {
            let group = GroupId(group as u8);
            let first = self.next_page;
            let table = self.slots.pages_mut(slot_id, group);
            table.clear();
            table.extend((0..count).rev().map(|page| PageId(first + page)));
            let entries = Span { start: 0, len: count };
            self.events.push(SlotEvent::Pages { slot: slot_id, group, entries });
        }
        self.next_page += count;
        self.positions.retain(|(_, other), _| *other != slot);
    }

    /// Moves a sequence in whose page tables grow with its rows, and are released behind windows.
    pub(crate) fn open_growing(&mut self, slot: u32, sampling: SlotSampling) {
        self.open(slot, 0, sampling);
        self.growing.push(slot);
    }

    /// Appends the pages that a row needs in the groups of its program, and releases those that its
    /// window has left.
    fn fit_tables(&mut self, row: &Row) {
        for (index, group) in (0..).zip(&mut self.groups) {
            let id = GroupId(index);
            let table = self.slots.pages_mut(row.slot, id);
            let needed = row.kv_len().div_ceil(self.page_size) as usize;
            if group.program != self.program || (group.window.is_none() && table.len() >= needed) {
                continue;
            }
            let oldest = group.window.map_or(0, |window| (row.position + 1).saturating_sub(window));
            let live = (oldest / self.page_size) as usize;
            let changed = table.iter().position(|page| *page != PageId::NONE).unwrap_or(0);
            for page in table.iter_mut().take(live).filter(|page| **page != PageId::NONE) {
                group.free.push(std::mem::replace(page, PageId::NONE));
                group.used -= 1;
            }
            while table.len() < needed {
                table.push(group.free.pop().expect("the window bounds the number of pages"));
                group.used += 1;
            }
            group.most = group.most.max(group.used);
            let len = (table.len() - changed) as u32;
            let entries = Span { start: changed as u32, len };
            self.events.push(SlotEvent::Pages { slot: row.slot, group: id, entries });
        }
    }

    /// The most pages of a group that were in use at once.
    pub(crate) fn most_pages(&self, group: usize) -> usize {
        self.groups[group].most
    }

    pub(crate) fn position(&self, slot: u32) -> u32 {
        self.positions.get(&(self.program, slot)).copied().unwrap_or(0)
    }

    pub(crate) fn set_position(&mut self, slot: u32, position: u32) {
        self.positions.insert((self.program, slot), position);
    }

    pub(crate) fn launch(&mut self, plans: &[RowPlan]) -> Result<Ticket, StepError> {
        let (mut tokens, mut rows, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        let mut targets = Vec::new();
        for (index, plan) in (0..).zip(plans) {
            let start = tokens.len() as u32;
            let first_output = outputs.len() as u32;
            for (run, ask) in &plan.wants {
                let run = Span { start: start + run.start as u32, len: run.len() as u32 };
                let want = match ask {
                    Ask::Sample => Want::Sample,
                    Ask::Verify => Want::Verify(Draft::Chain),
                    Ask::Hidden => Want::Hidden,
                    Ask::Pool(pooling) => Want::Pool(*pooling),
                    Ask::Score(scored, top) => {
                        let start = targets.len() as u32;
                        targets.extend_from_slice(scored);
                        let targets = Span { start, len: scored.len() as u32 };
                        Want::Score { targets, top: *top }
                    }
                };
                let deferred = plan.deferred && matches!(ask, Ask::Sample | Ask::Verify);
                outputs.push(OutputRequest { row: index, tokens: run, want, deferred });
            }
            tokens.extend_from_slice(&plan.tokens);
            let row = Row {
                slot: SlotId(plan.slot),
                tokens: Span { start, len: plan.tokens.len() as u32 },
                position: self.position(plan.slot),
                outputs: Span { start: first_output, len: plan.wants.len() as u32 },
            };
            self.set_position(plan.slot, row.kv_len());
            if self.growing.contains(&plan.slot) {
                self.fit_tables(&row);
            }
            rows.push(row);
        }
        self.step += 1;
        let events = std::mem::take(&mut self.events);
        let mut batch = Batch::new(self.step, &tokens, &rows, 0, &outputs, &events, &self.slots);
        batch.program = self.program;
        batch.targets = &targets;
        batch.shared = &self.shared;
        self.executor.launch(&batch)
    }

    pub(crate) fn wait(&mut self, ticket: Ticket) -> (StepResult, Result<(), StepError>) {
        let mut result = StepResult::default();
        let outcome = self.executor.wait(ticket, Deadline::NEVER, &mut result);
        (result, outcome)
    }

    pub(crate) fn run(&mut self, plans: &[RowPlan]) -> StepResult {
        let ticket = self.launch(plans).unwrap();
        let (result, outcome) = self.wait(ticket);
        outcome.unwrap();
        result
    }
}

pub(crate) fn compile_options(programs: &[Program], setup: Setup) -> CompileOptions {
    let groups = programs.iter().map(|program| program.groups().len()).sum();
    let limits = Limits {
        rows: SLOTS,
        tokens: 4096,
        outputs: 256,
        slots: SLOTS,
        pages: vec![SLOTS * CONTEXT / setup.page_size; groups],
    };
    let mut options = CompileOptions::new(limits, setup.page_size, CONTEXT);
    options.compute = setup.compute;
    options
}

/// Greedy tokens of `prompts`, run together, launched one step ahead of what is read.
pub(crate) fn greedy(
    program: &Program,
    weights: &dyn Weights,
    prompts: &[&[Token]],
    count: usize,
    setup: Setup,
) -> Vec<Vec<Token>> {
    let mut harness = Harness::new(program, weights, setup);
    for (slot, prompt) in (0..).zip(prompts) {
        let length = (prompt.len() + count) as u32;
        harness.open(slot, length, SlotSampling::greedy());
    }
    // Chunked prefill: a row goes on decoding while others are still being prefilled.
    let mut done = vec![0usize; prompts.len()];
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut pending: Option<(Ticket, Vec<usize>)> = None;
    loop {
        let mut plans = Vec::new();
        let mut samplers = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let from = done[index];
            if from < prompt.len() {
                let to = prompt.len().min(from.saturating_add(setup.chunk));
                let is_last = to == prompt.len();
                let wants = match is_last {
                    true => vec![(to - from - 1..to - from, Ask::Sample)],
                    false => Vec::new(),
                };
                if is_last {
                    samplers.push(index);
                }
                plans.push(RowPlan::known(index as u32, &prompt[from..to], wants));
                done[index] = to;
            } else if from < prompt.len() + count - 1 {
                plans.push(RowPlan::produced(index as u32));
                samplers.push(index);
                done[index] += 1;
            }
        }
        let finished = plans.is_empty();
        let next = (!finished).then(|| (harness.launch(&plans).unwrap(), samplers));
        if let Some((ticket, rows)) = std::mem::replace(&mut pending, next) {
            let (result, outcome) = harness.wait(ticket);
            outcome.unwrap();
            for (row, Sampled { token, .. }) in rows.into_iter().zip(result.tokens) {
                answers[row].push(token);
            }
        }
        if finished {
            return answers;
        }
    }
}
