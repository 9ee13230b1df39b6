//! Compiled programs with their KV memory.
//!
//! A step is queued on the device's stream and waited for within `launch`; its logits are sampled on the host, as
//! [`OutputSampler`] defines it. So the host is not ahead of the device yet: the next token of a slot is known when the
//! launch returns.

use std::sync::Arc;

use backend_api::kit::{Tickets, check_copies, output_rows};
use backend_api::sample::{OutputRows, OutputSampler, TokenCounts};
use backend_api::{
    BackendError, Batch, BatchBounds, Deadline, Executor, InputToken, Limits, Masks, OutputRequest,
    PageCopy, ProgramId, Progress, Row, RowFailure, SlotEvent, SlotSampling, StepError, StepResult,
    Ticket, Tier, Token, Want,
};

use crate::device::Device;
use crate::forward::{Forward, GroupMemory, Inputs, StepInput};
use crate::load::{LoadedProgram, widen};

/// What stays with a slot from step to step.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    sampling: Arc<SlotSampling>,
    counts: TokenCounts,
    /// By program.
    next: Vec<NextToken>,
}

impl Slot {
    pub(crate) fn new(programs: usize) -> Self {
        let sampling = Arc::new(SlotSampling::greedy());
        Self { sampling, counts: TokenCounts::default(), next: vec![NextToken::None; programs] }
    }
}

/// What [`InputToken::Produced`] stands for.
#[derive(Clone, Copy, Debug)]
enum NextToken {
    None,
    Sampled(Token),
    Failed,
}

/// What a ticket stands for.
#[derive(Debug)]
enum Work {
    Step(Box<Step>),
    Transfer,
}

/// A step up to its logits, and the answers so far.
#[derive(Debug)]
struct Step {
    program: ProgramId,
    rows: Vec<Row>,
    outputs: Vec<OutputRequest>,
    targets: Vec<Token>,
    /// All new tokens.
    tokens: Vec<Token>,
    /// `[output rows, vocabulary]`.
    logits: Vec<f32>,
    /// `[output rows, width]`; empty unless an output wants them.
    hidden: Vec<f32>,
    /// By output.
    answers: Vec<StepResult>,
    failures: Vec<RowFailure>,
    waits_for_masks: bool,
}

/// The executor.
#[derive(Debug)]
pub(crate) struct CudaExecutor {
    pub(crate) device: Device,
    pub(crate) programs: Vec<LoadedProgram>,
    pub(crate) groups: Vec<GroupMemory>,
    pub(crate) bounds: BatchBounds,
    pub(crate) half: bool,
    pub(crate) processors: u32,
    /// By group and page of the host tier: the page of each layer, one after another.
    pub(crate) host: Vec<Vec<Vec<u8>>>,
    pub(crate) host_pages: Vec<u32>,
    pub(crate) slots: Vec<Slot>,
    tickets: Tickets<Work>,
    step: StepInput,
    sampler: OutputSampler,
}

impl CudaExecutor {
    pub(crate) fn new(
        device: Device,
        programs: Vec<LoadedProgram>,
        groups: Vec<GroupMemory>,
        bounds: BatchBounds,
        half: bool,
        processors: u32,
        host_pages: Vec<u32>,
    ) -> Self {
        let slots = vec![Slot::new(programs.len()); bounds.limits().slots as usize];
        let host = host_pages
            .iter()
            .zip(&groups)
            .map(|(&pages, group)| {
                vec![vec![0; group.page_bytes * group.layers.len()]; pages as usize]
            })
            .collect();
        Self {
            device,
            programs,
            groups,
            bounds,
            half,
            processors,
            host,
            host_pages,
            slots,
            tickets: Tickets::default(),
            step: StepInput::default(),
            sampler: OutputSampler::default(),
        }
    }

    /// The device's trouble: nothing on it can be trusted any more.
    fn lost(&mut self, error: &BackendError) -> StepError {
        self.tickets.kill(error.to_string())
    }

    fn apply_events(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        for event in batch.events {
            match *event {
                SlotEvent::Open { slot } => {
                    let sampling = batch.slots.sampling(slot);
                    let slot = &mut self.slots[slot.index()];
                    slot.counts.open(sampling);
                    slot.sampling = Arc::clone(sampling);
                    slot.next.fill(NextToken::None);
                }
                SlotEvent::Pages { slot, group, entries } => {
                    let memory = &self.groups[group.index()];
                    let table = batch.slots.pages(slot, group);
                    // Where a later event of the batch shortened the table, nothing is left to take over.
                    let end = entries.range().end.min(table.len()).min(memory.table_width);
                    let pages: Vec<i32> = table
                        .get(entries.range().start..end)
                        .unwrap_or(&[])
                        .iter()
                        .map(|page| page.0 as i32)
                        .collect();
                    let first = slot.index() * memory.table_width + entries.range().start;
                    self.device.write(memory.tables + 4 * first as u64, &pages)?;
                }
                SlotEvent::CopyPage { group, from, to } => {
                    let GroupMemory { layers, page_bytes, .. } = &self.groups[group.index()];
                    for layer in layers {
                        let place = |page: u32| layer + u64::from(page) * *page_bytes as u64;
                        self.device.copy(place(to.0), place(from.0), *page_bytes)?;
                    }
                }
                SlotEvent::Close { slot } => self.slots[slot.index()].next.fill(NextToken::None),
            }
        }
        Ok(())
    }

