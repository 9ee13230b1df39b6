//! A family described through the public builder alone, as a user describes one that the library
//! doesn't know.

use engine_core::model::{
    Activation, AttentionOptions, Program, ProgramBuilder, ProgramError, RopePairs, Rotary, Split,
    ValueId,
};
use engine_core::weights::SafetensorsWeights;

use crate::{backends::backends, comparison, fixtures};

/// `config.json` of the fixture.
const VOCAB_SIZE: u32 = 160;
const HIDDEN: usize = 48;
const INTERMEDIATE: usize = 64;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const QUERY_PRE_ATTENTION_SCALAR: f32 = 24.0;
const WINDOW: u32 = 32;
const ATTENTION_CAP: f32 = 5.0;
const LOGITS_CAP: f32 = 8.0;
const ROPE_THETA: f32 = 10_000.0;
const EPSILON: f32 = 1e-6;
const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn gemma_2_through_the_public_builder_equals_transformers() {
    let weights = SafetensorsWeights::open(&fixtures::path("tiny/gemma2")).unwrap();
    let expected = fixtures::read("tiny/gemma2/expected.json");
    comparison::check(&backends(), "gemma2", |_| gemma2().unwrap(), &weights, &expected);
}

/// Gemma 2 (Gemma Team, 2024): norms before and after each block, bounded scores and logits,
/// every other layer sees a window only.
fn gemma2() -> Result<Program, ProgramError> {
    let mut b = ProgramBuilder::new("gemma 2", VOCAB_SIZE);
    let group = b.page_group(KV_HEADS as u32, HEAD_DIM as u32, None);
    let frequency = |pair: usize| ROPE_THETA.powf(-2.0 * pair as f32 / HEAD_DIM as f32);
    let rotary = Rotary {
        inverse_frequencies: (0..HEAD_DIM / 2).map(frequency).collect(),
        attention_factor: 1.0,
        pairs: RopePairs::Halves,
    };
    let mut attention = AttentionOptions::full(HEAD_DIM as u32);
    attention.group = group;
    attention.scale = QUERY_PRE_ATTENTION_SCALAR.powf(-0.5);
    attention.soft_cap = Some(ATTENTION_CAP);

    let mut x = b.embed(EMBEDDING, HIDDEN, (HIDDEN as f32).sqrt());
    for layer in 0..LAYERS {
        attention.window = layer.is_multiple_of(2).then_some(WINDOW);
        let h = norm(&mut b, x, &in_layer(layer, "input_layernorm"));
        let h = attend(&mut b, h, layer, &rotary, &attention);
        let h = norm(&mut b, h, &in_layer(layer, "post_attention_layernorm"));
        x = b.add(x, h);
        let h = norm(&mut b, x, &in_layer(layer, "pre_feedforward_layernorm"));
        let h = feed_forward(&mut b, h, layer);
        let h = norm(&mut b, h, &in_layer(layer, "post_feedforward_layernorm"));
        x = b.add(x, h);
    }
    let x = norm(&mut b, x, "model.norm");
    let x = b.select_outputs(x);
    b.finish_with_logits(x, EMBEDDING, Some(LOGITS_CAP))
}

fn attend(
    b: &mut ProgramBuilder,
    x: ValueId,
    layer: usize,
    rotary: &Rotary,
    attention: &AttentionOptions,
) -> ValueId {
    let [q, k, v] =
        [("q_proj", HEADS), ("k_proj", KV_HEADS), ("v_proj", KV_HEADS)].map(|(part, heads)| {
            let weight = in_layer(layer, &format!("self_attn.{part}.weight"));
            b.linear(x, &weight, heads * HEAD_DIM, Split::Columns)
        });
    let q = b.rope(q, HEAD_DIM as u32, rotary);
    let k = b.rope(k, HEAD_DIM as u32, rotary);
    let h = b.attention(q, k, v, attention);
    b.linear(h, &in_layer(layer, "self_attn.o_proj.weight"), HIDDEN, Split::Rows)
}

fn feed_forward(b: &mut ProgramBuilder, x: ValueId, layer: usize) -> ValueId {
    let gate = in_layer(layer, "mlp.gate_proj.weight");
    let gate = b.linear(x, &gate, INTERMEDIATE, Split::Columns);
    let up = b.linear(x, &in_layer(layer, "mlp.up_proj.weight"), INTERMEDIATE, Split::Columns);
    let h = b.gated_activation(gate, up, Activation::GeluTanh);
    b.linear(h, &in_layer(layer, "mlp.down_proj.weight"), HIDDEN, Split::Rows)
}

/// A norm whose weight is stored less one.
fn norm(b: &mut ProgramBuilder, x: ValueId, name: &str) -> ValueId {
    b.rms_norm_with(x, &format!("{name}.weight"), HIDDEN, EPSILON, 1.0)
}

fn in_layer(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}
