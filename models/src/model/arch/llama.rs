//! Llama (Touvron et al., 2023) and what is built like it: Llama 2 and 3, SmolLM2, the distills of
//! DeepSeek R1.

use super::{Decoder, Family};
use backend_api::program::ValueId;

pub(super) static FAMILY: Family = Family {
    name: "llama",
    classes: &["LlamaForCausalLM"],
    model_types: &["llama"],
    gguf_names: &["llama"],
    gguf_reorders_rows: true,
    ..Family::PLAIN
};

pub(super) fn layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let h = m.norm(x, "input_layernorm");
    let qkv = m.qkv(h);
    let h = m.attend(qkv);
    let x = m.add(x, h);
    let h = m.norm(x, "post_attention_layernorm");
    let h = m.mlp(h);
    m.add(x, h)
}
