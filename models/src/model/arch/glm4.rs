//! GLM-4-0414 (GLM Team, 2024): norms before and after each branch, a fused gated network, and
//! neighbouring dimensions rotated together, in half of each head.

use serde_json::json;

use super::{Decoder, Family};
use crate::model::config::{ConfigError, ModelConfig, json::Fields};
use backend_api::program::{RopePairs, ValueId};

pub(super) static FAMILY: Family = Family {
    name: "glm4",
    classes: &["Glm4ForCausalLM"],
    model_types: &["glm4"],
    gguf_names: &["glm4"],
    defaults: || {
        json!({
            "head_dim": 128, "num_key_value_heads": 2, "rms_norm_eps": 1.5625e-7,
            "attention_bias": true, "partial_rotary_factor": 0.5,
        })
    },
    configure,
    layer,
    rope_pairs: RopePairs::Adjacent,
    rotates_partially: true,
    gguf_parts: &[
        ("post_attention_norm", "post_self_attn_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_up", "mlp.gate_up_proj"),
        ("post_ffw_norm", "post_mlp_layernorm"),
    ],
    ..Family::PLAIN
};

fn configure(_: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    (config.attention_output_bias, config.mlp_bias) = (false, false);
    Ok(())
}

fn layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let h = m.norm(x, "input_layernorm");
    let qkv = m.qkv(h);
    let h = m.attend(qkv);
    let h = m.norm(h, "post_self_attn_layernorm");
    let x = m.add(x, h);
    let h = m.norm(x, "post_attention_layernorm");
    let h = m.mlp(h);
    let h = m.norm(h, "post_mlp_layernorm");
    m.add(x, h)
}
