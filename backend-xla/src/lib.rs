//! Understory on XLA: a [`Program`](backend_api::program::Program) compiled to StableHLO and run
//! through the PJRT C API of whatever plugin is given: libtpu, XLA's CPU plugin, XLA's CUDA plugin.
//!
//! What it decides:
//!
//! - **The plugin is chosen at run time** ([`pjrt`]). Building needs no XLA, no C++ and no Python.
//! - **StableHLO is written as text**, one short function for each operation of a program.
//! - **Shapes are buckets.** A step is compiled for powers of two of decode rows and of prefill
//!   tokens; the sampler is a module of its own over the step's logits, so that the two don't
//!   multiply. Warm-up compiles all of them, or loads them from the disk cache, and what is
//!   compiled later is counted.
//! - **KV pages are donated** to each step and updated in place; there is never a second copy. A
//!   donated step that fails takes them with it, and says so
//!   ([`StepError::KvLost`](backend_api::StepError::KvLost)).
//! - **Tokens stay on the device.** The sampler leaves each slot's next token where the next step
//!   reads it, so a step is launched before the host knows the tokens of the one before.
//! - **Attention is portable, or a TPU kernel.** The portable lowering runs wherever XLA does. On
//!   TPUs the ragged paged attention kernel of the `jax` package can take its place: a script lowers
//!   it at set-up ([`pallas`]), and where it can't be had the portable one serves, with the reason.
//! - **Drafts are verified on the device**, in the sampler's module: a slot's next token is the last
//!   accepted one before the host has read any.
//! - **Each page group has its own tables.** In a layer with a sliding window as many pages are read
//!   as the window touches.
//! - **Tensor parallelism** follows the program's splits, through Shardy annotations and two
//!   all-reduces a layer. Heads that don't divide are repeated or filled up with zeros.
//!
//! What was run, and where, is in `docs/xla.md`: everything on XLA's CPU plugin with virtual
//! devices; on TPUs programs were compiled ahead of time and not run.
//!
//! ```no_run
//! use backend_xla::{XlaBackend, XlaOptions};
//! use backend_api::Backend;
//!
//! let options = XlaOptions::cpu("/opt/plugins/pjrt_c_api_cpu_plugin.so", 2);
//! let backend = XlaBackend::new(options.cache("/var/cache/understory"))?;
//! println!("{}", backend.capabilities().description);
//! # Ok::<(), backend_xla::XlaError>(())
//! ```

pub mod aot;
mod backend;
mod buckets;
mod compiler;
mod error;
mod executor;
pub mod hlo;
mod load;
mod lower;
pub mod pallas;
pub mod pjrt;
mod stablehlo;

pub use backend::{XlaBackend, XlaOptions};
pub use error::XlaError;
pub use pallas::AttentionChoice;
