//! Qwen3 (Yang et al., 2025): as Llama, with a norm on each query and key head.

use super::decoder::Decoder;
use crate::model::config::ModelConfig;
use backend_api::program::{Program, ProgramError};

pub(super) fn build(
    config: &ModelConfig,
    has_output_weight: bool,
) -> Result<Program, ProgramError> {
    let mut m = Decoder::new("qwen3", config);
    let mut x = m.embed();
    for layer in 0..config.layers {
        let h = m.norm(x, layer, "input_layernorm");
        let [q, k, v] = m.qkv(h, layer);
        let q = m.head_norm(q, layer, "self_attn.q_norm");
        let k = m.head_norm(k, layer, "self_attn.k_norm");
        let h = m.attend([q, k, v], layer);
        let h = m.attention_out(h, layer);
        x = m.add(x, h);
        let h = m.norm(x, layer, "post_attention_layernorm");
        let h = m.swiglu(h, layer);
        x = m.add(x, h);
    }
    m.finish(x, has_output_weight)
}
