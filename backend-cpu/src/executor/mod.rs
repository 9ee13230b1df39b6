//! Runs steps on a driver thread.
//!
//! `launch` copies the batch and returns; the driver takes steps, sampling and transfers in
//! the order of the calls. The token that a step samples for a slot stays with the driver, so
//! that the next step, which may be waiting already, can go on with it before anybody has read
//! it.

mod attention;
mod compile;
mod driver;
mod experts;
mod forward;
mod machine;
mod owned_batch;
mod sampling;
mod step_memory;
mod weights;

use std::thread::{self, JoinHandle};

use backend_api::kit::{Tickets, check_copies};
use backend_api::{
    BackendError, Batch, BatchBounds, Deadline, Executor, Footprint, Limits, Masks, PageCopy,
    Progress, StepError, StepResult, Ticket,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

pub(crate) use self::{
    compile::{Compiled, compile},
    driver::{Driver, KvMemory},
    forward::Workers,
    machine::Machine,
    weights::{LoadedWeights, WeightPlaces, loaded_bytes},
};
use self::{
    driver::{Command, Done, OwnedMask},
    owned_batch::OwnedBatch,
};

/// What errors call this backend.
pub(crate) const BACKEND: &str = "cpu";

/// The executor: the half of it that callers see.
pub(crate) struct CpuExecutor {
    bounds: BatchBounds,
    /// By program: how many page groups it has.
    groups: Vec<usize>,
    /// Pages of the host tier, by group.
    host_pages: Vec<u32>,
    commands: Option<Sender<Command>>,
    done: Receiver<Done>,
    driver: Option<JoinHandle<()>>,
    tickets: Tickets<Work>,
    /// Steps whose memory can be used again.
    #[expect(clippy::vec_box, reason = "they cross the channels as boxes")]
    spare: Vec<Box<OwnedBatch>>,
    footprint: Option<Footprint>,
}

/// What a ticket stands for.
#[derive(Debug)]
enum Work {
    /// The driver has it.
    Running,
    /// The driver has it, and its sampling waits for masks.
    Deferred,
    /// Finished, but not yet waited for.
    Done(Done),
}

impl CpuExecutor {
    /// Starts the driver thread.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub(crate) fn start(
        name: &str,
        driver: Driver,
        bounds: BatchBounds,
        groups: Vec<usize>,
        host_pages: Vec<u32>,
    ) -> Result<Self, BackendError> {
        let (commands, inbox) = unbounded();
        let (outbox, done) = unbounded();
        let driver = thread::Builder::new()
            .name(format!("{name}-0"))
            .spawn(move || driver.serve(&inbox, &outbox))
            .map_err(|error| BackendError::Device {
                context: "starting the driver thread".to_owned(),
                message: error.to_string(),
            })?;
        Ok(Self {
            bounds,
            groups,
            host_pages,
            commands: Some(commands),
            done,
            driver: Some(driver),
            tickets: Tickets::default(),
            spare: Vec::new(),
            footprint: None,
        })
    }

    /// The same executor, whose memory was counted.
    pub(crate) fn with_footprint(mut self, footprint: Footprint) -> Self {
        self.footprint = Some(footprint);
        self
    }

    fn send(&mut self, command: Command) -> Result<(), StepError> {
        let sent = self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok());
        if sent { Ok(()) } else { Err(self.tickets.kill("the driver thread has ended")) }
    }

    /// Blocks until the driver reports the ticket's work.
    fn wait_for(&mut self, ticket: &Ticket, deadline: Deadline) -> Result<Done, StepError> {
        self.tickets.check_alive()?;
        while let Some(Work::Running | Work::Deferred) = self.tickets.get_mut(ticket) {
            let received = match deadline.instant() {
                Some(instant) => self.done.recv_deadline(instant),
                None => self.done.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(done) => {
                    if let Some(work) = self.tickets.get_mut(&Ticket::new(done.number())) {
                        *work = Work::Done(done);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.tickets.kill("a step did not finish before its deadline"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.tickets.kill("the driver thread has ended"));
                }
            }
        }
        match self.tickets.take(ticket) {
            Some(Work::Done(done)) => Ok(done),
            _ => Err(self.tickets.kill("a ticket was waited for that isn't out")),
        }
    }

    /// Whether the step waited for its masks until now.
    fn forget_deferred(&mut self, ticket: &Ticket) -> bool {
        match self.tickets.get_mut(ticket) {
            Some(work @ Work::Deferred) => {
                *work = Work::Running;
                true
            }
            _ => false,
        }
    }
}

impl Executor for CpuExecutor {
    fn footprint(&self) -> Option<Footprint> {
        self.footprint
    }

    fn limits(&self) -> &Limits {
        self.bounds.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        // Nothing here depends on a shape. Memory is touched when it is first used, so that a
        // large KV pool costs what is used of it.
        progress.update("ready", 1, 1);
        Ok(())
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        self.tickets.check_alive()?;
        let mut owned = self.spare.pop().unwrap_or_default();
        let work = if batch.is_deferred() { Work::Deferred } else { Work::Running };
        let ticket = self.tickets.issue(work);
        if let Err(refusal) = owned.fill(ticket.number(), batch, &self.bounds, &self.groups) {
            self.tickets.take(&ticket);
            self.spare.push(owned);
            return Err(refusal);
        }
        self.send(Command::Step(owned))?;
        Ok(ticket)
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.tickets.check_alive()?;
        if !self.forget_deferred(ticket) {
            return Err(StepError::Unsupported { what: "sampling a step that isn't deferred" });
        }
        let masks = masks
            .entries
            .iter()
            .map(|mask| OwnedMask {
                output: mask.output,
                index: mask.index,
                allowed: mask.allowed.to_vec(),
            })
            .collect();
        self.send(Command::Sample { number: ticket.number(), masks })
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        self.tickets.check_alive()?;
        if self.forget_deferred(&ticket) {
            self.send(Command::GiveUp { number: ticket.number() })?;
        }
        match self.wait_for(&ticket, deadline)? {
            Done::Step { mut batch, outcome } => {
                std::mem::swap(result, &mut batch.result);
                self.spare.push(batch);
                if let Err(StepError::Dead { reason }) = &outcome {
                    self.tickets.kill(reason);
                }
                outcome
            }
            Done::Transfer { .. } => {
                Err(self.tickets.kill("a transfer's ticket was waited for as a step's"))
            }
        }
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        self.tickets.check_alive()?;
        check_copies(copies, &self.bounds.limits().pages, &self.host_pages)?;
        let ticket = self.tickets.issue(Work::Running);
        self.send(Command::Transfer { number: ticket.number(), copies: copies.to_vec() })?;
        Ok(ticket)
    }

    fn wait_transfer(&mut self, ticket: Ticket, deadline: Deadline) -> Result<(), StepError> {
        match self.wait_for(&ticket, deadline)? {
            Done::Transfer { .. } => Ok(()),
            Done::Step { .. } => {
                Err(self.tickets.kill("a step's ticket was waited for as a transfer's"))
            }
        }
    }
}

impl Drop for CpuExecutor {
    fn drop(&mut self) {
        // The driver ends when its commands do.
        self.commands = None;
        if let Some(driver) = self.driver.take()
            && self.tickets.check_alive().is_ok()
        {
            // It catches its kernels' panics; a panic of its own was reported as a dead device.
            let _ = driver.join();
        }
    }
}

impl std::fmt::Debug for CpuExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuExecutor")
            .field("bounds", &self.bounds)
            .field("tickets", &self.tickets)
            .finish_non_exhaustive()
    }
}
