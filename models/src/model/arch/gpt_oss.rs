//! gpt-oss (OpenAI, 2025): a window in every other layer, attention sinks, biases everywhere, and
//! in every layer a mixture of experts with a clamped SwiGLU.

use serde_json::json;

use super::{Decoder, Family, decoder::ExpertParts, qwen_moe::EXPERTS};
use crate::model::config::{
    ConfigError, ExpertsConfig, FusedExperts, ModelConfig, json::Fields, read_windows,
};
use backend_api::program::{Activation, ValueId};

pub(super) static FAMILY: Family = Family {
    name: "gpt-oss",
    classes: &["GptOssForCausalLM"],
    model_types: &["gpt_oss"],
    gguf_names: &["gpt-oss"],
    defaults: || {
        json!({
            "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
            "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
            "head_dim": 64, "sliding_window": 128, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "attention_bias": true,
            "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_limit": 7.0,
            "swiglu_alpha": 1.702,
        })
    },
    configure,
    layer,
    // YaRN's ramp is not of whole dimensions, which no key says.
    gguf_fields: || json!({"rope_truncate": false}),
    gguf_parts: &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("attn_sinks.weight", "self_attn.sinks"),
        ("ffn_gate_inp", "mlp.router"),
        EXPERTS[0],
        EXPERTS[1],
        EXPERTS[2],
    ],
    ..Family::PLAIN
};

const PARTS: ExpertParts = ExpertParts {
    router: "mlp.router",
    gate: "mlp.experts.gate_proj",
    up: "mlp.experts.up_proj",
    down: "mlp.experts.down_proj",
};

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    config.mlp_bias = false;
    config.attention_sinks = true;
    config.activation = Activation::ClampedSwiglu {
        slope: json.required_f32("swiglu_alpha")?,
        limit: json.required_f32("swiglu_limit")?,
    };
    // GGUF files have a key for the width of an expert, beside that of a network that isn't there.
    let width = json.usize("moe_intermediate_size")?.unwrap_or(config.intermediate_size);
    let mut experts = ExpertsConfig::new(
        json.required_usize("num_local_experts")?,
        json.required_usize("num_experts_per_tok")?,
        width,
    );
    // A softmax of the chosen ones is a normalized softmax of all.
    (experts.normalize, experts.has_bias, experts.fused) = (true, true, FusedExperts::InTurns);
    config.experts = Some(experts);
    read_windows(json, config, |layer| layer % 2 == 0)
}

fn layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let h = m.norm(x, "input_layernorm");
    let qkv = m.qkv(h);
    let h = m.attend(qkv);
    let x = m.add(x, h);
    let h = m.norm(x, "post_attention_layernorm");
    let h = m.experts(h, &PARTS);
    m.add(x, h)
}
