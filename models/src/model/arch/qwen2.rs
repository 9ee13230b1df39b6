//! Qwen2 and Qwen2.5 (Yang et al., 2024): as Llama, with biases on query, key and value.

use super::Family;
use crate::model::config::{ConfigError, ModelConfig, json::Fields, read_windows};

pub(super) static FAMILY: Family = Family {
    name: "qwen2",
    classes: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    gguf_names: &["qwen2"],
    configure,
    ..Family::PLAIN
};

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    // There is no switch: always on queries, keys and values, never elsewhere.
    config.qkv_bias = true;
    config.attention_output_bias = false;
    config.mlp_bias = false;
    windows(json, config)
}

/// Qwen checkpoints carry a window that is switched off. Where it is on, `layer_types` says in which
/// layers, or `max_window_layers` the first of them.
pub(super) fn windows(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    if !json.bool("use_sliding_window")?.unwrap_or(false) {
        return Ok(());
    }
    let first = json.usize("max_window_layers")?.unwrap_or(0);
    read_windows(json, config, |layer| layer >= first)
}
