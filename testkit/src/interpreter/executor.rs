//! Steps, one row after the other, finished before `launch` returns.

use engine_core::backend::kit::{Tickets, check_copies};
use engine_core::backend::sample::{OutputRows, OutputSampler, TokenCounts};
use engine_core::backend::{
    BackendError, Batch, BatchBounds, Deadline, Executor, GroupId, Limits, Masks, OutputRequest,
    PageCopy, ProgramId, Progress, Row, RowFailure, SlotEvent, StepError, StepResult, Ticket, Tier,
    Token,
};

use super::kv::PagedKv;
use super::model::{Model, RowInput, RowValues};
use super::slots::{NextToken, Slot};

/// Models with KV memory and slots.
#[derive(Debug)]
pub(super) struct Interpreting {
    /// By program.
    pub(super) models: Vec<Model>,
    pub(super) bounds: BatchBounds,
    /// By group.
    pub(super) device: Vec<PagedKv>,
    /// By group; empty where there is no host tier.
    pub(super) host: Vec<PagedKv>,
    pub(super) host_pages: Vec<u32>,
    pub(super) slots: Vec<Slot>,
    pub(super) sampler: OutputSampler,
    /// What was started and not waited for, in order.
    pub(super) started: Tickets<Started>,
}

/// What a ticket stands for.
#[derive(Debug)]
pub(super) enum Started {
    Step(Forward),
    Transfer,
}

/// A step up to its logits, and the answers so far.
#[derive(Debug)]
pub(super) struct Forward {
    program: ProgramId,
    rows: Vec<Row>,
    outputs: Vec<OutputRequest>,
    targets: Vec<Token>,
    /// By row: its tokens and the values of its output rows, or why there are none.
    values: Vec<Result<(Vec<Token>, RowValues), String>>,
    /// By output.
    answers: Vec<StepResult>,
    failures: Vec<RowFailure>,
    waits_for_masks: bool,
}

impl Executor for Interpreting {
    fn limits(&self) -> &Limits {
        self.bounds.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        progress.update("ready", 1, 1);
        Ok(())
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        batch.check(&self.bounds).map_err(|error| StepError::Batch { step: batch.step, error })?;
        self.apply_events(batch);
        let mut forward = self.forward(batch);
        self.answer(&mut forward, false, &Masks::default());
        Ok(self.started.issue(Started::Step(forward)))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        let mut started = std::mem::take(&mut self.started);
        let sampled = match started.get_mut(ticket) {
            Some(Started::Step(forward)) if forward.waits_for_masks => {
                forward.waits_for_masks = false;
                self.answer(forward, true, masks);
                Ok(())
            }
            Some(_) => Err(StepError::Unsupported { what: "sampling what doesn't wait for masks" }),
            None => Err(StepError::Unsupported { what: "sampling a step that isn't out" }),
        };
        self.started = started;
        sampled
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        _deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        match self.started.take(&ticket) {
            // Its sampling can't come any more, as the caller waits here.
            Some(Started::Step(forward)) if forward.waits_for_masks => {
                for output in forward.outputs.iter().filter(|output| output.deferred) {
                    let slot = forward.rows[output.row as usize].slot;
                    self.slots[slot.index()].next[forward.program.index()] = NextToken::None;
                }
                Err(StepError::Unsupported { what: "answers of a step that was not sampled" })
            }
            Some(Started::Step(mut forward)) => {
                // A row fails as a whole, once, for its first reason.
                forward.failures.sort_by_key(|failure| failure.row);
                forward.failures.dedup_by_key(|failure| failure.row);
                let failures = forward.failures;
                for (output, answer) in forward.outputs.iter().zip(&forward.answers) {
                    if failures.iter().all(|failure| failure.row != output.row) {
                        result.append(answer);
                    }
                }
                if failures.is_empty() { Ok(()) } else { Err(StepError::Rows(failures)) }
            }
            Some(Started::Transfer) => Err(dead("a transfer was waited for as a step")),
            None => Err(dead("a ticket was waited for that isn't out")),
        }
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        check_copies(copies, &self.bounds.limits().pages, &self.host_pages)?;
        for copy in copies {
            let group = copy.group.index();
            let (device, host) = (&mut self.device[group], &mut self.host[group]);
            let ((from_tier, from), (to_tier, to)) = (copy.from, copy.to);
            match (from_tier, to_tier) {
                (Tier::Device, Tier::Device) => device.copy_page(from, to),
                (Tier::Device, Tier::Host) => host.copy_page_from(device, from, to),
                (Tier::Host, Tier::Device) => device.copy_page_from(host, from, to),
                (Tier::Host, Tier::Host) => host.copy_page(from, to),
            }
        }
        Ok(self.started.issue(Started::Transfer))
    }

    fn wait_transfer(&mut self, ticket: Ticket, _deadline: Deadline) -> Result<(), StepError> {
        match self.started.take(&ticket) {
            Some(Started::Transfer) => Ok(()),
            Some(_) => Err(dead("a step was waited for as a transfer")),
            None => Err(dead("a ticket was waited for that isn't out")),
        }
    }
}

