//! Qwen2-MoE and Qwen3-MoE (Yang et al., 2024 and 2025): as Qwen2 and Qwen3, with a mixture of
//! experts in most layers. In Qwen2 all tokens share one more expert, behind a gate of its own.

use serde_json::json;

use super::{Decoder, Family, decoder::ExpertParts, qwen2};
use crate::model::config::{ConfigError, ExpertsConfig, ModelConfig, json::Fields};
use backend_api::program::ValueId;

pub(super) static QWEN2: Family = Family {
    name: "qwen2moe",
    classes: &["Qwen2MoeForCausalLM"],
    model_types: &["qwen2_moe"],
    gguf_names: &["qwen2moe"],
    defaults: || {
        json!({
            "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1,
            "max_window_layers": 28,
        })
    },
    configure: configure_qwen2,
    layer: qwen2_layer,
    gguf_parts: &[
        ROUTER,
        EXPERTS[0],
        EXPERTS[1],
        EXPERTS[2],
        ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
        ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
        ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ],
    ..Family::PLAIN
};

pub(super) static QWEN3: Family = Family {
    name: "qwen3moe",
    classes: &["Qwen3MoeForCausalLM"],
    model_types: &["qwen3_moe"],
    gguf_names: &["qwen3moe"],
    defaults: || {
        json!({
            "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
        })
    },
    configure: configure_qwen3,
    layer: qwen3_layer,
    // What GGUF files don't say is on, as in every checkpoint.
    gguf_fields: || json!({"norm_topk_prob": true}),
    gguf_parts: &[ROUTER, EXPERTS[0], EXPERTS[1], EXPERTS[2]],
    ..Family::PLAIN
};

pub(super) const ROUTER: (&str, &str) = ("ffn_gate_inp", "mlp.gate");
pub(super) const EXPERTS: [(&str, &str); 3] = [
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
];

const PARTS: ExpertParts = ExpertParts {
    router: "mlp.gate",
    gate: "mlp.experts.gate_proj",
    up: "mlp.experts.up_proj",
    down: "mlp.experts.down_proj",
};

fn configure_qwen2(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    config.qkv_bias = json.bool("qkv_bias")?.unwrap_or(true);
    config.attention_output_bias = false;
    let shared = json.required_usize("shared_expert_intermediate_size")?;
    if shared == 0 {
        let field = "shared_expert_intermediate_size";
        let allowed = "at least 1".into();
        return Err(ConfigError::OutOfRange { field, value: "0".into(), allowed });
    }
    experts(json, config, shared)?;
    qwen2::windows(json, config)
}

fn configure_qwen3(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    experts(json, config, 0)?;
    qwen2::windows(json, config)
}

/// Which layers have experts, and how many.
fn experts(json: &Fields, config: &mut ModelConfig, shared: usize) -> Result<(), ConfigError> {
    config.mlp_bias = false;
    // Newer files of Qwen3 use the name that Mixtral has.
    let count = match json.usize("num_local_experts")? {
        Some(count) => count,
        None => json.required_usize("num_experts")?,
    };
    let mut experts = ExpertsConfig::new(
        count,
        json.required_usize("num_experts_per_tok")?,
        json.required_usize("moe_intermediate_size")?,
    );
    experts.normalize = json.bool("norm_topk_prob")?.unwrap_or(false);
    experts.shared_width = shared;
    config.experts = Some(experts);
    let step = json.required_usize("decoder_sparse_step")?;
    let dense = json.usizes("mlp_only_layers")?.unwrap_or_default();
    for (index, layer) in config.layers.iter_mut().enumerate() {
        layer.has_experts =
            !dense.contains(&index) && (index + 1).checked_rem(step.max(1)) == Some(0);
    }
    Ok(())
}

fn qwen2_layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let h = m.norm(x, "input_layernorm");
    let qkv = m.qkv(h);
    let h = m.attend(qkv);
    let x = m.add(x, h);
    let h = m.norm(x, "post_attention_layernorm");
    let h = match m.has_experts() {
        true => {
            let routed = m.experts(h, &PARTS);
            let shared = m.shared_expert(h, "mlp.shared_expert", "mlp.shared_expert_gate");
            m.sum(routed, shared)
        }
        false => m.mlp(h),
    };
    m.add(x, h)
}

fn qwen3_layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let h = m.norm(x, "input_layernorm");
    let [q, k, v] = m.qkv(h);
    let q = m.head_norm(q, "self_attn.q_norm");
    let k = m.head_norm(k, "self_attn.k_norm");
    let h = m.attend([q, k, v]);
    let x = m.add(x, h);
    let h = m.norm(x, "post_attention_layernorm");
    let h = if m.has_experts() { m.experts(h, &PARTS) } else { m.mlp(h) };
    m.add(x, h)
}
