//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (Abdin et al., 2024): as Llama, with fused projections and
//! LongRoPE; Phi-4-mini rotates three quarters of a head.

use serde_json::json;

use super::Family;
use crate::model::config::{ConfigError, ModelConfig, json::Fields, read_windows};

pub(super) static FAMILY: Family = Family {
    name: "phi3",
    classes: &["Phi3ForCausalLM"],
    model_types: &["phi3"],
    gguf_names: &["phi3"],
    defaults: || json!({"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}),
    configure,
    rotates_partially: true,
    gguf_parts: &[("ffn_up", "mlp.gate_up_proj")],
    ..Family::PLAIN
};

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    (config.qkv_bias, config.attention_output_bias, config.mlp_bias) = (false, false, false);
    read_windows(json, config, |_| true)
}
