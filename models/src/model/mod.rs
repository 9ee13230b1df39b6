//! Models: their configuration, the [`Program`] that a backend compiles, and the architectures
//! that build one.

pub(crate) mod arch;
pub mod config;
mod open;

pub use arch::{OUTPUT_WEIGHT, build};
pub use backend_api::program::{
    Activation, Attention, AttentionOptions, ExpertLinear, ExpertNames, ExpertOptions, KeyValue,
    MixtureOfExperts, Op, PageGroup, Program, ProgramBuilder, ProgramError, Residual, RopePairs,
    Rotary, Routing, RowsOf, Scoring, Split, Value, ValueId, Weight, WeightId,
};
pub(crate) use config::json::Fields;
pub use config::{
    Architecture, ConfigError, ExpertsConfig, FusedExperts, GenerationDefaults, LayerConfig,
    ModelConfig, Multipliers, QueryScaling, Rope, RopeScaling,
};
pub use open::{LoadedModel, ModelFiles, OpenError, open_model};
