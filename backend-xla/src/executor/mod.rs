//! The executor: what is resident on the devices, and the launches that change it.
//!
//! A launch uploads one small vector, starts the step and the sampler, starts the copy of the
//! replies to the host, and returns; PJRT orders all of it on the devices. Every array that a
//! launch changes is donated to it, so there is one copy of the KV pages and never two.
//!
//! When a launch fails, what it was given is gone. The executor then reports
//! [`StepError::KvLost`], makes everything anew at the next launch, and reads the page tables from
//! the batch's slots.

mod batch;
mod launch;
#[cfg(test)]
mod mid_run;
#[cfg(test)]
#[path = "../../tests/common/plugin_path.rs"]
mod plugin_path;
mod programs;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::VecDeque;

use backend_api::{
    BackendError, Batch, Deadline, Executor, GroupId, Limits, Mask, Masks, Progress, SlotEvent,
    SlotId, StepError, StepResult, Ticket, program::Program, weights::Weights,
};

use crate::{
    cache::Compiler,
    load::{Sharded, load_weights},
    lower::{
        Geometry,
        placement::Placement,
        state::{PAGES_AT_ONCE, group_arrays},
        step::StepShape,
    },
    pallas::Kernels,
    pjrt::{Completion, ElementType, HostCopy, PjrtError},
};
use batch::{SamplerInput, pack_step};
use launch::{Arguments, LaunchError, Outcome, floats, run, upload, upload_as, words};
use programs::Programs;
use validate::validate;

/// What errors say was being done.
const ALLOCATING: &str = "allocating KV pages";

/// A program on devices, with its KV pages.
#[derive(Debug)]
pub(crate) struct XlaExecutor {
    programs: Programs,
    limits: Limits,
    weights: Vec<Sharded>,
    /// `None` from a failure until the next launch.
    resident: Option<Resident>,
    /// How often the resident arrays were made. Launches of an earlier life have failed with it.
    life: u64,
    in_flight: VecDeque<InFlight>,
    next_ticket: u64,
    dead: Option<String>,
}

/// The arrays that launches read and change.
#[derive(Debug)]
struct Resident {
    kv: Vec<Sharded>,
    tables: Vec<Sharded>,
    next_tokens: Sharded,
    counts: Sharded,
}

/// A launch whose ticket is out.
#[derive(Debug)]
struct InFlight {
    ticket: u64,
    life: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Runs, and wants no outputs.
    Silent(Completion),
    /// Runs, and waits for its masks. What is to be sampled, if anything.
    Deferred { done: Completion, sampling: Option<(Sharded, SamplerInput)> },
    /// Is being sampled; the replies are on their way.
    Sampling { replies: Replies, input: SamplerInput },
}

/// What the sampler says, on its way to the host.
#[derive(Debug)]
struct Replies {
    tokens: HostCopy,
    /// The likeliest tokens, where any output wants them.
    likeliest: Option<HostCopy>,
}

impl XlaExecutor {
    pub(crate) fn new(
        compiler: Compiler,
        program: Program,
        placement: Placement,
        geometry: Geometry,
        kernels: Option<Kernels>,
        limits: Limits,
        weights: &dyn Weights,
    ) -> Result<Self, BackendError> {
        let weights = load_weights(compiler.client(), &program, &placement, weights)?;
        let programs = Programs::new(compiler, program, placement, geometry, kernels, &limits);
        let mut executor = Self {
            programs,
            limits,
            weights,
            resident: None,
            life: 0,
            in_flight: VecDeque::new(),
            next_ticket: 0,
            dead: None,
        };
        let (resident, allocated) = executor.fresh()?;
        // Memory that isn't there may show only now. Later, the step that reads the arrays fails.
        allocated.wait(None).map_err(|error| crate::error::device(error, ALLOCATING))?;
        executor.resident = Some(resident);
        Ok(executor)
    }

    /// Makes the resident arrays, empty. They are there when the completion says so.
    fn fresh(&mut self) -> Result<(Resident, Completion), BackendError> {
        let geometry = self.programs.geometry();
        let groups = geometry.pages.len();
        let arguments = Arguments::new(self.programs.devices());
        let Outcome { mut arrays, done } = run(self.programs.fresh()?, arguments)
            .map_err(|error| crate::error::device(error, ALLOCATING))?;
        let counts = arrays.pop();
        let next_tokens = arrays.pop();
        let tables = arrays.split_off(arrays.len().saturating_sub(groups));
        let (Some(next_tokens), Some(counts)) = (next_tokens, counts) else {
            return Err(BackendError::Device {
                context: ALLOCATING.to_owned(),
                message: "the module returned too few arrays".to_owned(),
            });
        };
        Ok((Resident { kv: arrays, tables, next_tokens, counts }, done))
    }

