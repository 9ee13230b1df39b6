//! Mistral (Jiang et al., 2023): as Llama, with a window in every layer of its first models. 7B,
//! Nemo, and the text model of Small 3.x. Ministral 3 (2025) stretches rotary embedding by YaRN, and
//! scales queries by their position, as Llama 4 does.

use serde_json::json;

use super::Family;
use crate::model::config::{
    ConfigError, ModelConfig, QueryScaling, RopeScaling, json::Fields, read_windows,
};

pub(super) static FAMILY: Family = Family {
    name: "mistral",
    classes: &["MistralForCausalLM", "Mistral3ForConditionalGeneration"],
    model_types: &["mistral"],
    // Converted as what it computes like.
    gguf_names: &["llama"],
    defaults: || {
        json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 131072, "sliding_window": 4096,
        })
    },
    configure,
    gguf_reorders_rows: true,
    ..Family::PLAIN
};

pub(super) static MINISTRAL3: Family = Family {
    name: "ministral3",
    classes: &["Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"],
    model_types: &["ministral3"],
    gguf_names: &["mistral3"],
    defaults: || {
        json!({
            "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 34, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "max_position_embeddings": 262144, "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384,
                "beta_fast": 32.0, "beta_slow": 1.0,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            },
        })
    },
    configure: |json, config| {
        configure(json, config)?;
        scale_queries(json, config)
    },
    gguf_keys: &[("attention.temperature_scale", "llama_4_scaling_beta")],
    gguf_reorders_rows: true,
    ..Family::PLAIN
};

/// The original context of YaRN is the interval after which queries grow.
fn scale_queries(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let field = "llama_4_scaling_beta";
    let parameters = match json.object("rope_parameters")? {
        Some(parameters) => parameters,
        None => json.object("rope_scaling")?.unwrap_or_default(),
    };
    // A GGUF file has it on its own.
    let Some(beta) = parameters.f32(field)?.or(json.f32(field)?) else { return Ok(()) };
    let rope = config.layers.first().and_then(|layer| layer.rope.as_ref());
    let original_context = match rope.and_then(|rope| rope.scaling.as_ref()) {
        Some(&RopeScaling::Yarn { original_context, .. }) => original_context,
        _ => config.context_length,
    };
    config.query_scaling = Some(QueryScaling { beta, original_context });
    Ok(())
}

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    (config.qkv_bias, config.attention_output_bias, config.mlp_bias) = (false, false, false);
    read_windows(json, config, |_| true)
}
