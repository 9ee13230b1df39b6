//! The parts of which families put their layers together, with Hugging Face's names.

use std::sync::Arc;

use super::OUTPUT_WEIGHT;
use crate::model::config::{LayerConfig, ModelConfig, Rope};
use backend_api::{
    GroupId,
    program::{AttentionOptions, Program, ProgramBuilder, ProgramError, Rotary, Split, ValueId},
};

const EMBEDDING: &str = "model.embed_tokens.weight";

/// A program in the making, and the layer that is being described.
pub(crate) struct Decoder<'a> {
    b: ProgramBuilder,
    config: &'a ModelConfig,
    layer: usize,
    /// The page group of each window that occurs; without a window first.
    groups: Vec<(Option<usize>, GroupId)>,
    /// The angles of each rotary embedding that occurs.
    rotaries: Vec<(Arc<Rope>, Rotary)>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(config: &'a ModelConfig) -> Self {
        let mut b = ProgramBuilder::new(config.architecture.name(), config.vocab_size as u32);
        let (kv_heads, head_dim) = (config.kv_heads as u32, config.head_dim as u32);
        let mut windows: Vec<Option<usize>> =
            config.layers.iter().map(|layer| layer.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let group =
            |window: Option<usize>| (window, b.page_group(kv_heads, head_dim, window.map(clamped)));
        let groups = windows.into_iter().map(group).collect();
        Self { b, config, layer: 0, groups, rotaries: Vec::new() }
    }

    /// Goes on to another layer.
    pub(super) fn enter(&mut self, layer: usize) {
        self.layer = layer;
    }

    pub(super) fn embed(&mut self) -> ValueId {
        let scale = self.config.multipliers.embedding;
        self.b.embed(EMBEDDING, self.config.hidden_size, scale)
    }

    /// A norm of whole rows: of the residual stream, or of all heads together.
    pub(super) fn norm(&mut self, x: ValueId, part: &str) -> ValueId {
        let weight = self.name(part, "weight");
        self.norm_with(x, &weight, self.b.width(x))
    }

    /// A norm of each head by itself.
    pub(super) fn head_norm(&mut self, x: ValueId, part: &str) -> ValueId {
        let weight = self.name(part, "weight");
        self.norm_with(x, &weight, self.config.head_dim)
    }

    /// Query, key and value of each head.
    pub(super) fn qkv(&mut self, x: ValueId) -> [ValueId; 3] {
        let bias = self.config.qkv_bias;
        let heads = [self.config.heads, self.config.kv_heads, self.config.kv_heads];
        let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        std::array::from_fn(|i| {
            self.linear(x, parts[i], bias, heads[i] * self.config.head_dim, Split::Columns)
        })
    }

    /// Rotates queries and keys where the layer does so, attends within the layer's window, and
    /// leads back to the width of the residual stream.
    pub(super) fn attend(&mut self, [q, k, v]: [ValueId; 3]) -> ValueId {
        let head_dim = self.config.head_dim as u32;
        let LayerConfig { window, rope } = self.layer();
        let [q, k] = match rope {
            Some(rope) => {
                let rotary = self.rotary(rope);
                [q, k].map(|x| self.b.rope(x, head_dim, &rotary))
            }
            None => [q, k],
        };
        let group = self.groups.iter().find(|(size, _)| size == window);
        let attention = AttentionOptions {
            group: group.map_or(GroupId(0), |(_, group)| *group),
            scale: self.config.multipliers.attention,
            window: window.map(clamped),
            soft_cap: self.config.attention_soft_cap,
            ..AttentionOptions::full(head_dim)
        };
        let h = self.b.attention(q, k, v, &attention);
        let bias = self.config.attention_output_bias;
        self.linear(h, "self_attn.o_proj", bias, self.config.hidden_size, Split::Rows)
    }

    /// The gated feed-forward network (Shazeer, 2020).
    pub(super) fn mlp(&mut self, x: ValueId) -> ValueId {
        let (width, bias) = (self.config.intermediate_size, self.config.mlp_bias);
        let gate = self.linear(x, "mlp.gate_proj", bias, width, Split::Columns);
        let up = self.linear(x, "mlp.up_proj", bias, width, Split::Columns);
        let h = self.b.gated_activation(gate, up, self.config.activation);
        self.linear(h, "mlp.down_proj", bias, self.config.hidden_size, Split::Rows)
    }

    /// Joins a branch to the residual stream.
    pub(super) fn add(&mut self, x: ValueId, branch: ValueId) -> ValueId {
        let branch = match self.config.multipliers.residual {
            1.0 => branch,
            factor => self.b.scale(branch, factor),
        };
        self.b.add(x, branch)
    }

    /// Final norm and logits of the positions that are wanted.
    pub(super) fn finish(
        mut self,
        x: ValueId,
        has_output_weight: bool,
    ) -> Result<Program, ProgramError> {
        let weight = if has_output_weight { OUTPUT_WEIGHT } else { EMBEDDING };
        let x = self.b.select_outputs(x);
        let x = self.norm_with(x, "model.norm.weight", self.config.hidden_size);
        let (scale, soft_cap) = (self.config.multipliers.logits, self.config.logits_soft_cap);
        self.b.finish_with_scaled_logits(x, weight, scale, soft_cap)
    }

    fn layer(&self) -> &'a LayerConfig {
        // `build` enters the layers of the configuration, of which validation found at least one.
        &self.config.layers[self.layer]
    }

    fn name(&self, part: &str, kind: &str) -> String {
        format!("model.layers.{}.{part}.{kind}", self.layer)
    }

    fn norm_with(&mut self, x: ValueId, weight: &str, run: usize) -> ValueId {
        let (epsilon, offset) = (self.config.rms_norm_eps, self.config.norm_weight_offset);
        self.b.rms_norm_with(x, weight, run, epsilon, offset)
    }

    fn linear(
        &mut self,
        x: ValueId,
        part: &str,
        bias: bool,
        width: usize,
        split: Split,
    ) -> ValueId {
        let weight = self.name(part, "weight");
        let bias = bias.then(|| self.name(part, "bias"));
        self.b.linear_with(x, &weight, bias.as_deref(), width, split)
    }

    fn rotary(&mut self, rope: &Arc<Rope>) -> Rotary {
        if let Some((_, rotary)) = self.rotaries.iter().find(|(known, _)| Arc::ptr_eq(known, rope))
        {
            return rotary.clone();
        }
        let rotary = rope.rotary(self.config.context_length);
        self.rotaries.push((Arc::clone(rope), rotary.clone()));
        rotary
    }
}

/// A window beyond this is no window.
fn clamped(window: usize) -> u32 {
    u32::try_from(window).unwrap_or(u32::MAX)
}
