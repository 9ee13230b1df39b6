//! Granite 3.x (Granite Team, 2024): as Llama, with four multipliers from maximal update
//! parametrization (Yang et al., 2022). Granite 4 (2025) is spelled as a model of recurrent layers and
//! experts; its dense models have neither, and compute the same with fused gates and ups.

use serde_json::json;

use super::Family;
use crate::model::config::{ConfigError, ModelConfig, Multipliers, json::Fields};

pub(super) static FAMILY: Family = Family {
    name: "granite",
    classes: &["GraniteForCausalLM"],
    model_types: &["granite"],
    gguf_names: &["granite"],
    configure,
    gguf_keys: &[
        ("embedding_scale", "embedding_multiplier"),
        ("attention.scale", "attention_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ],
    gguf_reorders_rows: true,
    ..Family::PLAIN
};

pub(super) static GRANITE4: Family = Family {
    name: "granite4",
    classes: &[GRANITE4_CLASS],
    model_types: &["granitemoehybrid"],
    defaults: || {
        json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
            "shared_intermediate_size": 1024, "num_hidden_layers": 32, "num_attention_heads": 32,
            "max_position_embeddings": 2048, "num_local_experts": 8,
        })
    },
    configure: configure_granite4,
    ..FAMILY
};

const GRANITE4_CLASS: &str = "GraniteMoeHybridForCausalLM";

fn configure_granite4(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let found = || GRANITE4_CLASS.to_owned();
    // Recurrent layers are what the class has where nothing is said.
    let kinds = json.strings("layer_types")?.unwrap_or_else(|| vec![""]);
    if !kinds.iter().all(|kind| matches!(*kind, "attention" | "full_attention")) {
        return Err(ConfigError::MissingPart { found: found(), missing: "recurrent layers" });
    }
    let (expected, actual) = (config.layers.len(), kinds.len());
    if actual != expected {
        return Err(ConfigError::WrongLength { field: "layer_types", expected, actual });
    }
    if json.required_usize("num_local_experts")? > 0 {
        return Err(ConfigError::MissingPart {
            found: found(),
            missing: "the experts of Granite 4",
        });
    }
    let width = json.required_usize("shared_intermediate_size")?;
    config.intermediate_size = width;
    let has_positions = json.string("position_embedding_type")? == Some("rope");
    for layer in &mut config.layers {
        layer.intermediate_size = width;
        layer.rope = layer.rope.take().filter(|_| has_positions);
    }
    configure(json, config)
}

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let number = |field| json.f32(field).map(|number| number.unwrap_or(1.0));
    config.multipliers = Multipliers {
        embedding: number("embedding_multiplier")?,
        attention: number("attention_multiplier")?,
        residual: number("residual_multiplier")?,
        logits: 1.0 / number("logits_scaling")?,
    };
    Ok(())
}
