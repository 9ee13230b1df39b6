//! Runs steps on a driver thread.
//!
//! `launch` copies the batch and returns; the driver takes steps, sampling and transfers in
//! the order of the calls. The token that a step samples for a slot stays with the driver, so
//! that the next step, which may be waiting already, can go on with it before anybody has read
//! it.

mod compile;
mod driver;
mod experts;
mod forward;
mod machine;
mod owned_batch;
mod sampling;
mod weights;

use std::{
    collections::VecDeque,
    thread::{self, JoinHandle},
};

use backend_api::{
    BackendError, Batch, BatchBounds, Deadline, Executor, Limits, Masks, PageCopy, Progress,
    StepError, StepResult, Ticket, Tier,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

pub(crate) use self::{
    compile::{Compiled, compile},
    driver::{Driver, KvMemory},
    forward::Workers,
    machine::Machine,
    weights::LoadedWeights,
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
    /// Finished, but not yet waited for.
    arrived: VecDeque<Done>,
    /// Steps that wait for their masks.
    deferred: Vec<u64>,
    /// Steps whose memory can be used again.
    #[expect(clippy::vec_box, reason = "they cross the channels as boxes")]
    spare: Vec<Box<OwnedBatch>>,
    next_number: u64,
    dead: Option<String>,
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
            arrived: VecDeque::new(),
            deferred: Vec::new(),
            spare: Vec::new(),
            next_number: 0,
            dead: None,
        })
    }

    fn check_alive(&self) -> Result<(), StepError> {
        match &self.dead {
            Some(reason) => Err(StepError::Dead { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn send(&mut self, command: Command) -> Result<(), StepError> {
        let sent = self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok());
        if sent { Ok(()) } else { Err(self.die("the driver thread has ended")) }
    }

    fn die(&mut self, reason: &str) -> StepError {
        let reason = self.dead.get_or_insert_with(|| reason.to_owned()).clone();
        StepError::Dead { reason }
    }

    fn ticket(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Blocks until the driver reports `number`.
    fn wait_for(&mut self, number: u64, deadline: Deadline) -> Result<Done, StepError> {
        self.check_alive()?;
        loop {
            if let Some(index) = self.arrived.iter().position(|done| done.number() == number)
                && let Some(done) = self.arrived.remove(index)
            {
                return Ok(done);
            }
            let received = match deadline.instant() {
                Some(instant) => self.done.recv_deadline(instant),
                None => self.done.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(done) => self.arrived.push_back(done),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.die("a step did not finish before its deadline"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.die("the driver thread has ended"));
                }
            }
        }
    }

    /// Whether the step waited for its masks until now.
    fn forget_deferred(&mut self, number: u64) -> bool {
        let place = self.deferred.iter().position(|&deferred| deferred == number);
        place.map(|place| self.deferred.swap_remove(place)).is_some()
    }

    fn has_page(&self, copy: &PageCopy, tier: Tier, page: backend_api::PageId) -> bool {
        let pages = match tier {
            Tier::Device => &self.bounds.limits().pages,
            Tier::Host => &self.host_pages,
        };
        pages.get(usize::from(copy.group.0)).is_some_and(|pages| page.0 < *pages)
    }
}

impl Executor for CpuExecutor {
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
        self.check_alive()?;
        let mut owned = self.spare.pop().unwrap_or_default();
        let number = self.ticket();
        if let Err(refusal) = owned.fill(number, batch, &self.bounds, &self.groups) {
            self.spare.push(owned);
            return Err(refusal);
        }
        self.send(Command::Step(owned))?;
        if batch.is_deferred() {
            self.deferred.push(number);
        }
        Ok(Ticket::new(number))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.check_alive()?;
        if !self.forget_deferred(ticket.number()) {
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
        self.check_alive()?;
        let number = ticket.number();
        if self.forget_deferred(number) {
            self.send(Command::GiveUp { number })?;
        }
        match self.wait_for(number, deadline)? {
            Done::Step { mut batch, outcome } => {
                std::mem::swap(result, &mut batch.result);
                self.spare.push(batch);
                if let Err(StepError::Dead { reason }) = &outcome {
                    self.dead = Some(reason.clone());
                }
                outcome
            }
            Done::Transfer { .. } => {
                Err(self.die("a transfer's ticket was waited for as a step's"))
            }
        }
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        self.check_alive()?;
        if self.host_pages.is_empty() {
            return Err(StepError::Unsupported { what: "transfers without a host tier" });
        }
        let known = copies.iter().all(|copy| {
            self.has_page(copy, copy.from.0, copy.from.1)
                && self.has_page(copy, copy.to.0, copy.to.1)
        });
        if !known {
            return Err(StepError::Unsupported { what: "transfers of pages that don't exist" });
        }
        let number = self.ticket();
        self.send(Command::Transfer { number, copies: copies.to_vec() })?;
        Ok(Ticket::new(number))
    }

    fn wait_transfer(&mut self, ticket: Ticket, deadline: Deadline) -> Result<(), StepError> {
        match self.wait_for(ticket.number(), deadline)? {
            Done::Transfer { .. } => Ok(()),
            Done::Step { .. } => Err(self.die("a step's ticket was waited for as a transfer's")),
        }
    }
}

impl Drop for CpuExecutor {
    fn drop(&mut self) {
        // The driver ends when its commands do.
        self.commands = None;
        if let Some(driver) = self.driver.take()
            && self.dead.is_none()
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
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}
