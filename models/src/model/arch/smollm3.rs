//! SmolLM3 (Bakouch et al., 2025): as Llama, without position embedding in every fourth layer
//! (NoPE).

use serde_json::json;

use super::Family;
use crate::model::config::{ConfigError, ModelConfig, json::Fields, read_windows};

pub(super) static FAMILY: Family = Family {
    name: "smollm3",
    classes: &["SmolLM3ForCausalLM"],
    model_types: &["smollm3"],
    gguf_names: &["smollm3"],
    defaults: || {
        json!({
            "num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": true,
            "no_rope_layer_interval": 4,
        })
    },
    configure,
    gguf_reorders_rows: true,
    ..Family::PLAIN
};

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let layers = config.layers.len();
    let interval = json.required_usize("no_rope_layer_interval")?;
    // Despite the field's name, 1 is a layer with position embedding.
    let rotates: Vec<bool> = match json.usizes("no_rope_layers")? {
        Some(list) if list.len() == layers => list.iter().map(|&flag| flag != 0).collect(),
        Some(list) => {
            let (expected, actual) = (layers, list.len());
            return Err(ConfigError::WrongLength { field: "no_rope_layers", expected, actual });
        }
        None => (1..=layers).map(|layer| layer.checked_rem(interval) != Some(0)).collect(),
    };
    for (layer, rotates) in config.layers.iter_mut().zip(&rotates) {
        layer.rope = layer.rope.take().filter(|_| *rotates);
    }
    if json.bool("use_sliding_window")?.unwrap_or(false) {
        read_windows(json, config, |layer| rotates.get(layer) == Some(&false))?;
    }
    Ok(())
}
