//! Mixtral (Jiang et al., 2024): as Mistral, with a mixture of experts in every layer, two of
//! which a token goes through.

use serde_json::json;

use super::{Decoder, Family, decoder::ExpertParts};
use crate::model::config::{ConfigError, ExpertsConfig, ModelConfig, json::Fields, read_windows};
use backend_api::program::ValueId;

pub(super) static FAMILY: Family = Family {
    name: "mixtral",
    classes: &["MixtralForCausalLM"],
    model_types: &["mixtral"],
    gguf_names: &["llama"],
    defaults: || {
        json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
            "num_local_experts": 8, "num_experts_per_tok": 2,
        })
    },
    configure,
    layer,
    gguf_parts: &[
        ("ffn_gate_inp", "block_sparse_moe.gate"),
        ("ffn_gate_exps", "block_sparse_moe.experts.w1"),
        ("ffn_up_exps", "block_sparse_moe.experts.w3"),
        ("ffn_down_exps", "block_sparse_moe.experts.w2"),
    ],
    gguf_reorders_rows: true,
    ..Family::PLAIN
};

const PARTS: ExpertParts = ExpertParts {
    router: "block_sparse_moe.gate",
    gate: "block_sparse_moe.experts.w1",
    up: "block_sparse_moe.experts.w3",
    down: "block_sparse_moe.experts.w2",
};

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    (config.qkv_bias, config.attention_output_bias, config.mlp_bias) = (false, false, false);
    let mut experts = ExpertsConfig::new(
        json.required_usize("num_local_experts")?,
        json.required_usize("num_experts_per_tok")?,
        config.intermediate_size,
    );
    experts.normalize = true;
    config.experts = Some(experts);
    read_windows(json, config, |_| true)
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