impl Interpreting {
    fn apply_events(&mut self, batch: &Batch<'_>) {
        for event in batch.events {
            match *event {
                SlotEvent::Open { slot } => {
                    self.slots[slot.index()].open(batch.slots.sampling(slot));
                }
                SlotEvent::Pages { slot, group, entries } => {
                    let announced = batch.slots.pages(slot, group);
                    let slot = &mut self.slots[slot.index()];
                    slot.set_pages(group.index(), entries.range(), announced);
                }
                SlotEvent::CopyPage { group, from, to } => {
                    self.device[group.index()].copy_page(from, to);
                }
                SlotEvent::Close { slot } => {
                    self.slots[slot.index()].next.fill(NextToken::None);
                }
            }
        }
    }

    /// Runs each row by itself. So no row can depend on another, however wrong it is.
    fn forward(&mut self, batch: &Batch<'_>) -> Forward {
        let rows = (0..).zip(batch.rows);
        let values: Vec<_> = rows.map(|(index, row)| self.forward_row(batch, index, row)).collect();
        let mut failures = Vec::new();
        for (row, values) in (0..).zip(&values) {
            if let Err(reason) = values {
                failures.push(RowFailure { row, reason: reason.clone() });
                let slot = &mut self.slots[batch.rows[row as usize].slot.index()];
                slot.next[batch.program.index()] = NextToken::Failed;
            }
        }
        Forward {
            program: batch.program,
            rows: batch.rows.to_vec(),
            outputs: batch.outputs.to_vec(),
            targets: batch.targets.to_vec(),
            values,
            answers: vec![StepResult::default(); batch.outputs.len()],
            failures,
            waits_for_masks: batch.is_deferred(),
        }
    }

    fn forward_row(
        &mut self,
        batch: &Batch<'_>,
        index: u32,
        row: &Row,
    ) -> Result<(Vec<Token>, RowValues), String> {
        let model = &self.models[batch.program.index()];
        let slot = &self.slots[row.slot.index()];
        let groups = (0..).zip(model.program().groups()).map(|(group, page_group)| {
            let group = self.bounds.group(batch.program, GroupId(group));
            (group.index(), page_group.window)
        });
        let groups: Vec<_> = groups.collect();
        let tokens = slot.resolve_row(batch, row, &groups, &self.bounds)?;
        let outputs = batch.outputs.iter().filter(|output| output.row == index);
        let outputs: Vec<usize> = outputs
            .flat_map(|output| output.tokens.range())
            .map(|token| token - row.tokens.start as usize)
            .collect();
        let tables: Vec<_> = groups.iter().map(|&(group, _)| &slot.tables[group][..]).collect();
        let input = RowInput {
            tokens: &tokens,
            position: row.position as usize,
            outputs: &outputs,
            tables: &tables,
        };
        let first = groups.first().map_or(0, |&(group, _)| group);
        let values = model.run(&input, &mut self.device[first..first + groups.len()]);
        Ok((tokens, values))
    }

    /// Answers the outputs that wait for masks, or the others, and moves slots on to the tokens
    /// that were sampled.
    fn answer(&mut self, forward: &mut Forward, deferred: bool, masks: &Masks<'_>) {
        let mut first_of_row = vec![0; forward.rows.len()];
        for (index, output) in (0..).zip(&forward.outputs) {
            let row = &forward.rows[output.row as usize];
            let run = output.tokens.len as usize;
            let first = first_of_row[output.row as usize];
            first_of_row[output.row as usize] += run;
            let Ok((tokens, values)) = &mut forward.values[output.row as usize] else { continue };
            if output.deferred != deferred {
                continue;
            }
            let start = output.tokens.start - row.tokens.start;
            let rows = OutputRows {
                output: index,
                request: output,
                tokens: &tokens[start as usize..start as usize + run],
                position: row.position + start,
                targets: &forward.targets,
                logits: values.logits.rows_mut(first..first + run),
                hidden: values.hidden.rows_of(first..first + run),
            };
            let slot = &mut self.slots[row.slot.index()];
            let next = &mut slot.next[forward.program.index()];
            let answer = &mut forward.answers[index as usize];
            // What a draft samples is a proposal, and not counted.
            let mut drafted = TokenCounts::default();
            let counts = if forward.program == ProgramId::default() {
                &mut slot.counts
            } else {
                drafted.clone_from(&slot.counts);
                &mut drafted
            };
            match self.sampler.answer(rows, &slot.sampling, counts, masks, answer) {
                Ok(Some(token)) => *next = NextToken::Sampled(token),
                Ok(None) => {}
                Err(error) => {
                    *next = NextToken::Failed;
                    forward.failures.push(error.of_row(output.row));
                }
            }
        }
    }
}

fn dead(reason: &str) -> StepError {
    StepError::Dead { reason: reason.to_owned() }
}