    /// Takes the resident arrays for a launch, making them anew after a failure.
    fn take_resident(&mut self, batch: &Batch<'_>) -> Result<Resident, StepError> {
        if let Some(resident) = self.resident.take() {
            return self.apply_events(resident, batch).map_err(|error| self.lose(&error));
        }
        self.life += 1;
        let (resident, _) = self.fresh().map_err(|error| self.die(error.to_string()))?;
        self.restore(resident, batch).map_err(|error| self.lose(&error))
    }

    /// Applies what changed in slots, in order.
    fn apply_events(
        &mut self,
        mut resident: Resident,
        batch: &Batch<'_>,
    ) -> Result<Resident, LaunchError> {
        let mut changes = vec![Vec::new(); resident.tables.len()];
        for event in batch.events {
            match *event {
                SlotEvent::Open { slot } => {
                    resident = self.open_slot(resident, slot, batch)?;
                }
                SlotEvent::Pages { slot, group, entries } => {
                    let pages = batch.slots.pages(slot, group);
                    let entries = entries.range().start..entries.range().end.min(pages.len());
                    let start = slot.index() * self.programs.geometry().table_len;
                    changes[usize::from(group.0)]
                        .extend(entries.map(|entry| (start + entry, pages[entry].0)));
                }
                SlotEvent::CopyPage { group, from, to } => {
                    let range = group_arrays(self.programs.program(), group);
                    let devices = self.programs.devices();
                    let executable = self.programs.copy_page(group)?;
                    let bytes = words(&[from.0, to.0]);
                    let client = executable.client().clone();
                    let mut arguments = Arguments::new(devices);
                    for array in resident.kv.splice(range.clone(), []) {
                        arguments.donate(array);
                    }
                    let pages = upload(&client, devices, &[2], &bytes)?;
                    arguments.borrow(&pages);
                    let arrays = run(executable, arguments)?.arrays;
                    resident.kv.splice(range.start..range.start, arrays);
                }
                // What a closed slot holds is never read. Events of later versions of the trait
                // were refused before anything was taken.
                _ => {}
            }
        }
        self.write_tables(resident, changes)
    }

    /// After a loss: page tables and counts of all slots as the batch shows them.
    fn restore(
        &mut self,
        mut resident: Resident,
        batch: &Batch<'_>,
    ) -> Result<Resident, LaunchError> {
        let mut changes = vec![Vec::new(); resident.tables.len()];
        for index in 0..batch.slots.len().min(self.programs.geometry().slots) {
            let slot = SlotId(index as u32);
            for (group, changes) in changes.iter_mut().enumerate() {
                let group = GroupId(group as u8);
                let start = index * self.programs.geometry().table_len;
                let pages = batch.slots.pages(slot, group).iter().enumerate();
                changes.extend(pages.map(|(entry, page)| (start + entry, page.0)));
            }
        }
        for event in batch.events {
            if let SlotEvent::Open { slot } = *event {
                resident = self.open_slot(resident, slot, batch)?;
            }
        }
        self.write_tables(resident, changes)
    }

    /// A sequence moves in: where it has penalties, its tokens are counted.
    fn open_slot(
        &mut self,
        mut resident: Resident,
        slot: SlotId,
        batch: &Batch<'_>,
    ) -> Result<Resident, LaunchError> {
        let sampling = batch.slots.sampling(slot);
        if !sampling.has_penalties() {
            return Ok(resident);
        }
        let vocab_size = self.programs.program().vocab_size() as usize;
        let row = words(&batch::token_counts(sampling, vocab_size));
        let devices = self.programs.devices();
        let executable = self.programs.set_counts()?;
        let client = executable.client().clone();
        let row = upload(&client, devices, &[1, vocab_size as i64], &row)?;
        let slot = upload(&client, devices, &[], &words(&[slot.0]))?;
        let mut arguments = Arguments::new(devices);
        arguments.donate(resident.counts);
        arguments.borrow(&row);
        arguments.borrow(&slot);
        resident.counts = run(executable, arguments)?.only()?;
        Ok(resident)
    }

