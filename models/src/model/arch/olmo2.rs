//! OLMo 2 (OLMo Team, 2024): norms only after each branch, and norms of all query and key heads
//! together. OLMo 3 (2025) adds three windowed layers before each full one; only the full ones have
//! stretched rotary embedding.

use std::sync::Arc;

use serde_json::json;

use super::{Decoder, Family};
use crate::model::config::{ConfigError, ModelConfig, json::Fields, read_windows};
use backend_api::program::ValueId;

pub(super) static FAMILY: Family = Family {
    name: "olmo2",
    classes: &["Olmo2ForCausalLM"],
    model_types: &["olmo2"],
    gguf_names: &["olmo2"],
    defaults: || json!({"rms_norm_eps": 1e-5}),
    configure,
    layer,
    gguf_parts: &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    gguf_attention_factor_is_whole: true,
    ..Family::PLAIN
};

pub(super) static OLMO3: Family = Family {
    name: "olmo3",
    classes: &["Olmo3ForCausalLM"],
    model_types: &["olmo3"],
    // A file with a window: the family of the name reads both.
    gguf_names: &["olmo2"],
    defaults: || json!({"rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096}),
    ..FAMILY
};

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    read_windows(json, config, |layer| (layer + 1) % 4 != 0)?;
    let plain = config.layers.iter().find_map(|layer| layer.rope.clone()).map(|rope| {
        let mut plain = Arc::unwrap_or_clone(rope);
        plain.scaling = None;
        Arc::new(plain)
    });
    config.windowed_layers().for_each(|layer| layer.rope.clone_from(&plain));
    Ok(())
}

fn layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let [q, k, v] = m.qkv(x);
    let q = m.norm(q, "self_attn.q_norm");
    let k = m.norm(k, "self_attn.k_norm");
    let h = m.attend([q, k, v]);
    let h = m.norm(h, "post_attention_layernorm");
    let x = m.add(x, h);
    let h = m.mlp(x);
    let h = m.norm(h, "post_feedforward_layernorm");
    m.add(x, h)
}
