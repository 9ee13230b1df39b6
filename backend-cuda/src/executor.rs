//! Compiled programs with their KV memory.
//!
//! A launch queues a step and the copy of what it gives back on the device's stream, and returns. Where all outputs of a step
//! are single tokens and nothing but tokens is wanted ([`sampling`](crate::sampling)), the device samples them and keeps
//! each as its slot's next token: the next launch needs no token on the host, and up to two steps are under way. Other
//! steps give back their logits, which are sampled on the host as [`OutputSampler`] defines it, and the next launch waits.
//!
//! Waiting ends at the caller's deadline in `wait`. Launches, `sample` and `transfer` are given none: they wait for
//! [`CudaOptions::longest_step`](crate::CudaOptions::longest_step). A step that is not done by then ends the executor.

use std::collections::VecDeque;
use std::time::Duration;

use backend_api::kit::{Tickets, check_copies, output_rows};
use backend_api::sample::OutputSampler;
use backend_api::{
    BackendError, Batch, BatchBounds, Deadline, Executor, Limits, Masks, PageCopy, Progress,
    RowFailure, SlotEvent, StepError, StepResult, Ticket, Tier, Want,
};

use crate::blas::Blas;
use crate::device::Device;
use crate::forward::{Forward, GroupMemory, Inputs, StepInput};
use crate::load::{LoadedProgram, widen};
use crate::read_back::ReadBack;
use crate::sampling;
use crate::slot::{NextToken, Slot};
use crate::step::{Step, StepTokens};

/// Steps that may be under way at once: an engine has two tickets out at most.
const UNDER_WAY: usize = 2;

/// What a ticket stands for.
#[derive(Debug)]
enum Work {
    Step(Box<Step>),
    Transfer,
}

/// What holds for all programs of an executor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Activations in f16; otherwise in bfloat16.
    pub(crate) half: bool,
    pub(crate) processors: u32,
    /// Compute capability, major and minor.
    pub(crate) capability: (u32, u32),
    pub(crate) longest_step: Duration,
}

/// What was compiled, and its memory on the device.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) blas: Option<Blas>,
    pub(crate) device: Device,
    pub(crate) read_backs: [ReadBack; UNDER_WAY],
    /// See [`CudaExecutor::next_tokens`].
    pub(crate) next_tokens: u64,
    pub(crate) programs: Vec<LoadedProgram>,
    pub(crate) groups: Vec<GroupMemory>,
}

/// The executor.
#[derive(Debug)]
pub(crate) struct CudaExecutor {
    /// In front of the device: it waits for the copies that the device makes.
    read_backs: [ReadBack; UNDER_WAY],
    blas: Option<Blas>,
    pub(crate) device: Device,
    pub(crate) programs: Vec<LoadedProgram>,
    pub(crate) groups: Vec<GroupMemory>,
    pub(crate) bounds: BatchBounds,
    pub(crate) settings: Settings,
    /// By group and page of the host tier: the page of each layer, one after another.
    pub(crate) host: Vec<Vec<Vec<u8>>>,
    pub(crate) host_pages: Vec<u32>,
    pub(crate) slots: Vec<Slot>,
    tickets: Tickets<Work>,
    /// Steps that are under way, in their order: their tickets' numbers, and which of the read-backs they use.
    under_way: VecDeque<(u64, usize)>,
    /// By program and slot: the next tokens that the device sampled.
    next_tokens: u64,
    step: StepInput,
    sampler: OutputSampler,
}

impl CudaExecutor {
    pub(crate) fn new(
        compiled: Compiled,
        bounds: BatchBounds,
        settings: Settings,
        host_pages: Vec<u32>,
    ) -> Self {
        let Compiled { blas, device, read_backs, next_tokens, programs, groups } = compiled;
        let slots = vec![Slot::new(programs.len()); bounds.limits().slots as usize];
        let host = host_pages
            .iter()
            .zip(&groups)
            .map(|(&pages, group)| {
                vec![vec![0; group.page_bytes * group.layers.len()]; pages as usize]
            })
            .collect();
        Self {
            read_backs,
            blas,
            device,
            programs,
            groups,
            bounds,
            settings,
            host,
            host_pages,
            slots,
            tickets: Tickets::default(),
            under_way: VecDeque::new(),
            next_tokens,
            step: StepInput::default(),
            sampler: OutputSampler::default(),
        }
    }

