//! Models: their configuration, the [`Program`] that a backend compiles, and the architectures
//! that build one.

mod builder;
mod program;

pub use builder::{AttentionOptions, ProgramBuilder, Rotary};
pub use program::{
    Activation, Attention, Op, PageGroup, Program, ProgramError, Residual, RopePairs, RowsOf,
    Split, Value, ValueId, Weight, WeightId,
};
