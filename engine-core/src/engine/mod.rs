//! A running model: requests in, streams out.
//!
//! ```text
//!  callers             scheduler thread                 text thread          readers
//!  submit --commands--> Scheduler, Executor --texts--> detokenizer, --buffer--> Generation
//!                       plan, launch, commit            stop strings
//! ```
//!
//! One thread owns the scheduler and the executor and alternates between planning and waiting
//! (`loops.rs`). Another turns tokens into text, looks for stop strings and fills the readers'
//! buffers. Callers tokenize and validate on their own threads, or leave that to a small pool;
//! another pool computes the masks of many constrained samples. Threads that have nothing to do
//! sleep.
//!
//! Code of callers (constraints, wakers, progress) is fenced wherever it is called or dropped, and
//! a thread of an engine never waits for an engine.
//!
//! # What ends what
//!
//! | trouble | who notices |
//! | --- | --- |
//! | a row fails | its sample: [`GenerationError::Failed`](crate::error::GenerationError) |
//! | KV is lost | the samples of that step; all others are computed again |
//! | the device dies or hangs, a panic, a broken invariant | everybody: [`EngineDead`](crate::error::EngineDead) on every stream, and for every request from then on |
//! | a constraint panics or allows nothing, a reader's waker panics | its own request |
//! | a reader goes away | its request is aborted |
//! | a reader never reads | nobody |

mod builder;
mod clock;
mod command;
mod constraints;
mod driver;
mod embeddings;
mod facts;
mod fit;
mod flight;
mod generation;
mod handle;
mod intake;
mod kv_sizes;
mod limits;
mod loops;
mod mailbox;
mod meters;
mod oneshot;
mod options;
mod recorder;
mod sample_text;
mod shared;
mod submitting;
mod text;
mod threads;
mod workers;

pub use builder::EngineBuilder;
pub use facts::ModelFacts;
pub use fit::{FitEstimate, GroupFit};
pub use generation::{AbortHandle, Events, Generation};
pub use handle::{Engine, Shutdown};
pub use limits::{EngineLimits, LimitWarning};
pub use meters::{Endings, EngineSnapshot};
pub use options::{EngineOptions, KvMemory};
pub use submitting::Submitting;
