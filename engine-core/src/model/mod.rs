//! Models: their configuration, the [`Program`] that a backend compiles, and the architectures
//! that build one.

mod arch;
mod builder;
pub mod config;
mod open;
mod program;

pub use arch::{OUTPUT_WEIGHT, build};
pub use builder::{AttentionOptions, ProgramBuilder, Rotary};
pub use config::{Architecture, ConfigError, GenerationDefaults, ModelConfig, RopeScaling};
pub use open::{LoadedModel, ModelFiles, OpenError, open_model};
pub use program::{
    Activation, Attention, Op, PageGroup, Program, ProgramError, Residual, RopePairs, RowsOf,
    Split, Value, ValueId, Weight, WeightId,
};
