//! Gemma 2 (Gemma Team, 2024): norms before and after each branch, bounded scores and logits, a
//! window in every other layer.

use serde_json::json;

use super::{Decoder, Family};
use crate::model::config::{ConfigError, ModelConfig, json::Fields, read_windows};
use backend_api::program::ValueId;

pub(super) static FAMILY: Family = Family {
    name: "gemma2",
    classes: &["Gemma2ForCausalLM"],
    model_types: &["gemma2"],
    gguf_names: &["gemma2"],
    defaults: || {
        json!({
            "head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096,
            "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        })
    },
    configure,
    layer,
    gguf_keys: &[
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ],
    gguf_parts: GGUF_PARTS,
    ..Family::PLAIN
};

pub(super) const GGUF_PARTS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Layers of the 27B model, whose queries are scaled by the width of the residual stream.
const LAYERS_OF_27B: usize = 46;

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    constants(json, config, LAYERS_OF_27B)?;
    read_windows(json, config, |layer| layer % 2 == 0)
}

/// What the models of Gemma 2 and 3 have in common. Activations are f32 here, so the embedding's
/// factor is not rounded as in transformers with bf16 activations.
pub(super) fn constants(
    json: &Fields,
    config: &mut ModelConfig,
    layers_of_27b: usize,
) -> Result<(), ConfigError> {
    config.norm_weight_offset = 1.0;
    config.multipliers.embedding = (config.hidden_size as f32).sqrt();
    let divisor = match json.f32("query_pre_attn_scalar")? {
        Some(divisor) => divisor,
        // GGUF files don't say.
        None if config.layers.len() == layers_of_27b => {
            config.hidden_size as f32 / config.heads.max(1) as f32
        }
        None => config.head_dim as f32,
    };
    config.multipliers.attention = 1.0 / divisor.sqrt();
    config.attention_soft_cap = json.f32("attn_logit_softcapping")?;
    config.logits_soft_cap = json.f32("final_logit_softcapping")?;
    if json.bool("use_bidirectional_attention")?.unwrap_or(false) {
        return Err(ConfigError::Unsupported {
            field: "use_bidirectional_attention".into(),
            value: "true".into(),
            supported: "false",
        });
    }
    Ok(())
}

fn layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let h = m.norm(x, "input_layernorm");
    let qkv = m.qkv(h);
    let h = m.attend(qkv);
    let h = m.norm(h, "post_attention_layernorm");
    let x = m.add(x, h);
    let h = m.norm(x, "pre_feedforward_layernorm");
    let h = m.mlp(h);
    let h = m.norm(h, "post_feedforward_layernorm");
    m.add(x, h)
}