    /// The device's trouble: nothing on it can be trusted any more.
    fn lost(&mut self, error: &BackendError) -> StepError {
        self.tickets.kill(error.to_string())
    }

    /// Why a batch was not launched. For want of memory it is given up, and the device is as it was: rows write KV of their own.
    fn not_launched(&mut self, batch: &Batch<'_>, error: &BackendError) -> StepError {
        if !matches!(error, BackendError::Memory { .. }) {
            return self.lost(error);
        }
        let reason = error.to_string();
        for row in batch.rows {
            self.slots[row.slot.index()].next[batch.program.index()] = NextToken::Failed;
        }
        let rows = 0..batch.rows.len() as u32;
        StepError::Rows(rows.map(|row| RowFailure { row, reason: reason.clone() }).collect())
    }

    /// Waits for steps that are under way, until at most `left` of them are.
    fn finish(&mut self, left: usize, deadline: Deadline) -> Result<(), StepError> {
        while self.under_way.len() > left {
            let Some((number, place)) = self.under_way.pop_front() else { break };
            match self.read_backs[place].wait(deadline) {
                Ok(true) => {}
                Ok(false) => return Err(self.tickets.kill("a step was not done by its deadline")),
                Err(error) => return Err(self.lost(&error)),
            }
            if let Err(error) = self.read(number, place) {
                return Err(self.lost(&error));
            }
        }
        Ok(())
    }

    /// Takes over what a step gave back, and answers what waits for no masks.
    fn read(&mut self, number: u64, place: usize) -> Result<(), BackendError> {
        let Some(Work::Step(step)) = self.tickets.get_mut(&Ticket::new(number)) else {
            return Ok(());
        };
        let [first, hidden] = step.counts;
        step.follow(&self.slots);
        let read_back = &self.read_backs[place];
        if step.on_device {
            let tokens: Vec<i32> = read_back.numbers(0, first)?;
            step.take(number, &tokens, &mut self.slots);
            return Ok(());
        }
        step.logits = read_back.numbers(0, first)?;
        let bits: Vec<u16> = read_back.numbers(first * size_of::<f32>(), hidden)?;
        step.hidden = bits.into_iter().map(|bits| widen(bits, self.settings.half)).collect();
        step.answer(&mut self.sampler, &mut self.slots, false, &Masks::default());
        Ok(())
    }

    /// How many of the steps that are under way may stay so when another is launched: it takes a read-back, and slots may
    /// go on with tokens that the host has yet to sample.
    fn may_stay(&mut self) -> usize {
        let Some(&(last, _)) = self.under_way.back() else { return 0 };
        match self.tickets.get_mut(&Ticket::new(last)) {
            Some(Work::Step(step)) if step.on_device => UNDER_WAY - 1,
            _ => 0,
        }
    }

    /// When a step must be done that something without a deadline waits for.
    fn latest(&self) -> Deadline {
        Deadline::after(self.settings.longest_step)
    }

