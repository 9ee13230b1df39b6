//! The parts of which families put their layers together, with Hugging Face's names.

use std::sync::Arc;

use super::OUTPUT_WEIGHT;
use crate::model::config::{ExpertsConfig, LayerConfig, ModelConfig, Rope};
use backend_api::{
    GroupId,
    program::{
        Activation, AttentionOptions, ExpertNames, ExpertOptions, Program, ProgramBuilder,
        ProgramError, Rotary, Scoring, Split, ValueId,
    },
};

const EMBEDDING: &str = "model.embed_tokens.weight";

/// A program in the making, and the layer that is being described.
pub(crate) struct Decoder<'a> {
    b: ProgramBuilder,
    config: &'a ModelConfig,
    layer: usize,
    /// The page group of each window and size of KV that occurs; without a window first.
    groups: Vec<(Kv, GroupId)>,
    /// By layer that attended: what it computed, of which later layers may read the KV.
    attended: Vec<(usize, ValueId)>,
    /// The inputs of all layers side by side, where layers have some of their own.
    layer_inputs: Option<ValueId>,
    /// The angles of each rotary embedding that occurs.
    rotaries: Vec<(Arc<Rope>, Rotary)>,
}

/// What layers of one page group have in common: window, KV heads, width of a head.
type Kv = (Option<usize>, usize, usize);

fn kv(layer: &LayerConfig) -> Kv {
    (layer.window, layer.kv_heads, layer.head_dim)
}

/// What a family calls the parts of a mixture of experts.
pub(super) struct ExpertParts {
    pub(super) router: &'static str,
    pub(super) gate: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(config: &'a ModelConfig) -> Self {
        let mut b = ProgramBuilder::new(config.architecture.name(), config.vocab_size as u32);
        let mut kinds: Vec<Kv> = config.layers.iter().map(kv).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let group = |kind: Kv| {
            let (window, kv_heads, head_dim) = kind;
            (kind, b.page_group(kv_heads as u32, head_dim as u32, window.map(clamped)))
        };
        let groups = kinds.into_iter().map(group).collect();
        let (attended, rotaries) = (Vec::new(), Vec::new());
        Self { b, config, layer: 0, groups, attended, layer_inputs: None, rotaries }
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
        self.norm_with(x, &weight, self.layer().head_dim)
    }

    /// A norm of each head by itself, without a weight.
    pub(super) fn unit_head_norm(&mut self, x: ValueId) -> ValueId {
        self.b.unit_norm(x, self.layer().head_dim, self.config.rms_norm_eps)
    }

    /// A linear layer without bias.
    pub(super) fn project(&mut self, x: ValueId, part: &str, width: usize) -> ValueId {
        self.linear(x, part, false, width, Split::None)
    }

    /// The query of each head.
    pub(super) fn query(&mut self, x: ValueId) -> ValueId {
        self.heads(x, "self_attn.q_proj", self.config.heads)
    }

    /// Key or value of each head.
    pub(super) fn key_or_value(&mut self, x: ValueId, part: &str) -> ValueId {
        self.heads(x, part, self.layer().kv_heads)
    }

    fn heads(&mut self, x: ValueId, part: &str, heads: usize) -> ValueId {
        let width = heads * self.layer().head_dim;
        self.linear(x, part, self.config.qkv_bias, width, Split::Columns)
    }

    /// Query, key and value of each head.
    pub(super) fn qkv(&mut self, x: ValueId) -> [ValueId; 3] {
        let query = self.query(x);
        let key = self.key_or_value(x, "self_attn.k_proj");
        [query, key, self.key_or_value(x, "self_attn.v_proj")]
    }

    /// Rotates queries and keys where the layer does so, attends within the layer's window, and
    /// leads back to the width of the residual stream.
    pub(super) fn attend(&mut self, [q, k, v]: [ValueId; 3]) -> ValueId {
        let (q, k) = (self.rotated(q), self.rotated(k));
        let q = self.scaled_query(q);
        let options = self.attention();
        let h = self.b.attention(q, k, v, &options);
        self.attended.push((self.layer, h));
        self.attention_out(h)
    }

