//! Granite 3.x (Granite Team, 2024): as Llama, with four multipliers from maximal update
//! parametrization (Yang et al., 2022).

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
