//! Makes an executor fail at chosen moments, the way devices do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use engine_core::backend::{
    Backend, BackendError, Batch, Capabilities, CompileOptions, Compute, Deadline, Executor,
    Limits, Masks, PageCopy, Progress, RowFailure, StepError, StepResult, Ticket,
};
use engine_core::model::Program;
use engine_core::weights::{Format, Weights};

/// What goes wrong with a step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// One row fails alone: this one, counted round.
    Row(u32),
    /// The step fails and takes the KV memory with it.
    KvLost,
    /// The launch fails at once and takes the KV memory with it.
    LaunchFails,
    /// The device is gone.
    Dead,
    /// The device doesn't answer until the deadline has passed. Without a deadline it is
    /// reported as dead at once, so that no test hangs.
    Hang,
}

/// What goes wrong with a transfer between the tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransferFault {
    /// It can't be started.
    Refused,
    /// It fails, and copies nothing.
    Fails,
    /// It takes the KV memory with it.
    KvLost,
    /// The device is gone.
    Dead,
}

/// An executor that fails as a list says, and otherwise does what the one inside does.
///
/// The one inside sees every launch, also one that is reported as failed: what the caller believes
/// to be resident in slots stays so.
pub struct Faults<E> {
    inner: E,
    faults: BTreeMap<u64, Fault>,
    transfer_faults: BTreeMap<u64, TransferFault>,
    in_flight: VecDeque<InFlight>,
    /// Tickets of transfers that the executor inside never saw.
    failing: BTreeSet<u64>,
    transfers: u64,
    lose_kv: fn(&mut E),
    is_dead: bool,
    strikes: u64,
}

/// A step or transfer that the executor inside has been given.
#[derive(Debug)]
struct InFlight {
    /// A transfer has a number of its own here.
    number: u64,
    rows: u32,
    /// Row of each output.
    outputs: Vec<u32>,
    ticket: Ticket,
    /// The caller was told that the launch failed and won't wait for it.
    is_hidden: bool,
}

impl<E: Executor> Faults<E> {
    /// Faults by the number of the step that they strike.
    pub fn new(inner: E, faults: impl IntoIterator<Item = (u64, Fault)>) -> Self {
        Self {
            inner,
            faults: faults.into_iter().collect(),
            transfer_faults: BTreeMap::new(),
            in_flight: VecDeque::new(),
            failing: BTreeSet::new(),
            transfers: 0,
            lose_kv: |_| {},
            is_dead: false,
            strikes: 0,
        }
    }

    /// Faults of transfers, by their number from 0, counting those that were refused.
    #[must_use]
    pub fn with_transfer_faults(
        mut self,
        faults: impl IntoIterator<Item = (u64, TransferFault)>,
    ) -> Self {
        self.transfer_faults = faults.into_iter().collect();
        self
    }

    /// Says how the executor inside forgets its KV.
    #[must_use]
    pub fn on_kv_lost(mut self, lose_kv: fn(&mut E)) -> Self {
        self.lose_kv = lose_kv;
        self
    }

    /// The executor inside.
    pub fn inner(&self) -> &E {
        &self.inner
    }

    /// The executor inside.
    pub fn inner_mut(&mut self) -> &mut E {
        &mut self.inner
    }

    /// How many faults have struck.
    pub fn strikes(&self) -> u64 {
        self.strikes
    }

    fn check_alive(&self) -> Result<(), StepError> {
        if self.is_dead { Err(dead("it was lost before")) } else { Ok(()) }
    }

    /// What a ticket stands for, after those before it that the caller doesn't know of.
    fn take(&mut self, ticket: &Ticket) -> Result<InFlight, StepError> {
        let mut unread = StepResult::default();
        while let Some(step) = self.in_flight.pop_front() {
            if !step.is_hidden {
                if step.ticket == *ticket {
                    return Ok(step);
                }
                break;
            }
            // It was reported as failed, so what becomes of it is nobody's concern.
            let _ = self.inner.wait(step.ticket, Deadline::NEVER, &mut unread);
        }
        Err(dead("a ticket was waited for out of order"))
    }
}

