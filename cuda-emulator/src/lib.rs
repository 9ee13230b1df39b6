//! Runs and sanitizes CUDA kernels on a machine with no GPU.
//!
//! NVRTC compiles CUDA C++ to PTX without a device. This crate runs that very PTX on the CPU, with
//! the checks of a sanitizer: bounds, races, uninitialized memory, misuse of barriers and of
//! asynchronous copies.
//!
//! ```
//! use cuda_emulator::{Launch, Memory, Options, Program, launch};
//!
//! let ptx = r#"
//!     .version 8.8
//!     .target sm_80
//!     .address_size 64
//!     .visible .entry double(.param .u64 data)
//!     {
//!         .reg .b32 %r<3>;
//!         .reg .b64 %d<4>;
//!         ld.param.u64 %d1, [data];
//!         mov.u32 %r1, %tid.x;
//!         mul.wide.u32 %d2, %r1, 4;
//!         add.s64 %d3, %d1, %d2;
//!         ld.global.u32 %r2, [%d3];
//!         add.s32 %r2, %r2, %r2;
//!         st.global.u32 [%d3], %r2;
//!         ret;
//!     }"#;
//! let mut memory = Memory::default();
//! let program = Program::load(ptx, &mut memory)?;
//! let kernel = program.kernel("double")?;
//! let data = memory.allocate(16)?;
//! memory.write(data, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])?;
//! let shape = Launch { grid: [1, 1, 1], block: [4, 1, 1], dynamic_shared: 0, cluster: None };
//! let outcome = launch(&kernel, &memory, &shape, &data.to_le_bytes(), &Options::default())?;
//! assert!(outcome.reports.is_empty());
//! let mut result = [0; 16];
//! memory.read(data, &mut result)?;
//! assert_eq!(result[4], 4);
//!
//! // A thread too many: the fifth loads beyond the 16 bytes.
//! let shape = Launch { block: [5, 1, 1], ..shape };
//! let outcome = launch(&kernel, &memory, &shape, &data.to_le_bytes(), &Options::default())?;
//! let fault = outcome.fault().expect("the load is out of bounds");
//! assert_eq!(fault.thread, Some([4, 0, 0]));
//! assert_eq!(fault.site.instruction, "ld.global.u32");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What it decides:
//!
//! - An instruction or modifier that the machine doesn't know is an error when the kernel is
//!   compiled, with its line. Nothing is passed over silently.
//! - Where PTX leaves freedom, the least convenient choice is made: `cp.async` arrives when it is
//!   waited for, fresh memory holds garbage, addresses are never used twice.
//! - Approximate instructions are computed exactly, or with [`Options::perturb`] as wrongly as PTX
//!   allows. Tensor core sums are made in f32 in a fixed order.
//!
//! What it can't show: time, what ptxas makes of the PTX, and what the real driver does.

pub mod check;
pub mod count;
pub mod driver;
pub mod hardware;
mod machine;
pub mod nvrtc;
mod packages;
pub mod ptx;
pub mod ptxas;
pub mod stand_in;

pub use machine::{
    Arguments, InstructionForms, Kernel, Launch, LaunchError, LoadError, Memory, MemoryError,
    Options, Outcome, Parameter, Peers, Program, SHARED_LIMIT, Schedule, Swizzle, TensorMap,
    TensorMapError, TensorType, instruction_forms, launch, launch_with_peers,
};
