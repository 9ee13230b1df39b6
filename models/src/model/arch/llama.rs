//! Llama (Touvron et al., 2023) and what is built like it: Llama 2 and 3, SmolLM2.

use super::decoder::Decoder;
use crate::model::config::ModelConfig;
use backend_api::program::{Program, ProgramError};

pub(super) fn build(
    config: &ModelConfig,
    has_output_weight: bool,
) -> Result<Program, ProgramError> {
    let mut m = Decoder::new("llama", config);
    let mut x = m.embed();
    for layer in 0..config.layers {
        let h = m.norm(x, layer, "input_layernorm");
        let qkv = m.qkv(h, layer);
        let h = m.attend(qkv, layer);
        let h = m.attention_out(h, layer);
        x = m.add(x, h);
        let h = m.norm(x, layer, "post_attention_layernorm");
        let h = m.swiglu(h, layer);
        x = m.add(x, h);
    }
    m.finish(x, has_output_weight)
}