    fn apply_events(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        for event in batch.events {
            match *event {
                SlotEvent::Open { slot } => {
                    self.slots[slot.index()].open(batch.slots.sampling(slot));
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
                SlotEvent::Close { slot } => self.slots[slot.index()].close(),
            }
        }
        Ok(())
    }

    /// Queues a batch up to the copy of what it gives back.
    fn forward(&mut self, batch: &Batch<'_>, place: usize) -> Result<Step, BackendError> {
        let tokens = StepTokens::resolve(batch, &mut self.slots);
        let count = tokens.input.len();
        let mut positions = Vec::with_capacity(count);
        let mut slots = Vec::with_capacity(count);
        for row in batch.rows {
            positions.extend((row.position..row.kv_len()).map(|position| position as i32));
            slots.extend((0..row.tokens.len).map(|_| row.slot.0 as i32));
        }
        let selected: Vec<i32> = output_rows(batch).map(|row| row.token as i32).collect();

        let loaded = &self.programs[batch.program.index()];
        let slot_bytes = self.slots.len() * size_of::<i32>();
        let next = self.next_tokens + (batch.program.index() * slot_bytes) as u64;
        let parameters = sampling::parameters(batch, &self.slots);
        let inputs = Inputs {
            batch,
            tokens: &tokens.input,
            next,
            parameters: parameters.as_deref(),
            positions: &positions,
            slots: &slots,
            selected: &selected,
        };
        let sampled = Forward {
            device: &mut self.device,
            blas: self.blas.as_mut(),
            loaded,
            groups: &self.groups,
            page_size: self.bounds.page_size(),
            processors: self.settings.processors,
            capability: self.settings.capability,
            step: &mut self.step,
            inputs,
        }
        .run()?;

        let mut step = Step::new(batch, tokens, sampled.is_some());
        let program = &loaded.program;
        let pieces = if let Some(tokens) = sampled {
            step.counts = [selected.len(), 0];
            [(tokens, size_of_val(&*selected)), (0, 0)]
        } else {
            let wants = |want| matches!(want, Want::Hidden | Want::Pool(_));
            let wants_hidden = batch.outputs.iter().any(|output| wants(output.want));
            let hidden_width = if wants_hidden { loaded.width(program.hidden()) } else { 0 };
            step.counts = [program.vocab_size() as usize, hidden_width].map(|n| n * selected.len());
            [
                (loaded.value(program.logits()), step.counts[0] * size_of::<f32>()),
                (loaded.value(program.hidden()), step.counts[1] * size_of::<u16>()),
            ]
        };
        self.read_backs[place].queue(&self.device, &pieces)?;
        Ok(step)
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
        // Kernels don't depend on the shape of a step; they were compiled before the weights were loaded. What cuBLASLt
        // needs for a number of rows is found when a step first has it.
        progress.update("ready", 1, 1);
        Ok(())
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        self.tickets.check_alive()?;
        batch.check(&self.bounds).map_err(|error| StepError::Batch { step: batch.step, error })?;
        let left = self.may_stay();
        self.finish(left, self.latest())?;
        let used = self.under_way.back().map(|&(_, place)| place);
        let place = used.map_or(0, |place| (place + 1) % UNDER_WAY);
        let step = self.apply_events(batch).and_then(|()| self.forward(batch, place));
        let step = step.map_err(|error| self.not_launched(batch, &error))?;
        let on_device = step.on_device;
        let ticket = self.tickets.issue(Work::Step(Box::new(step)));
        self.under_way.push_back((ticket.number(), place));
        // Until the masks are there, nothing goes on with the token before.
        for output in batch.outputs.iter().filter(|output| output.deferred) {
            let slot = &mut self.slots[batch.rows[output.row as usize].slot.index()];
            let next = &mut slot.next[batch.program.index()];
            if *next != NextToken::Failed {
                *next = NextToken::None;
            }
        }
        if on_device {
            for output in batch.outputs {
                let slot = &mut self.slots[batch.rows[output.row as usize].slot.index()];
                slot.next[batch.program.index()] = NextToken::OnDevice(ticket.number());
            }
        }
        Ok(ticket)
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.tickets.check_alive()?;
        self.finish(0, self.latest())?;
        match self.tickets.get_mut(ticket) {
            Some(Work::Step(step)) if step.waits_for_masks => {
                step.waits_for_masks = false;
                step.answer(&mut self.sampler, &mut self.slots, true, masks);
                Ok(())
            }
            _ => {
                Err(StepError::Unsupported { what: "sampling a step that doesn't wait for masks" })
            }
        }
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        self.tickets.check_alive()?;
        let numbers = self.under_way.iter().map(|&(number, _)| number);
        if let Some(index) = numbers.into_iter().position(|number| number == ticket.number()) {
            self.finish(self.under_way.len() - index - 1, deadline)?;
        }
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
        // Copies to the host tier wait for what is queued before.
        self.finish(0, self.latest())?;
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