impl<E: Executor> Executor for Faults<E> {
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        self.inner.warm_up(progress)
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        self.check_alive()?;
        let ticket = self.inner.launch(batch)?;
        let is_hidden = self.faults.get(&batch.step) == Some(&Fault::LaunchFails);
        self.in_flight.push_back(InFlight {
            number: batch.step,
            rows: batch.rows.len() as u32,
            outputs: batch.outputs.iter().map(|output| output.row).collect(),
            ticket: Ticket::new(ticket.number()),
            is_hidden,
        });
        if is_hidden {
            self.strikes += 1;
            (self.lose_kv)(&mut self.inner);
            return Err(StepError::KvLost { reason: "the launch failed".into() });
        }
        Ok(ticket)
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.check_alive()?;
        self.inner.sample(ticket, masks)
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        self.check_alive()?;
        let InFlight { number, rows, outputs, .. } = self.take(&ticket)?;
        let fault = self.faults.remove(&number);
        self.strikes += u64::from(fault.is_some());
        match fault {
            None | Some(Fault::LaunchFails) => self.inner.wait(ticket, deadline, result),
            Some(Fault::Row(row)) => {
                self.inner.wait(ticket, deadline, result)?;
                let row = row % rows.max(1);
                result.outputs.retain(|result| outputs.get(result.output as usize) != Some(&row));
                let reason = "the row was struck".into();
                Err(StepError::Rows(vec![RowFailure { row, reason }]))
            }
            Some(Fault::KvLost) => {
                (self.lose_kv)(&mut self.inner);
                let waited = self.inner.wait(ticket, deadline, result);
                result.clear();
                match waited {
                    Err(error @ StepError::Dead { .. }) => Err(error),
                    _ => Err(StepError::KvLost { reason: "the memory was struck".into() }),
                }
            }
            Some(Fault::Dead) => {
                self.is_dead = true;
                Err(dead("it was struck"))
            }
            Some(Fault::Hang) => {
                self.is_dead = true;
                if let Some(instant) = deadline.instant() {
                    std::thread::sleep(
                        instant.saturating_duration_since(std::time::Instant::now()),
                    );
                }
                Err(dead("it did not answer before the deadline"))
            }
        }
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        self.check_alive()?;
        let number = self.transfers;
        self.transfers += 1;
        match self.transfer_faults.get(&number) {
            Some(TransferFault::Refused) => {
                self.strikes += 1;
                return Err(failed("it was refused"));
            }
            Some(TransferFault::Fails) => {
                // Far from the numbers that the executor inside gives out.
                let ticket = u64::MAX - number;
                self.failing.insert(ticket);
                return Ok(Ticket::new(ticket));
            }
            _ => {}
        }
        let ticket = self.inner.transfer(copies)?;
        self.in_flight.push_back(InFlight {
            number,
            rows: 0,
            outputs: Vec::new(),
            ticket: Ticket::new(ticket.number()),
            is_hidden: false,
        });
        Ok(ticket)
    }

    fn wait_transfer(&mut self, ticket: Ticket, deadline: Deadline) -> Result<(), StepError> {
        self.check_alive()?;
        if self.failing.remove(&ticket.number()) {
            self.strikes += 1;
            return Err(failed("it was struck"));
        }
        let InFlight { number, .. } = self.take(&ticket)?;
        match self.transfer_faults.remove(&number) {
            Some(TransferFault::KvLost) => {
                self.strikes += 1;
                (self.lose_kv)(&mut self.inner);
                match self.inner.wait_transfer(ticket, deadline) {
                    Err(error @ StepError::Dead { .. }) => Err(error),
                    _ => Err(StepError::KvLost { reason: "a transfer struck the memory".into() }),
                }
            }
            Some(TransferFault::Dead) => {
                self.strikes += 1;
                self.is_dead = true;
                Err(dead("a transfer struck it"))
            }
            _ => self.inner.wait_transfer(ticket, deadline),
        }
    }

    fn compiles_in_traffic(&self) -> u64 {
        self.inner.compiles_in_traffic()
    }
}

impl<E: fmt::Debug> fmt::Debug for Faults<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("inner", &self.inner)
            .field("faults", &self.faults)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// A backend whose executors fail as a list says, or that can't compile at all.
#[derive(Clone, Debug)]
pub struct FaultyBackend<B> {
    inner: B,
    faults: Vec<(u64, Fault)>,
    transfer_faults: Vec<(u64, TransferFault)>,
    out_of_memory: bool,
}

impl<B: Backend> FaultyBackend<B> {
    /// Faults by the number of the step that they strike, the same for each executor.
    pub fn new(inner: B, faults: impl IntoIterator<Item = (u64, Fault)>) -> Self {
        let (faults, transfer_faults) = (faults.into_iter().collect(), Vec::new());
        Self { inner, faults, transfer_faults, out_of_memory: false }
    }

    /// Faults of transfers, by their number, the same for each executor.
    #[must_use]
    pub fn with_transfer_faults(
        mut self,
        faults: impl IntoIterator<Item = (u64, TransferFault)>,
    ) -> Self {
        self.transfer_faults = faults.into_iter().collect();
        self
    }

    /// A backend on a device that is too small for anything.
    pub fn out_of_memory(inner: B) -> Self {
        Self { out_of_memory: true, ..Self::new(inner, []) }
    }
}

impl<B: Backend> Backend for FaultyBackend<B> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn compute_of(&self, compute: Compute, format: Format, inputs: usize) -> Compute {
        self.inner.compute_of(compute, format, inputs)
    }

    fn weight_bytes(
        &self,
        program: &Program,
        weights: &dyn Weights,
        compute: Compute,
    ) -> Result<u64, BackendError> {
        self.inner.weight_bytes(program, weights, compute)
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        if self.out_of_memory {
            return Err(BackendError::Memory {
                what: "the KV memory".into(),
                needed: options.limits.pages.iter().map(|&pages| u64::from(pages)).sum(),
                available: 0,
            });
        }
        let inner = self.inner.compile(programs, weights, options)?;
        let faults = Faults::new(Boxed(inner), self.faults.iter().cloned());
        Ok(Box::new(faults.with_transfer_faults(self.transfer_faults.iter().copied())))
    }
}

/// Lets a boxed executor stand where an executor is needed.
struct Boxed(Box<dyn Executor>);

impl Executor for Boxed {
    fn limits(&self) -> &Limits {
        self.0.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        self.0.warm_up(progress)
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        self.0.launch(batch)
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.0.sample(ticket, masks)
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        self.0.wait(ticket, deadline, result)
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        self.0.transfer(copies)
    }

    fn wait_transfer(&mut self, ticket: Ticket, deadline: Deadline) -> Result<(), StepError> {
        self.0.wait_transfer(ticket, deadline)
    }

    fn compiles_in_traffic(&self) -> u64 {
        self.0.compiles_in_traffic()
    }
}

fn failed(reason: &str) -> StepError {
    StepError::TransferFailed { reason: reason.to_owned() }
}

fn dead(reason: &str) -> StepError {
    StepError::Dead { reason: reason.to_owned() }
}
