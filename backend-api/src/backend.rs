//! The two traits: a device that compiles, and compiled programs that run.

use crate::program::Program;
use crate::weights::{Format, Weights, WeightsError};
use crate::{
    BackendError, Batch, Capabilities, CompileOptions, Compute, Deadline, Footprint, GroupId,
    KvFormat, Limits, Masks, PageCopy, StepError, StepResult, Ticket, kit,
};

/// A device, or several that act as one.
pub trait Backend: Send + Sync {
    /// What the device has and what the backend promises on it.
    fn capabilities(&self) -> Capabilities;

    /// In what precision products with a matrix in `format`, of `inputs` columns, are computed where
    /// `compute` is asked for: never [`Compute::Auto`]. By default what [`Compute::of`] says; a backend
    /// without a kernel for the format in that precision says what it computes in instead.
    fn compute_of(&self, compute: Compute, format: Format, inputs: usize) -> Compute {
        let _ = inputs;
        compute.of(format, &self.capabilities().fast_computes)
    }

    /// Bytes that a page of a program's group takes on the device, over all its layers.
    fn page_bytes(
        &self,
        program: &Program,
        group: GroupId,
        page_size: u32,
        format: KvFormat,
    ) -> u64 {
        format.bytes(program.kv_elements(group).saturating_mul(page_size.into()))
    }

    /// Bytes that a program's weights take on the device, for products in a precision; by default
    /// those that they are stored in.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or can't be read.
    fn weight_bytes(
        &self,
        program: &Program,
        weights: &dyn Weights,
        compute: Compute,
    ) -> Result<u64, BackendError> {
        let _ = compute;
        program.weights().iter().try_fold(0u64, |sum, weight| {
            let (format, shape) = weights.describe(&weight.name)?;
            let inconsistent = |source| WeightsError::Tensor { name: weight.name.clone(), source };
            Ok(sum.saturating_add(shape.byte_len(format).map_err(inconsistent)? as u64))
        })
    }

    /// Bytes of the values between and inside operations, for the largest step of `options`: by
    /// default those between them alone, in f32, each in a place of its own until it is not needed any
    /// more.
    fn activation_bytes(&self, program: &Program, options: &CompileOptions) -> u64 {
        kit::activation_bytes(program, &options.limits)
    }

    /// What [`compile`](Self::compile) will take of the device's memory, found from the descriptions of
    /// the weights.
    ///
    /// # Errors
    ///
    /// As for [`weight_bytes`](Self::weight_bytes).
    fn footprint(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Footprint, BackendError> {
        let kv = kit::kv_bytes(self, programs, &options.limits.pages, options);
        let mut all = Footprint::new(0, kv, 0);
        for program in programs {
            all.weights =
                all.weights.saturating_add(self.weight_bytes(program, weights, options.compute)?);
            let activations = self.activation_bytes(program, options);
            all.activations = all.activations.saturating_add(activations);
        }
        Ok(all)
    }

    /// Turns programs (a target, then drafts; at least one) into one executor. The programs share
    /// slots, sampling state and the order of execution. Each has page groups of its own, which
    /// follow each other in `options.limits.pages`, and a next token of its own in each slot. Tokens
    /// that the target samples are counted for penalties; those of drafts are proposals.
    ///
    /// Weights are read (and repacked where the backend likes) before this returns; `weights`
    /// is not needed afterwards.
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
    /// of every new token, answers the requested outputs that are not deferred, and makes the last
    /// token of each sampled or verified output the slot's next token.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Executor::wait). After an error no ticket exists.
    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError>;

    /// Completes a step that has deferred outputs: samples those outputs under `masks`, and freely
    /// where no mask is given. Returns at once, as `launch` does.
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
    /// Tickets are awaited in the order of their launches. A step whose deferred outputs were never
    /// sampled is given up: the KV of its tokens is written, its outputs have no answers, and the
    /// slots of the deferred outputs no next token. Nothing blocks for the masks, and later steps
    /// are unharmed.
    ///
    /// # Errors
    ///
    /// [`StepError::Unsupported`] for a step whose deferred outputs were not sampled; `result` is
    /// empty.
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

    /// What it took of the device's memory; `None` where nobody counts.
    fn footprint(&self) -> Option<Footprint> {
        None
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

/// A closure that takes what is done, how much of it, and how much there is.
impl<F: FnMut(&str, u64, u64)> Progress for F {
    fn update(&mut self, what: &str, done: u64, total: u64) {
        self(what, done, total);
    }
}

/// Ignores progress.
impl Progress for () {
    fn update(&mut self, _what: &str, _done: u64, _total: u64) {}
}