    /// The tokens of a row, or why it can't run.
    fn resolve(&self, batch: &Batch<'_>, row: &Row) -> Result<Vec<Token>, &'static str> {
        let slot = &self.slots[row.slot.index()];
        let resolve = |token: &InputToken| match (*token, slot.next[batch.program.index()]) {
            (InputToken::Known(token), _) => Ok(token),
            (InputToken::Produced(_), NextToken::Sampled(token)) => Ok(token),
            (_, NextToken::None) => Err("it goes on with a token that was never sampled"),
            (_, NextToken::Failed) => Err("the step that it goes on from failed"),
        };
        batch.tokens[row.tokens.range()].iter().map(resolve).collect()
    }

    /// Runs a batch up to its logits.
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Step, BackendError> {
        let mut failures = Vec::new();
        let mut tokens = Vec::with_capacity(batch.tokens.len());
        for (index, row) in (0..).zip(batch.rows) {
            match self.resolve(batch, row) {
                Ok(row) => tokens.extend(row),
                Err(reason) => {
                    // The row runs on with any token: what it writes is its own.
                    tokens.resize(row.tokens.range().end, 0);
                    self.slots[row.slot.index()].next[batch.program.index()] = NextToken::Failed;
                    failures.push(RowFailure { row: index, reason: reason.to_owned() });
                }
            }
        }
        let signed: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let mut positions = Vec::with_capacity(tokens.len());
        let mut slots = Vec::with_capacity(tokens.len());
        for row in batch.rows {
            positions.extend((row.position..row.kv_len()).map(|position| position as i32));
            slots.extend((0..row.tokens.len).map(|_| row.slot.0 as i32));
        }
        let selected: Vec<i32> = output_rows(batch).map(|row| row.token as i32).collect();

        let loaded = &self.programs[batch.program.index()];
        let inputs = Inputs {
            batch,
            tokens: &signed,
            positions: &positions,
            slots: &slots,
            selected: &selected,
        };
        Forward {
            device: &mut self.device,
            loaded,
            groups: &self.groups,
            page_size: self.bounds.page_size(),
            processors: self.processors,
            step: &mut self.step,
            inputs,
        }
        .run()?;

        let program = &loaded.program;
        let mut logits = vec![0.0f32; selected.len() * program.vocab_size() as usize];
        self.device.read(loaded.value(program.logits()), &mut logits)?;
        let wants_hidden =
            batch.outputs.iter().any(|output| matches!(output.want, Want::Hidden | Want::Pool(_)));
        let mut hidden = Vec::new();
        if wants_hidden {
            let mut bits = vec![0u16; selected.len() * loaded.width(program.hidden())];
            self.device.read(loaded.value(program.hidden()), &mut bits)?;
            hidden.extend(bits.into_iter().map(|bits| widen(bits, self.half)));
        }
        Ok(Step {
            program: batch.program,
            rows: batch.rows.to_vec(),
            outputs: batch.outputs.to_vec(),
            targets: batch.targets.to_vec(),
            tokens,
            logits,
            hidden,
            answers: vec![StepResult::default(); batch.outputs.len()],
            failures,
            waits_for_masks: batch.is_deferred(),
        })
    }

    /// Answers the outputs that wait for masks, or the others, and moves slots on to the tokens that were sampled.
    fn answer(&mut self, step: &mut Step, deferred: bool, masks: &Masks<'_>) {
        let all: usize = step.outputs.iter().map(|output| output.tokens.len as usize).sum();
        let (vocabulary, width) = (step.logits.len() / all.max(1), step.hidden.len() / all.max(1));
        let mut first = 0;
        for (index, output) in (0..).zip(&step.outputs) {
            let run = output.tokens.len as usize;
            let of_run = first..first + run;
            first += run;
            let failed = step.failures.iter().any(|failure| failure.row == output.row);
            if output.deferred != deferred || failed {
                continue;
            }
            let row = &step.rows[output.row as usize];
            let rows = OutputRows {
                output: index,
                request: output,
                tokens: &step.tokens[output.tokens.range()],
                position: row.position + output.tokens.start - row.tokens.start,
                targets: &step.targets,
                logits: &mut step.logits[of_run.start * vocabulary..of_run.end * vocabulary],
                hidden: &step.hidden[of_run.start * width..of_run.end * width],
            };
            let slot = &mut self.slots[row.slot.index()];
            // What a draft samples is a proposal, and not counted.
            let mut drafted = TokenCounts::default();
            let counts = if step.program == ProgramId::default() {
                &mut slot.counts
            } else {
                drafted.clone_from(&slot.counts);
                &mut drafted
            };
            let next = &mut slot.next[step.program.index()];
            let answer = &mut step.answers[index as usize];
            match self.sampler.answer(rows, &slot.sampling, counts, masks, answer) {
                Ok(Some(token)) => *next = NextToken::Sampled(token),
                Ok(None) => {}
                Err(error) => {
                    *next = NextToken::Failed;
                    step.failures.push(error.of_row(output.row));
                }
            }
        }
    }

    fn copy(&mut self, copy: &PageCopy) -> Result<(), BackendError> {
        let (group, ((from_tier, from), (to_tier, to))) =
            (copy.group.index(), (copy.from, copy.to));
        let GroupMemory { layers, page_bytes, .. } = &self.groups[group];
        let place = |layer: &u64, page: u32| layer + u64::from(page) * *page_bytes as u64;
        if (from_tier, to_tier) == (Tier::Host, Tier::Host) {
            let page = self.host[group][from.0 as usize].clone();
            self.host[group][to.0 as usize] = page;
            return Ok(());
        }
        for (index, layer) in layers.iter().enumerate() {
            let within = index * page_bytes..(index + 1) * page_bytes;
            match (from_tier, to_tier) {
                (Tier::Device, Tier::Device) => {
                    self.device.copy(place(layer, to.0), place(layer, from.0), *page_bytes)?;
                }
                (Tier::Device, _) => {
                    let page = &mut self.host[group][to.0 as usize][within];
                    self.device.read(place(layer, from.0), page)?;
                }
                (Tier::Host, _) => self
                    .device
                    .write(place(layer, to.0), &self.host[group][from.0 as usize][within])?,
            }
        }
        Ok(())
    }
}

impl Executor for CudaExecutor {
    fn limits(&self) -> &Limits {
        self.bounds.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        // Kernels don't depend on the shape of a step; they were compiled before the weights were loaded.
        progress.update("ready", 1, 1);
        Ok(())
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        self.tickets.check_alive()?;
        batch.check(&self.bounds).map_err(|error| StepError::Batch { step: batch.step, error })?;
        let step = self.apply_events(batch).and_then(|()| self.forward(batch));
        let mut step = step.map_err(|error| self.lost(&error))?;
        self.answer(&mut step, false, &Masks::default());
        Ok(self.tickets.issue(Work::Step(Box::new(step))))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.tickets.check_alive()?;
        let mut tickets = std::mem::take(&mut self.tickets);
        let sampled = match tickets.get_mut(ticket) {
            Some(Work::Step(step)) if step.waits_for_masks => {
                step.waits_for_masks = false;
                self.answer(step, true, masks);
                Ok(())
            }
            _ => {
                Err(StepError::Unsupported { what: "sampling a step that doesn't wait for masks" })
            }
        };
        self.tickets = tickets;
        sampled
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        _deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        self.tickets.check_alive()?;
        match self.tickets.take(&ticket) {
            Some(Work::Step(step)) if step.waits_for_masks => {
                for output in step.outputs.iter().filter(|output| output.deferred) {
                    let slot = step.rows[output.row as usize].slot;
                    self.slots[slot.index()].next[step.program.index()] = NextToken::None;
                }
                Err(StepError::Unsupported { what: "answers of a step that was not sampled" })
            }
            Some(Work::Step(mut step)) => {
                // A row fails as a whole, once, for its first reason.
                step.failures.sort_by_key(|failure| failure.row);
                step.failures.dedup_by_key(|failure| failure.row);
                for (output, answer) in step.outputs.iter().zip(&step.answers) {
                    if step.failures.iter().all(|failure| failure.row != output.row) {
                        result.append(answer);
                    }
                }
                if step.failures.is_empty() { Ok(()) } else { Err(StepError::Rows(step.failures)) }
            }
            Some(Work::Transfer) => Err(self.tickets.kill("a transfer was waited for as a step")),
            None => Err(self.tickets.kill("a ticket was waited for that isn't out")),
        }
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        self.tickets.check_alive()?;
        check_copies(copies, &self.bounds.limits().pages, &self.host_pages)?;
        for copy in copies {
            if let Err(error) = self.copy(copy) {
                return Err(self.lost(&error));
            }
        }
        Ok(self.tickets.issue(Work::Transfer))
    }

    fn wait_transfer(&mut self, ticket: Ticket, _deadline: Deadline) -> Result<(), StepError> {
        self.tickets.check_alive()?;
        match self.tickets.take(&ticket) {
            Some(Work::Transfer) => Ok(()),
            Some(_) => Err(self.tickets.kill("a step was waited for as a transfer")),
            None => Err(self.tickets.kill("a ticket was waited for that isn't out")),
        }
    }
}