    /// As [`attend`](Self::attend), to the keys and values of an earlier layer.
    pub(super) fn attend_to(&mut self, q: ValueId, layer: usize) -> ValueId {
        let q = self.rotated(q);
        let q = self.scaled_query(q);
        let options = self.attention();
        let earlier = self.attended.iter().find(|(attended, _)| *attended == layer);
        // Of no layer: the builder says so.
        let earlier = earlier.map_or(q, |(_, out)| *out);
        let h = self.b.attention_to(q, earlier, &options);
        self.attention_out(h)
    }

    fn rotated(&mut self, x: ValueId) -> ValueId {
        let layer = self.layer();
        match &layer.rope {
            Some(rope) => {
                let rotary = self.rotary(rope);
                self.b.rope(x, layer.head_dim as u32, &rotary)
            }
            None => x,
        }
    }

    fn scaled_query(&mut self, q: ValueId) -> ValueId {
        match self.config.query_scaling {
            Some(scaling) => {
                self.b.scale_by_position(q, scaling.beta, clamped(scaling.original_context))
            }
            None => q,
        }
    }

    fn attention(&self) -> AttentionOptions {
        let layer = self.layer();
        let group = self.groups.iter().find(|(kind, _)| *kind == kv(layer));
        let sinks = self.config.attention_sinks;
        AttentionOptions {
            group: group.map_or(GroupId(0), |(_, group)| *group),
            scale: self.config.multipliers.attention,
            window: layer.window.map(clamped),
            soft_cap: self.config.attention_soft_cap,
            sinks: sinks.then(|| self.parameter("self_attn.sinks")),
        }
    }

    fn attention_out(&mut self, h: ValueId) -> ValueId {
        let bias = self.config.attention_output_bias;
        self.linear(h, "self_attn.o_proj", bias, self.config.hidden_size, Split::Rows)
    }

    /// The gated feed-forward network (Shazeer, 2020).
    pub(super) fn mlp(&mut self, x: ValueId) -> ValueId {
        self.gated(x, "mlp", self.layer().intermediate_size, self.config.mlp_bias)
    }

    fn gated(&mut self, x: ValueId, part: &str, width: usize, bias: bool) -> ValueId {
        let name = |layer: &str| format!("{part}.{layer}");
        let gate = self.linear(x, &name("gate_proj"), bias, width, Split::Columns);
        let up = self.linear(x, &name("up_proj"), bias, width, Split::Columns);
        let h = self.b.gated_activation(gate, up, self.config.activation);
        self.linear(h, &name("down_proj"), bias, self.config.hidden_size, Split::Rows)
    }

    /// Whether the layer has a mixture of experts.
    pub(super) fn has_experts(&self) -> bool {
        self.config.experts.is_some() && self.layer().has_experts
    }

    /// A mixture of experts, whose router is a linear layer of the input.
    pub(super) fn experts(&mut self, x: ValueId, parts: &ExpertParts) -> ValueId {
        let Some(experts) = &self.config.experts else { return x };
        let scores = self.linear(x, parts.router, experts.has_bias, experts.count, Split::None);
        self.routed_experts(x, scores, parts, None)
    }

    /// A mixture of experts by the scores of each, with a learned scale for each that has a name.
    pub(super) fn routed_experts(
        &mut self,
        x: ValueId,
        scores: ValueId,
        parts: &ExpertParts,
        scales: Option<&str>,
    ) -> ValueId {
        let Some(experts) = &self.config.experts else { return x };
        let &ExpertsConfig { count, chosen, width, normalize, has_bias, .. } = experts;
        let names = |part: &str| ExpertNames {
            weight: self.name(part, "weight"),
            bias: has_bias.then(|| self.name(part, "bias")),
        };
        let options = ExpertOptions {
            experts: count as u32,
            width,
            chosen: chosen as u32,
            scoring: Scoring::Softmax,
            normalize,
            factor: 1.0,
            selection_bias: None,
            scales: scales.map(|part| self.parameter(part)),
            gate: names(parts.gate),
            up: names(parts.up),
            down: names(parts.down),
            activation: self.config.activation,
        };
        self.b.mixture_of_experts(x, scores, &options)
    }

