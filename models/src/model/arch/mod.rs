//! One file a family. Each is a function from a configuration to a [`Program`].

mod decoder;
mod llama;
mod qwen2;
mod qwen3;

use super::config::{Architecture, ModelConfig};
use backend_api::program::{Program, ProgramError};

/// Name of the output layer's weight, in checkpoints that have one.
pub const OUTPUT_WEIGHT: &str = "lm_head.weight";

/// Builds the program of a model.
///
/// `has_output_weight` says whether the checkpoint holds [`OUTPUT_WEIGHT`]; where it doesn't,
/// the embedding serves as output layer.
///
/// # Errors
///
/// A configuration whose numbers don't fit together.
pub fn build(config: &ModelConfig, has_output_weight: bool) -> Result<Program, ProgramError> {
    match config.architecture {
        Architecture::Llama => llama::build(config, has_output_weight),
        Architecture::Qwen2 => qwen2::build(config, has_output_weight),
        Architecture::Qwen3 => qwen3::build(config, has_output_weight),
    }
}
