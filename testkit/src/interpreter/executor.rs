//! Steps, one row after the other, finished before `launch` returns.

use std::collections::VecDeque;

use engine_core::backend::{
    BackendError, Batch, Deadline, Executor, Limits, Mask, Masks, OutputRequest, PageCopy,
    Progress, Row, RowFailure, SlotEvent, StepError, StepResult, Ticket, Tier, Want,
};
use engine_core::sample::{RowSample, RowSampler, SampleError};

use super::kv::PagedKv;
use super::matrix::Matrix;
use super::model::{Model, RowInput};
use super::slots::{NextToken, Slot, find_malformed};

/// A model with KV memory and slots.
#[derive(Debug)]
pub(super) struct Interpreting {
    pub(super) model: Model,
    pub(super) limits: Limits,
    pub(super) page_size: u32,
    /// By group.
    pub(super) device: Vec<PagedKv>,
    /// By group; empty where there is no host tier.
    pub(super) host: Vec<PagedKv>,
    pub(super) host_pages: Vec<u32>,
    pub(super) slots: Vec<Slot>,
    pub(super) sampler: RowSampler,
    /// What was started and not waited for, in order.
    pub(super) started: VecDeque<(u64, Started)>,
    pub(super) last_ticket: u64,
}

/// What a ticket stands for.
#[derive(Debug)]
pub(super) enum Started {
    Deferred(Forward),
    Finished(StepResult, Result<(), StepError>),
    Transfer,
}

/// A step up to its logits.
#[derive(Debug)]
pub(super) struct Forward {
    rows: Vec<Row>,
    outputs: Vec<OutputRequest>,
    /// By row: `[outputs of the row, vocab_size]`, or why there are none.
    logits: Vec<Result<Matrix, String>>,
}

impl Executor for Interpreting {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        progress.update("ready", 1, 1);
        Ok(())
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        if let Some(what) = find_malformed(batch, &self.limits) {
            return Err(StepError::Unsupported { what });
        }
        self.apply_events(batch);
        let forward = self.forward(batch);
        let started = if batch.defer_sampling {
            Started::Deferred(forward)
        } else {
            self.finish(forward, &Masks::default())
        };
        Ok(self.start(started))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        let place = self.started.iter().position(|(number, _)| *number == ticket.number());
        let deferred = place.and_then(|place| self.started.remove(place).map(|step| (place, step)));
        match deferred {
            Some((place, (number, Started::Deferred(forward)))) => {
                let finished = self.finish(forward, masks);
                self.started.insert(place, (number, finished));
                Ok(())
            }
            Some((place, other)) => {
                self.started.insert(place, other);
                Err(StepError::Unsupported { what: "sampling a step twice" })
            }
            None => Err(StepError::Unsupported { what: "sampling a step that isn't out" }),
        }
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        _deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        match self.retire(&ticket) {
            Some(Started::Finished(finished, outcome)) => {
                *result = finished;
                outcome
            }
            // Its sampling can't come any more, as the caller waits here.
            Some(Started::Deferred(forward)) => {
                for output in forward.outputs.iter().filter(|output| output.want == Want::Sample) {
                    let slot = forward.rows[output.row as usize].slot;
                    self.slots[slot.index()].next = NextToken::None;
                }
                Err(StepError::Unsupported { what: "answers of a step that was not sampled" })
            }
            Some(Started::Transfer) => Err(dead("a transfer was waited for as a step")),
            None => Err(dead("a ticket was waited for that isn't out")),
        }
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        if self.host.is_empty() {
            return Err(StepError::Unsupported { what: "transfers without a host tier" });
        }
        let known = |copy: &PageCopy, (tier, page): (Tier, engine_core::PageId)| {
            let pages = match tier {
                Tier::Device => &self.limits.pages,
                _ => &self.host_pages,
            };
            pages.get(usize::from(copy.group.0)).is_some_and(|&pages| page.0 < pages)
        };
        if !copies.iter().all(|copy| known(copy, copy.from) && known(copy, copy.to)) {
            return Err(StepError::Unsupported { what: "transfers of pages that don't exist" });
        }
        for copy in copies {
            let group = usize::from(copy.group.0);
            let (device, host) = (&mut self.device[group], &mut self.host[group]);
            let ((from_tier, from), (to_tier, to)) = (copy.from, copy.to);
            match (from_tier, to_tier) {
                (Tier::Device, Tier::Device) => device.copy_page(from, to),
                (Tier::Device, _) => host.copy_page_from(device, from, to),
                (_, Tier::Device) => device.copy_page_from(host, from, to),
                _ => host.copy_page(from, to),
            }
        }
        Ok(self.start(Started::Transfer))
    }

    fn wait_transfer(&mut self, ticket: Ticket, _deadline: Deadline) -> Result<(), StepError> {
        match self.retire(&ticket) {
            Some(Started::Transfer) => Ok(()),
            Some(_) => Err(dead("a step was waited for as a transfer")),
            None => Err(dead("a ticket was waited for that isn't out")),
        }
    }
}

