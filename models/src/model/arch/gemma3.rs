//! Gemma 3 (Gemma Team, 2025): as Gemma 2, with norms of query and key heads instead of bounded
//! scores, and five windowed layers, rotated by a base of their own, before each full one. 270M, 1B,
//! and the text model of the larger ones.

use serde_json::json;

use super::{Decoder, Family, gemma2};
use crate::model::config::{ConfigError, ModelConfig, json::Fields, read_windows};
use backend_api::program::ValueId;

pub(super) static FAMILY: Family = Family {
    name: "gemma3",
    classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_types: &["gemma3_text", "gemma3"],
    gguf_names: &["gemma3"],
    defaults: || {
        json!({
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
            "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 256, "max_position_embeddings": 131072, "tie_word_embeddings": true,
            "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096,
            "sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        })
    },
    configure,
    layer,
    gguf_keys: &[("rope.freq_base_swa", "rope_local_base_freq")],
    gguf_parts: gemma2::GGUF_PARTS,
    ..Family::PLAIN
};

/// Layers of the 27B model, whose queries are scaled by the width of the residual stream.
const LAYERS_OF_27B: usize = 62;

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    gemma2::constants(json, config, LAYERS_OF_27B)?;
    let pattern = json.required_usize("sliding_window_pattern")?;
    read_windows(json, config, |layer| (layer + 1).checked_rem(pattern) != Some(0))
}

fn layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let h = m.norm(x, "input_layernorm");
    let [q, k, v] = m.qkv(h);
    let q = m.head_norm(q, "self_attn.q_norm");
    let k = m.head_norm(k, "self_attn.k_norm");
    let h = m.attend([q, k, v]);
    let h = m.norm(h, "post_attention_layernorm");
    let x = m.add(x, h);
    let h = m.norm(x, "pre_feedforward_layernorm");
    let h = m.mlp(h);
    let h = m.norm(h, "post_feedforward_layernorm");
    m.add(x, h)
}