    /// Writes page table entries: for each group (flat index, page).
    fn write_tables(
        &mut self,
        mut resident: Resident,
        changes: Vec<Vec<(usize, u32)>>,
    ) -> Result<Resident, LaunchError> {
        let devices = self.programs.devices();
        let mut tables = Vec::with_capacity(resident.tables.len());
        for (mut table, changes) in resident.tables.into_iter().zip(changes) {
            for part in changes.chunks(PAGES_AT_ONCE) {
                // Indices that are out of range are dropped.
                let mut packed = vec![i32::MAX as u32; 2 * PAGES_AT_ONCE];
                for (place, &(index, page)) in part.iter().enumerate() {
                    packed[place] = index as u32;
                    packed[PAGES_AT_ONCE + place] = page;
                }
                let executable = self.programs.set_pages()?;
                let client = executable.client().clone();
                let dims = [2, PAGES_AT_ONCE as i64];
                let changes = upload(&client, devices, &dims, &words(&packed))?;
                let mut arguments = Arguments::new(devices);
                arguments.donate(table);
                arguments.borrow(&changes);
                table = run(executable, arguments)?.only()?;
            }
            tables.push(table);
        }
        resident.tables = tables;
        Ok(resident)
    }

    /// Starts the forward pass. Returns the logits and what completes when it has run.
    fn start_step(
        &mut self,
        mut resident: Resident,
        batch: &Batch<'_>,
        shape: StepShape,
    ) -> Result<(Resident, Sharded, Completion), LaunchError> {
        let control = pack_step(batch, shape, self.programs.geometry());
        let devices = self.programs.devices();
        let executable = self.programs.step(shape)?;
        let client = executable.client().clone();
        let control = upload(&client, devices, &[control.len() as i64], &words(&control))?;
        let mut arguments = Arguments::new(devices);
        for weight in &self.weights {
            arguments.borrow(weight);
        }
        for array in resident.kv {
            arguments.donate(array);
        }
        for table in &resident.tables {
            arguments.borrow(table);
        }
        arguments.borrow(&resident.next_tokens);
        arguments.borrow(&control);
        let Outcome { mut arrays, done } = run(executable, arguments)?;
        let logits = arrays.pop().ok_or(LaunchError::Outputs)?;
        resident.kv = arrays;
        Ok((resident, logits, done))
    }

