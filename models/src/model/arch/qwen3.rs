//! Qwen3 (Yang et al., 2025): as Llama, with a norm on each query and key head.

use serde_json::json;

use super::{Decoder, Family, qwen2};
use crate::model::config::{ConfigError, ModelConfig, json::Fields};
use backend_api::program::ValueId;

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    classes: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    gguf_names: &["qwen3"],
    defaults: || json!({"head_dim": 128}),
    configure,
    layer,
    ..Family::PLAIN
};

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    config.mlp_bias = false;
    qwen2::windows(json, config)
}

fn layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let h = m.norm(x, "input_layernorm");
    let [q, k, v] = m.qkv(h);
    let q = m.head_norm(q, "self_attn.q_norm");
    let k = m.head_norm(k, "self_attn.k_norm");
    let h = m.attend([q, k, v]);
    let x = m.add(x, h);
    let h = m.norm(x, "post_attention_layernorm");
    let h = m.mlp(h);
    m.add(x, h)
}
