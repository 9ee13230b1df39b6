//! The parts of which the llama-like families are put together, with Hugging Face's names.

use super::OUTPUT_WEIGHT;
use crate::model::config::ModelConfig;
use backend_api::program::{Activation, Program, ProgramError, Split, ValueId};
use backend_api::program::{AttentionOptions, ProgramBuilder, Rotary};

const EMBEDDING: &str = "model.embed_tokens.weight";

/// A program in the making, with what every layer of it shares.
pub(super) struct Decoder<'a> {
    b: ProgramBuilder,
    config: &'a ModelConfig,
    rotary: Rotary,
    attention: AttentionOptions,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(name: &str, config: &'a ModelConfig) -> Self {
        let mut b = ProgramBuilder::new(name, config.vocab_size as u32);
        let head_dim = config.head_dim as u32;
        let rotary = config.rotary();
        let group = b.page_group(config.kv_heads as u32, head_dim, None);
        let attention = AttentionOptions { group, ..AttentionOptions::full(head_dim) };
        Self { b, config, rotary, attention }
    }

    pub(super) fn embed(&mut self) -> ValueId {
        self.b.embed(EMBEDDING, self.config.hidden_size, 1.0)
    }

    pub(super) fn norm(&mut self, x: ValueId, layer: usize, part: &str) -> ValueId {
        let weight = format!("model.layers.{layer}.{part}.weight");
        self.b.rms_norm(x, &weight, self.config.rms_norm_eps)
    }

    pub(super) fn head_norm(&mut self, x: ValueId, layer: usize, part: &str) -> ValueId {
        let weight = format!("model.layers.{layer}.{part}.weight");
        self.b.head_norm(x, &weight, self.config.head_dim as u32, self.config.rms_norm_eps)
    }

    /// Query, key and value of each head.
    pub(super) fn qkv(&mut self, x: ValueId, layer: usize) -> [ValueId; 3] {
        let bias = self.config.qkv_bias;
        let heads = [self.config.heads, self.config.kv_heads, self.config.kv_heads];
        let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        std::array::from_fn(|i| {
            self.linear(x, layer, parts[i], bias, heads[i] * self.config.head_dim, Split::Columns)
        })
    }

    /// Rotates queries and keys, and attends, within the layer's window if it has one.
    pub(super) fn attend(&mut self, [q, k, v]: [ValueId; 3], layer: usize) -> ValueId {
        let head_dim = self.config.head_dim as u32;
        let q = self.b.rope(q, head_dim, &self.rotary);
        let k = self.b.rope(k, head_dim, &self.rotary);
        let window = self.config.window(layer).map(|positions| positions as u32);
        let attention = AttentionOptions { window, ..self.attention.clone() };
        self.b.attention(q, k, v, &attention)
    }

    /// Back from heads to the residual's width.
    pub(super) fn attention_out(&mut self, x: ValueId, layer: usize) -> ValueId {
        let bias = self.config.attention_output_bias;
        self.linear(x, layer, "self_attn.o_proj", bias, self.config.hidden_size, Split::Rows)
    }

    /// The feed-forward network: SwiGLU (Shazeer, 2020).
    pub(super) fn swiglu(&mut self, x: ValueId, layer: usize) -> ValueId {
        let (width, bias) = (self.config.intermediate_size, self.config.mlp_bias);
        let gate = self.linear(x, layer, "mlp.gate_proj", bias, width, Split::Columns);
        let up = self.linear(x, layer, "mlp.up_proj", bias, width, Split::Columns);
        let h = self.b.gated_activation(gate, up, Activation::Silu);
        self.linear(h, layer, "mlp.down_proj", bias, self.config.hidden_size, Split::Rows)
    }

    pub(super) fn add(&mut self, x: ValueId, h: ValueId) -> ValueId {
        self.b.add(x, h)
    }

    /// Final norm and logits of the positions that are wanted.
    pub(super) fn finish(
        mut self,
        x: ValueId,
        has_output_weight: bool,
    ) -> Result<Program, ProgramError> {
        let weight = if has_output_weight { OUTPUT_WEIGHT } else { EMBEDDING };
        let x = self.b.select_outputs(x);
        let x = self.b.rms_norm(x, "model.norm.weight", self.config.rms_norm_eps);
        self.b.finish_with_logits(x, weight, None)
    }

    fn linear(
        &mut self,
        x: ValueId,
        layer: usize,
        part: &str,
        bias: bool,
        width: usize,
        split: Split,
    ) -> ValueId {
        let name = format!("model.layers.{layer}.{part}");
        let bias = bias.then(|| format!("{name}.bias"));
        self.b.linear_with(x, &format!("{name}.weight"), bias.as_deref(), width, split)
    }
}