    /// Starts the sampler over a step's logits, and the copy of its replies.
    fn start_sampler(
        &mut self,
        mut resident: Resident,
        logits: Sharded,
        input: &SamplerInput,
        masks: &[Mask<'_>],
    ) -> Result<(Resident, Replies), LaunchError> {
        let devices = self.programs.devices();
        let vocab_size = self.programs.program().vocab_size() as usize;
        let outputs = input.outputs();
        let sampler = self.programs.sampler(outputs)?;
        let client = sampler.executable.client().clone();
        let control = input.control();
        let control = upload(&client, devices, &[control.len() as i64], &words(control))?;
        let bias = match input.bias(vocab_size) {
            Some(bias) => {
                let dims = [outputs as i64, vocab_size as i64];
                Some(upload_as(&client, devices, ElementType::F32, &dims, &floats(&bias))?)
            }
            None => None,
        };
        let mask = match input.mask(vocab_size, masks) {
            Some(mask) => {
                let dims = [outputs as i64, (mask.len() / outputs.max(1)) as i64];
                Some(upload_as(&client, devices, ElementType::U32, &dims, &words(&mask))?)
            }
            None => None,
        };
        let mut arguments = Arguments::new(devices);
        arguments.borrow(&logits);
        arguments.donate(resident.next_tokens);
        arguments.donate(resident.counts);
        arguments.borrow(bias.as_ref().unwrap_or(&sampler.no_bias));
        arguments.borrow(mask.as_ref().unwrap_or(&sampler.no_mask));
        arguments.borrow(&control);
        let mut arrays = run(&sampler.executable, arguments)?.arrays.into_iter();
        let mut next = || arrays.next().ok_or(LaunchError::Outputs);
        resident.next_tokens = next()?;
        resident.counts = next()?;
        let (tokens, likeliest) = (next()?, next()?);
        let copy = |array: &Sharded| match array.first() {
            Some(shard) => Ok(shard.to_host()?),
            None => Err(LaunchError::Outputs),
        };
        let likeliest = match input.wants_likeliest() {
            true => Some(copy(&likeliest)?),
            false => None,
        };
        Ok((resident, Replies { tokens: copy(&tokens)?, likeliest }))
    }

    /// Samples what is to be sampled, and puts the resident arrays back.
    fn answer(
        &mut self,
        resident: Resident,
        done: Completion,
        sampling: Option<(Sharded, SamplerInput)>,
        masks: &[Mask<'_>],
    ) -> Result<Stage, StepError> {
        let Some((logits, input)) = sampling else {
            self.resident = Some(resident);
            return Ok(Stage::Silent(done));
        };
        let sampled = self.start_sampler(resident, logits, &input, masks);
        let (resident, replies) = sampled.map_err(|error| self.lose(&error))?;
        self.resident = Some(resident);
        Ok(Stage::Sampling { replies, input })
    }

    /// A launch failed, and what it was given is gone.
    fn lose(&mut self, error: &LaunchError) -> StepError {
        self.resident = None;
        StepError::KvLost { reason: error.to_string() }
    }

    fn die(&mut self, reason: String) -> StepError {
        self.dead = Some(reason.clone());
        self.resident = None;
        StepError::Dead { reason }
    }

    fn check_alive(&self) -> Result<(), StepError> {
        match &self.dead {
            Some(reason) => Err(StepError::Dead { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// A launch that was under way failed on the device, or did not end in time.
    fn failed(&mut self, error: PjrtError, life: u64) -> StepError {
        if matches!(error, PjrtError::Timeout { .. }) {
            return self.die(error.to_string());
        }
        if life == self.life {
            self.resident = None;
        }
        StepError::KvLost { reason: error.to_string() }
    }
}

impl Executor for XlaExecutor {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        self.programs.warm_up(progress)
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        self.check_alive()?;
        let vocab_size = self.programs.program().vocab_size();
        validate(batch, &self.limits, self.programs.geometry(), vocab_size)?;
        let shape = self.programs.buckets().choose(batch);
        let shape = shape.ok_or(StepError::Unsupported { what: "a batch beyond its limits" })?;
        let resident = self.take_resident(batch)?;
        let step = self.start_step(resident, batch, shape);
        let (resident, logits, done) = step.map_err(|error| self.lose(&error))?;
        let sampling = (!batch.outputs.is_empty())
            .then(|| (logits, SamplerInput::new(batch, shape.outputs, self.programs.geometry())));
        let stage = if batch.defer_sampling {
            self.resident = Some(resident);
            Stage::Deferred { done, sampling }
        } else {
            self.answer(resident, done, sampling, &[])?
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.in_flight.push_back(InFlight { ticket, life: self.life, stage });
        Ok(Ticket::new(ticket))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.check_alive()?;
        let number = ticket.number();
        let position = self.in_flight.iter().position(|launch| launch.ticket == number);
        let launch = position.and_then(|position| self.in_flight.remove(position));
        let not_deferred = StepError::Unsupported { what: "sampling a step that isn't deferred" };
        let (Some(position), Some(InFlight { ticket, life, stage })) = (position, launch) else {
            return Err(not_deferred);
        };
        let Stage::Deferred { done, sampling } = stage else {
            self.in_flight.insert(position, InFlight { ticket, life, stage });
            return Err(not_deferred);
        };
        let resident = match self.resident.take() {
            Some(resident) if life == self.life => resident,
            // Those of a later life are not this step's to lose.
            resident => {
                self.resident = resident;
                return Err(StepError::KvLost { reason: "an earlier launch failed".to_owned() });
            }
        };
        let stage = self.answer(resident, done, sampling, masks.entries)?;
        self.in_flight.insert(position, InFlight { ticket, life, stage });
        Ok(())
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        self.check_alive()?;
        let number = ticket.number();
        let position = self.in_flight.iter().position(|launch| launch.ticket == number);
        let launch = position.and_then(|position| self.in_flight.remove(position));
        let Some(InFlight { life, stage, .. }) = launch else {
            return Err(StepError::KvLost { reason: "the launch failed before".to_owned() });
        };
        let deadline = deadline.instant();
        match stage {
            Stage::Silent(done) => done.wait(deadline).map_err(|error| self.failed(error, life)),
            Stage::Deferred { done, .. } => {
                done.wait(deadline).map_err(|error| self.failed(error, life))?;
                Err(StepError::Unsupported { what: "answers of a step that was not sampled" })
            }
            Stage::Sampling { replies, input } => {
                let Replies { tokens, likeliest } = replies;
                let tokens = tokens.wait(deadline).map_err(|error| self.failed(error, life))?;
                let likeliest = likeliest.map(|copy| copy.wait(deadline)).transpose();
                let likeliest = likeliest.map_err(|error| self.failed(error, life))?;
                let vocab_size = self.programs.program().vocab_size() as usize;
                let likeliest = likeliest.as_deref().unwrap_or_default();
                input.read_replies(&tokens, likeliest, vocab_size, result)
            }
        }
    }

    fn compiles_in_traffic(&self) -> u64 {
        self.programs.compiles_in_traffic()
    }
}