    /// The expert that all tokens share, behind a gate of one number a token.
    pub(super) fn shared_expert(&mut self, x: ValueId, part: &str, gate: &str) -> ValueId {
        let width = self.config.experts.as_ref().map_or(0, |experts| experts.shared_width);
        if width == 0 {
            return x;
        }
        let h = self.gated(x, part, width, false);
        let gate = self.project(x, gate, 1);
        self.b.gated_activation(gate, h, Activation::Sigmoid)
    }

    /// What experts are chosen by in Gemma 4: the row without its length, scaled, and projected.
    pub(super) fn scaled_router(&mut self, x: ValueId, scale: &str, part: &str) -> ValueId {
        let (width, epsilon) = (self.config.hidden_size, self.config.rms_norm_eps);
        let scale = self.parameter(scale);
        let h = self.b.rms_norm_with(x, &scale, width, epsilon, 0.0);
        let h = self.b.scale(h, 1.0 / (width as f32).sqrt());
        let experts = self.config.experts.as_ref().map_or(0, |experts| experts.count);
        self.project(h, part, experts)
    }

    /// `left + right`, of two branches.
    pub(super) fn sum(&mut self, left: ValueId, right: ValueId) -> ValueId {
        self.b.add(left, right)
    }

    /// Times a learned number.
    pub(super) fn scaled_by(&mut self, x: ValueId, part: &str) -> ValueId {
        let weight = self.parameter(part);
        self.b.multiply(x, &weight, 1)
    }

    /// The inputs that layers have of their own, of which each takes its columns: of the token
    /// itself, from a table, and of its embedding `x`.
    pub(super) fn layer_inputs(&mut self, x: ValueId) {
        let (width, layers) = (self.config.per_layer_width, self.config.layers.len());
        let table = "model.embed_tokens_per_layer.weight";
        let of_token = self.b.embed(table, layers * width, (width as f32).sqrt());
        let weight = "model.per_layer_model_projection.weight";
        let h = self.b.linear(x, weight, layers * width, Split::None);
        let h = self.b.scale(h, 1.0 / (self.config.hidden_size as f32).sqrt());
        let h = self.norm_with(h, "model.per_layer_projection_norm.weight", width);
        let sum = self.b.add(h, of_token);
        self.layer_inputs = Some(self.b.scale(sum, std::f32::consts::FRAC_1_SQRT_2));
    }

    /// The layer's own input behind a gate, back at the width of the residual stream.
    pub(super) fn gated_layer_input(&mut self, x: ValueId, gate: &str, back: &str) -> ValueId {
        let Some(inputs) = self.layer_inputs else { return x };
        let width = self.config.per_layer_width;
        let gate = self.project(x, gate, width);
        let own = self.b.select_columns(inputs, (self.layer * width) as u32, width as u32);
        let h = self.b.gated_activation(gate, own, self.config.activation);
        self.project(h, back, self.config.hidden_size)
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

    /// What the layer that is being described has in particular.
    pub(super) fn config(&self) -> (&'a ModelConfig, &'a LayerConfig) {
        (self.config, self.layer())
    }

    /// A parameter of the layer that is no weight of a linear layer or norm.
    fn parameter(&self, part: &str) -> String {
        format!("model.layers.{}.{part}", self.layer)
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

/// A window, or an interval, beyond all positions is as good as any other.
fn clamped(positions: usize) -> u32 {
    u32::try_from(positions).unwrap_or(u32::MAX)
}
