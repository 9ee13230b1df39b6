//! The two traits: a device that compiles, and compiled programs that run.

use crate::program::Program;
use crate::weights::Weights;
use crate::{
    BackendError, Batch, Capabilities, CompileOptions, Deadline, Limits, Masks, PageCopy,
    StepError, StepResult, Ticket,
};

/// A device, or several that act as one.
pub trait Backend: Send + Sync {
    /// What the device has and what the backend promises on it.
    fn capabilities(&self) -> Capabilities;

    /// Turns programs that share slots, pages and an order of execution into one executor.
    ///
    /// Weights are read (and repacked where the backend likes) before this returns; `weights`
    /// is not needed afterwards. Today an engine passes one program; a draft model for
    /// speculation will be a second.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, has another shape than the program says or a format that the
    /// backend can't read; limits or KV memory that the device can't hold.
    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError>;
}

/// Compiled programs together with the KV memory that they read and write.
///
/// Used by one thread at a time. Dropping it releases the device's memory; steps in flight are
/// finished or abandoned first.
pub trait Executor: Send {
    /// The largest step that it takes. Never changes.
    fn limits(&self) -> &Limits;

    /// Prepares every shape that traffic can bring: compiles, captures, touches memory.
    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError>;

    /// Starts a step and returns.
    ///
    /// Applies `batch.events` in order, runs the forward pass over `batch.rows`, writes the KV
    /// of every new token, and, unless `batch.defer_sampling`, samples the requested outputs
    /// and makes each sampled token the slot's next token.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Executor::wait). After an error no ticket exists.
    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError>;

    /// Completes a step that was launched with `defer_sampling`: samples its outputs under
    /// `masks`. Outputs without a mask are sampled freely. Returns at once, as `launch` does.
    ///
    /// # Errors
    ///
    /// [`StepError::Unsupported`] for a step that isn't out, wasn't deferred or is sampled already;
    /// nothing happened then. Otherwise as for [`wait`](Executor::wait), and the ticket must still
    /// be waited for.
    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError>;

    /// Blocks until the step has finished or the deadline has passed, and fills `result`
    /// (cleared first, its memory reused).
    ///
    /// Tickets are awaited in the order of their launches. A deferred step that nobody sampled is
    /// given up: its tokens' KV is written, its outputs have no answers, and its slots no next
    /// token. Nothing blocks for its masks, and later steps are unharmed.
    ///
    /// # Errors
    ///
    /// [`StepError::Unsupported`] for a deferred step that was not sampled; `result` is empty.
    /// [`StepError::Rows`]: `result` holds the outputs of the other rows.
    /// [`StepError::KvLost`], [`StepError::Dead`]: `result` is empty. A passed deadline is
    /// `Dead`: the device can't be trusted any more.
    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError>;

    /// Starts copies of whole pages between tiers and returns. They are ordered with launches.
    ///
    /// Until the ticket has been waited for, no launch writes a page that a copy reads, and none
    /// reads or writes a page that a copy fills; so the copies of one call may run in any order.
    ///
    /// # Errors
    ///
    /// [`StepError::Unsupported`] where the executor was compiled without a host tier, others as
    /// for [`wait_transfer`](Executor::wait_transfer). After an error no ticket exists.
    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        let _ = copies;
        Err(StepError::Unsupported { what: "transfers between tiers" })
    }

    /// Blocks until the transfer has finished or the deadline has passed. Tickets of steps and
    /// transfers are awaited in the order in which they were given out.
    ///
    /// # Errors
    ///
    /// [`StepError::TransferFailed`], or as for [`wait`](Executor::wait): [`StepError::KvLost`],
    /// [`StepError::Dead`].
    fn wait_transfer(&mut self, ticket: Ticket, deadline: Deadline) -> Result<(), StepError> {
        let _ = (ticket, deadline);
        Err(StepError::Unsupported { what: "transfers between tiers" })
    }

    /// Shapes that were compiled or captured after [`warm_up`](Executor::warm_up). Stays at 0
    /// in a healthy engine.
    fn compiles_in_traffic(&self) -> u64 {
        0
    }
}

/// Told how far a long preparation has come.
pub trait Progress {
    /// `done` of `total` units of `what` are finished.
    fn update(&mut self, what: &str, done: u64, total: u64);
}

/// Ignores progress.
impl Progress for () {
    fn update(&mut self, _what: &str, _done: u64, _total: u64) {}
}
