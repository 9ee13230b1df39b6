//! Instructions to effects.
//!
//! A kernel is compiled once: each instruction becomes a closure with its registers resolved, and
//! works on the 32 lanes of a warp at once. [`launch`] runs the blocks of a grid on all cores.

mod action;
mod arguments;
mod block;
mod bulk;
mod calls;
mod cluster;
mod compile;
mod context;
mod control;
pub(crate) mod float;
mod form;
mod groups;
mod kernel;
mod launch;
mod mbarrier;
mod memory;
mod names;
mod ops;
mod random;
mod registers;
mod shared;
mod stack;
mod stores;
mod tensor_map;
mod warp;

pub use arguments::Arguments;
pub use kernel::{Kernel, LoadError, Parameter, Program};
pub use launch::{
    Launch, LaunchError, Options, Outcome, SHARED_LIMIT, Schedule, launch, launch_with_peers,
};
pub use memory::{Memory, MemoryError, Peers};
pub use ops::{InstructionForms, instruction_forms};
pub use tensor_map::{Swizzle, TensorMap, TensorMapError, TensorType};

/// Multiprocessors that `%nsmid` tells of.
const MULTIPROCESSORS: u32 = 108;
