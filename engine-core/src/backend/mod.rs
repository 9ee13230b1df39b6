//! What the engine asks of a device.
//!
//! A [`Backend`] is a device, or a mesh of them that acts as one. It *compiles* a
//! [`Program`] with its weights into an [`Executor`], which owns the KV memory and runs
//! steps. Nothing above this module knows what a device is; nothing below it knows what a
//! request, a prompt or a prefix cache is.
//!
//! # The contract in five rules
//!
//! 1. **The core owns page numbers, the backend owns bytes.** A batch names pages; what a page
//!    looks like in memory is the backend's affair.
//! 2. **Launches and transfers take effect in the order of the calls.** A page freed by the
//!    core may be handed to any *later* launch while an earlier one still reads it.
//! 3. **`launch` returns at once.** It may block only for as long as it takes to hand the step
//!    over. What it borrows ([`Batch`]) is valid during the call and not longer.
//! 4. **Slots are resident.** A batch says what *changed* in each slot since the last launch
//!    ([`SlotEvent`]), and lends the full state ([`Slots`]) to backends that live on the host.
//! 5. **A step never exceeds [`Limits`].** So every shape can be prepared in
//!    [`Executor::warm_up`]; whatever is prepared later is counted by
//!    [`Executor::compiles_in_traffic`].
//!
//! `docs/backends.md` walks a mixed step, a grammar-constrained row and a fork through three
//! backends.

mod batch;
mod outcome;
mod slots;

use std::fmt;
use std::time::{Duration, Instant};

pub use batch::{
    Batch, GroupId, InputToken, Mask, Masks, OutputRequest, Row, SharedPrefix, SlotEvent, Span,
    Want,
};
pub use outcome::{RowFailure, Sampled, StepError, StepResult};
pub use slots::{SlotId, SlotSampling, Slots};

use crate::model::{Program, ProgramError};
use crate::weights::{Format, Weights, WeightsError};
use radix_cache::PageId;

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

/// What a device has and what its backend promises.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// For people: `cpu (avx2, 2 threads)`.
    pub description: String,
    /// Bytes that weights and KV may use together.
    pub memory_bytes: u64,
    /// Bytes that a host tier may use; 0 where there is none.
    pub host_memory_bytes: u64,
    /// Page sizes that it takes, in tokens, ascending. Never empty.
    pub page_sizes: Vec<u32>,
    /// Formats in which it can hold KV, preferred first. Never empty.
    pub kv_formats: Vec<Format>,
    /// A row's result does not depend on what else is in the batch, nor on how its prompt was
    /// chunked or cached.
    pub batch_invariant: bool,
}

impl Capabilities {
    /// Capabilities of a backend that takes page sizes 1 to 512 and f32 KV; adjust the fields.
    pub fn new(description: impl Into<String>, memory_bytes: u64) -> Self {
        Self {
            description: description.into(),
            memory_bytes,
            host_memory_bytes: 0,
            page_sizes: (0..=9).map(|power| 1 << power).collect(),
            kv_formats: vec![Format::F32],
            batch_invariant: false,
        }
    }
}

/// What the engine decided before compiling: the sizes of everything.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CompileOptions {
    /// The largest step; `limits.pages` is the KV capacity in pages for each page group.
    pub limits: Limits,
    /// Tokens in a page.
    pub page_size: u32,
    /// The longest sequence, in tokens.
    pub context_length: u32,
    /// How KV is stored.
    pub kv_format: Format,
    /// Pages of the host tier for each page group; empty where there is none.
    pub host_pages: Vec<u32>,
    /// Give up speed for results that don't depend on the batch, where the backend doesn't
    /// promise that anyway.
    pub deterministic: bool,
}

impl CompileOptions {
    /// Options with f32 KV and no host tier.
    pub fn new(limits: Limits, page_size: u32, context_length: u32) -> Self {
        Self {
            limits,
            page_size,
            context_length,
            kv_format: Format::F32,
            host_pages: Vec::new(),
            deterministic: false,
        }
    }
}

/// The largest step that an executor takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows in a batch.
    pub rows: u32,
    /// New tokens in a batch, over all rows.
    pub tokens: u32,
    /// Requested outputs in a batch.
    pub outputs: u32,
    /// Slots: sequences that are resident at once.
    pub slots: u32,
    /// Pages for each page group; page ids run from 0 to this, exclusive. A backend that needs
    /// a page for padding keeps one of its own beyond these.
    pub pages: Vec<u32>,
}

/// A step or transfer that was started and whose result has not been read.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a ticket is waited for, else the executor can't retire the step"]
pub struct Ticket(u64);

impl Ticket {
    /// A ticket with a number that its executor chose; equal numbers are the same launch.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// When waiting ends at the latest.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Wait as long as it takes.
    pub const NEVER: Self = Self(None);

    /// This long from now.
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now().checked_add(duration))
    }

    /// The instant, or `None` for [`Deadline::NEVER`].
    pub fn instant(&self) -> Option<Instant> {
        self.0
    }
}

/// A whole page of one group copied from one tier to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The page group; ids are per group.
    pub group: GroupId,
    /// Tier and page to read.
    pub from: (Tier, PageId),
    /// Tier and page to write.
    pub to: (Tier, PageId),
}

/// Where a page's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Where steps can read it.
    Device,
    /// The host's memory; it is loaded back before a step reads it.
    Host,
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

/// Why a backend can't be had or can't compile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A weight can't be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The program is not well formed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A tensor has another shape than the program says.
    #[error("tensor `{name}` has shape {found:?}, but the program needs {expected:?}")]
    Shape {
        /// The tensor's Hugging Face name.
        name: String,
        /// Shape that the program declares.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// The backend can't compute with a tensor's format.
    #[error("tensor `{name}` is {format:?}, which the {backend} backend can't read")]
    Format {
        /// The tensor's Hugging Face name.
        name: String,
        /// Its format.
        format: Format,
        /// The backend's name.
        backend: &'static str,
    },
    /// An operation or option that the backend doesn't have.
    #[error("the {backend} backend doesn't support {what}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What was asked of it.
        what: String,
    },
    /// The device's memory is too small.
    #[error("{what} needs {needed} bytes, but the device has {available}")]
    Memory {
        /// What was to be placed.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// An option that makes no sense.
    #[error("invalid {option}: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The device, its driver or its plugin failed.
    #[error("{context}: {message}")]
    Device {
        /// What was being done.
        context: String,
        /// What the device said.
        message: String,
    },
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Device => "device",
            Tier::Host => "host",
        })
    }
}
