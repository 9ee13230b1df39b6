//! What a backend of Understory implements, and no more: no tokenizer, no template, no scheduler.
//!
//! A [`Backend`] is a device, or a mesh of devices that acts as one. A backend *compiles*
//! [`Program`](program::Program)s with their [`Weights`](weights::Weights) into an [`Executor`],
//! which owns the KV memory and runs steps. Nothing above this crate knows a device; nothing
//! below knows a request, a prompt or a prefix cache.
//!
//! # The contract in five rules
//!
//! 1. **The core owns page numbers, the backend owns bytes.** A batch names pages; how a page
//!    lies in memory is the backend's affair.
//! 2. **Launches and transfers take effect in the order of the calls.** A page freed by the
//!    core may be handed to any *later* launch while an earlier one still reads the page.
//! 3. **`launch` returns at once.** A launch may block only for as long as handing the step over
//!    takes. A borrowed [`Batch`] is valid during the call and not longer.
//! 4. **Slots are resident.** A batch says what *changed* in each slot since the last launch
//!    ([`SlotEvent`]), and lends the full state ([`Slots`]) to backends that live on the host.
//! 5. **A step never exceeds [`Limits`].** So every shape can be prepared in
//!    [`Executor::warm_up`]; [`Executor::compiles_in_traffic`] counts every later preparation.
//!
//! `docs/backends.md` walks a mixed step, a grammar-constrained row and a fork through three
//! backends.

mod backend;
mod batch;
mod check;
mod clip;
mod compute;
mod error;
pub mod kit;
mod options;
pub mod program;
mod result;
pub mod sample;
mod setters;
mod slots;
mod ticket;
pub mod weights;

pub use backend::{Backend, Executor, Progress};
pub use batch::{
    Batch, Draft, GroupId, InputToken, Mask, Masks, OutputRequest, PoolKind, Pooling, ProgramId,
    Row, SharedPrefix, SlotEvent, Span, Want,
};
pub use check::{BatchBounds, BatchError};
pub use clip::{Clip, clip};
pub use compute::{Compute, UnknownName};
pub use error::BackendError;
pub use options::{Capabilities, CompileOptions, Footprint, KvFormat, Limits};
pub use radix_cache::{PageId, Tier, Token};
pub use result::{OutputResult, RowFailure, Sampled, StepError, StepResult};
pub use slots::{AdapterId, SlotId, SlotSampling, SlotState, Slots};
pub use ticket::{Deadline, PageCopy, Ticket};
