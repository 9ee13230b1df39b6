//! Mistral (Jiang et al., 2023): as Llama, with a window in every layer of its first models. 7B,
//! Nemo, and the text model of Small 3.x.

use serde_json::json;

use super::Family;
use crate::model::config::{ConfigError, ModelConfig, json::Fields, read_windows};

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

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    (config.qkv_bias, config.attention_output_bias, config.mlp_bias) = (false, false, false);
    read_windows(json, config, |_| true)
}