impl Interpreting {
    fn start(&mut self, started: Started) -> Ticket {
        self.last_ticket += 1;
        self.started.push_back((self.last_ticket, started));
        Ticket::new(self.last_ticket)
    }

    fn retire(&mut self, ticket: &Ticket) -> Option<Started> {
        let place = self.started.iter().position(|(number, _)| *number == ticket.number())?;
        self.started.remove(place).map(|(_, started)| started)
    }

    fn apply_events(&mut self, batch: &Batch<'_>) {
        for event in batch.events {
            match *event {
                SlotEvent::Open { slot } => {
                    self.slots[slot.index()].open(batch.slots.sampling(slot));
                }
                SlotEvent::Pages { slot, group, entries } => {
                    let announced = batch.slots.pages(slot, group);
                    let (slot, group) = (&mut self.slots[slot.index()], usize::from(group.0));
                    slot.set_pages(group, entries.range(), announced);
                }
                SlotEvent::CopyPage { group, from, to } => {
                    self.device[usize::from(group.0)].copy_page(from, to);
                }
                SlotEvent::Close { slot } => {
                    self.slots[slot.index()].next = NextToken::None;
                }
            }
        }
    }

    /// Runs each row by itself. So no row can depend on another, however wrong it is.
    fn forward(&mut self, batch: &Batch<'_>) -> Forward {
        let rows = (0..).zip(batch.rows);
        let logits = rows.map(|(index, row)| self.forward_row(batch, index, row)).collect();
        Forward { rows: batch.rows.to_vec(), outputs: batch.outputs.to_vec(), logits }
    }

    fn forward_row(&mut self, batch: &Batch<'_>, index: u32, row: &Row) -> Result<Matrix, String> {
        let program = self.model.program();
        let windows: Vec<_> = program.groups().iter().map(|group| group.window).collect();
        let slot = &self.slots[row.slot.index()];
        let tokens = slot.resolve_row(
            row,
            &batch.tokens[row.tokens.range()],
            program.vocab_size(),
            self.page_size,
            &windows,
            &self.limits.pages,
        )?;
        let outputs = batch.outputs.iter().filter(|output| output.row == index);
        let outputs: Vec<usize> =
            outputs.map(|output| (output.token - row.tokens.start) as usize).collect();
        let input = RowInput {
            tokens: &tokens,
            position: row.position as usize,
            outputs: &outputs,
            tables: &slot.tables,
        };
        Ok(self.model.run(&input, &mut self.device))
    }

    /// Answers all outputs of a step, and moves slots on to the tokens that were sampled.
    fn finish(&mut self, mut forward: Forward, masks: &Masks<'_>) -> Started {
        let mut failures: Vec<RowFailure> = Vec::new();
        for (row, logits) in (0..).zip(&forward.logits) {
            if let Err(reason) = logits {
                failures.push(RowFailure { row, reason: reason.clone() });
            }
        }
        let mut result = StepResult::default();
        let mut answered_of_row = vec![0; forward.rows.len()];
        for (index, output) in (0..).zip(&forward.outputs) {
            let row = output.row as usize;
            let Ok(logits) = &mut forward.logits[row] else { continue };
            let logits = logits.row_mut(answered_of_row[row]);
            answered_of_row[row] += 1;
            let mask = masks.entries.iter().find(|mask| mask.output == index);
            match self.answer(output, &forward.rows[row], logits, mask, &mut result) {
                Ok(sample) => result.sampled.push(sample.answer(index)),
                Err(error) => failures.push(error.of_row(output.row)),
            }
        }
        for failure in &failures {
            let slot = forward.rows[failure.row as usize].slot;
            self.slots[slot.index()].next = NextToken::Failed;
        }
        // A row fails as a whole, once, for its first reason.
        failures.sort_by_key(|failure| failure.row);
        failures.dedup_by_key(|failure| failure.row);
        let row_of = |output: u32| forward.outputs[output as usize].row;
        result
            .sampled
            .retain(|sampled| failures.iter().all(|failure| failure.row != row_of(sampled.output)));
        let outcome = if failures.is_empty() { Ok(()) } else { Err(StepError::Rows(failures)) };
        Started::Finished(result, outcome)
    }

    fn answer(
        &mut self,
        output: &OutputRequest,
        row: &Row,
        logits: &mut [f32],
        mask: Option<&Mask<'_>>,
        result: &mut StepResult,
    ) -> Result<RowSample, SampleError> {
        let slot = &mut self.slots[row.slot.index()];
        match output.want {
            Want::Score { token, top } => self.sampler.score(logits, token, top, &mut result.top),
            // Sampling, the only other wish there is.
            _ => {
                // Of the token that is about to be: one after the token it follows.
                let position = row.position + (output.token - row.tokens.start) + 1;
                let sampled = self.sampler.sample(
                    logits,
                    &slot.sampling,
                    &slot.counts,
                    position,
                    mask,
                    &mut result.top,
                )?;
                slot.record(sampled.token);
                Ok(sampled)
            }
        }
    }
}

fn dead(reason: &str) -> StepError {
    StepError::Dead { reason: reason.to_owned() }
}
