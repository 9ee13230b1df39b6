//! The embedded backend of Understory: runs a `Program` on this machine's processor, and needs
//! nothing installed.
//!
//! ```
//! use backend_cpu::{CpuBackend, CpuOptions};
//! use backend_api::Backend;
//!
//! let backend = CpuBackend::with_options(&CpuOptions::new().threads(2))?;
//! let capabilities = backend.capabilities();
//! assert!(capabilities.batch_invariant);
//! println!("{} with {} bytes", capabilities.description, capabilities.memory_bytes);
//! # Ok::<(), backend_api::BackendError>(())
//! ```
//!
//! # What is decided here
//!
//! - **A row's result depends on the row alone.** Not on what else is in the batch, how its prompt
//!   was chunked, what came from the cache, the page size or the number of threads: bit for bit,
//!   within one [`InstructionSet`]. Each output of a linear operation is one chain of multiply-adds
//!   over its inputs in order, threads divide columns only, and attention works in blocks of 128
//!   absolute positions.
//! - **Kernels are written once**, over sixteen lanes of f32. An instruction set says what
//!   these lanes are: portable Rust, AVX2 or AVX-512, found when the backend is made. All `unsafe`
//!   is there, in the thread pool, and where threads write parts of one buffer.
//! - **Weights keep their format**, regrouped at load so that lanes are output columns. In exact
//!   precision they become f32 in registers, and activations are f32; in bf16 and int8 both are
//!   multiplied as they are, by dot products or matrix units where the processor has them.
//! - **Steps run on a driver thread** with a pool of its own, so that the caller plans the next step
//!   meanwhile. Workers spin between the parts of a step and park when there is none: an idle
//!   engine costs no processor time.
//!
//! `docs/backend-cpu.md` has layouts, arithmetic intensities and measurements.

mod backend;
mod executor;
mod isa;
mod kernels;
pub mod measure;
mod pool;
mod shared;
mod simd;

pub use backend::{CpuBackend, CpuOptions};
pub use simd::InstructionSet;
