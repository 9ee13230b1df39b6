//! The operations of a program.

use std::sync::Arc;

use super::{MixtureOfExperts, ValueId, WeightId};
use crate::GroupId;

/// What becomes of a gate and of the value that it gates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `gate * up`.
    Identity,
    /// `sigmoid(gate) * up`.
    Sigmoid,
    /// `silu(gate) * up`, where `silu(x) = x * sigmoid(x)`.
    Silu,
    /// `gelu(gate) * up`, where `gelu(x) = 0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `g * sigmoid(slope * g) * (u + 1)`, where `g = min(gate, limit)` and `u` is `up` within
    /// `-limit..=limit` (gpt-oss, OpenAI, 2025).
    ClampedSwiglu {
        /// Factor inside of the sigmoid.
        slope: f32,
        /// Bound of what is gated, and upper bound of the gate.
        limit: f32,
    },
}

/// How rotary embedding pairs the dimensions of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `i` with `i + rotary_dim / 2`: Hugging Face, GPT-NeoX.
    Halves,
    /// `2 i` with `2 i + 1`: the paper, Meta's llama files.
    Adjacent,
}

/// One operation. Values are f32; a backend may compute in less where it states so.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out[t] = weight[token[t]] * scale`
    Embed {
        /// `[vocab_size, width]`.
        weight: WeightId,
        /// 1, or what the architecture multiplies embeddings with.
        scale: f32,
        /// `[tokens, width]`.
        out: ValueId,
    },
    /// `out = normalize(sum) * (weight + weight_offset)`, where `sum = input (+ residual)` and
    /// `normalize(x) = x / sqrt(mean(x²) + eps)` over each run of `run` columns: the whole row, or
    /// one head of it. A row of a sharded value is whole over all devices.
    RmsNorm {
        /// What is normalized.
        input: ValueId,
        /// Added before. Then `sum` is written too.
        residual: Option<Residual>,
        /// `[run]`; `None` stands for ones.
        weight: Option<WeightId>,
        /// Columns of a run; divides the width.
        run: u32,
        /// 0, or 1 where the file holds the weight's difference from one.
        weight_offset: f32,
        /// Keeps the root from zero.
        epsilon: f32,
        /// Same shape as the input.
        out: ValueId,
    },
    /// `out = input × weightᵀ (+ bias)`. The weight's split says how devices share it; with
    /// [`Split::Rows`](super::Split::Rows) the results are summed over devices, and the bias is added once.
    Linear {
        /// `[rows, in_features]`.
        input: ValueId,
        /// `[out_features, in_features]`.
        weight: WeightId,
        /// `[out_features]`.
        bias: Option<WeightId>,
        /// `[rows, out_features]`.
        out: ValueId,
    },
    /// Rotary position embedding (Su et al., RoFormer, 2021) of each head by the row's absolute
    /// position `p`: the pair `(a, b)` number `i` becomes `(a cos θ - b sin θ, b cos θ + a sin θ)`
    /// with `θ = p * inverse_frequencies[i]`, all times `attention_factor`.
    Rope {
        /// `[tokens, heads * head_dim]`.
        input: ValueId,
        /// Width of a head. Dimensions beyond `2 * inverse_frequencies.len()` pass unchanged.
        head_dim: u32,
        /// Radians a position, one for each pair. Scaling of long contexts is in here.
        inverse_frequencies: Arc<[f32]>,
        /// 1, or what YaRN multiplies cosine and sine with.
        attention_factor: f32,
        /// Which dimensions form a pair.
        pairs: RopePairs,
        /// Same shape as the input.
        out: ValueId,
    },
    /// `out = input * (1 + beta * ln(1 + floor(p / original_context)))`, where `p` is the row's
    /// absolute position: queries whose scores grow with the context (Llama 4; Ministral 3).
    ScaleByPosition {
        /// `[tokens, width]`.
        input: ValueId,
        /// How much larger.
        beta: f32,
        /// Positions up to which nothing is scaled, at least 1.
        original_context: u32,
        /// Same shape.
        out: ValueId,
    },
    /// Writes the new tokens' K and V into their pages, then attends to all positions up to each
    /// token's own.
    Attention(Attention),
    /// `out = activation(gate, up)`, element by element.
    GatedActivation {
        /// `[rows, width]`, or `[rows, 1]` for one gate a row.
        gate: ValueId,
        /// `[rows, width]`.
        up: ValueId,
        /// The function.
        activation: Activation,
        /// `[rows, width]`.
        out: ValueId,
    },
    /// Sends each row through a few of many feed-forward networks.
    MixtureOfExperts(MixtureOfExperts),
    /// `out = left + right`
    Add {
        /// One summand.
        left: ValueId,
        /// The other.
        right: ValueId,
        /// The sum.
        out: ValueId,
    },
    /// `out = input * factor`
    Scale {
        /// What is scaled.
        input: ValueId,
        /// By what.
        factor: f32,
        /// Same shape.
        out: ValueId,
    },
    /// `out = input * weight`, column by column.
    Multiply {
        /// `[rows, width]`.
        input: ValueId,
        /// `[width]`, or `[1]` for all columns.
        weight: WeightId,
        /// Same shape as the input.
        out: ValueId,
    },
    /// Keeps neighbouring columns: `out[r, c] = input[r, first + c]`.
    SelectColumns {
        /// `[rows, width]`, not sharded.
        input: ValueId,
        /// The first column that is kept.
        first: u32,
        /// `[rows, columns]`.
        out: ValueId,
    },
    /// `out = cap * tanh(input / cap)`
    SoftCap {
        /// What is capped.
        input: ValueId,
        /// The bound.
        cap: f32,
        /// Same shape.
        out: ValueId,
    },
    /// Keeps the rows after which an output is wanted: `out[o] = input[outputs[o].token]`.
    SelectOutputs {
        /// `[tokens, width]`.
        input: ValueId,
        /// `[outputs, width]`.
        out: ValueId,
    },
    /// `out = input × weightᵀ`: like a linear operation over the vocabulary, kept apart since
    /// backends shard it and sample from it.
    Logits {
        /// `[outputs, width]`.
        input: ValueId,
        /// `[vocab_size, width]`; may be the embedding's.
        weight: WeightId,
        /// `[outputs, vocab_size]`.
        out: ValueId,
    },
}

impl Op {
    /// The values that it reads.
    pub fn inputs(&self) -> impl Iterator<Item = ValueId> {
        let values = match self {
            Self::Embed { .. } => [None; 3],
            Self::RmsNorm { input, residual, .. } => {
                [Some(*input), residual.map(|r| r.value), None]
            }
            Self::Linear { input, .. }
            | Self::Rope { input, .. }
            | Self::ScaleByPosition { input, .. }
            | Self::Scale { input, .. }
            | Self::Multiply { input, .. }
            | Self::SelectColumns { input, .. }
            | Self::SoftCap { input, .. }
            | Self::SelectOutputs { input, .. }
            | Self::Logits { input, .. } => [Some(*input), None, None],
            Self::Attention(Attention { query, new, .. }) => {
                [Some(*query), new.map(|new| new.key), new.map(|new| new.value)]
            }
            Self::MixtureOfExperts(MixtureOfExperts { input, scores, .. }) => {
                [Some(*input), Some(*scores), None]
            }
            Self::GatedActivation { gate, up, .. } => [Some(*gate), Some(*up), None],
            Self::Add { left, right, .. } => [Some(*left), Some(*right), None],
        };
        values.into_iter().flatten()
    }

    /// The values that it writes.
    pub fn outputs(&self) -> impl Iterator<Item = ValueId> {
        let values = match self {
            Self::RmsNorm { residual, out, .. } => [Some(*out), residual.map(|r| r.sum)],
            Self::Embed { out, .. }
            | Self::Linear { out, .. }
            | Self::Rope { out, .. }
            | Self::ScaleByPosition { out, .. }
            | Self::MixtureOfExperts(MixtureOfExperts { out, .. })
            | Self::Attention(Attention { out, .. })
            | Self::GatedActivation { out, .. }
            | Self::Add { out, .. }
            | Self::Scale { out, .. }
            | Self::Multiply { out, .. }
            | Self::SelectColumns { out, .. }
            | Self::SoftCap { out, .. }
            | Self::SelectOutputs { out, .. }
            | Self::Logits { out, .. } => [Some(*out), None],
        };
        values.into_iter().flatten()
    }
}

/// The residual of a fused norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residual {
    /// What is added to the input.
    pub value: ValueId,
    /// Receives `input + value`, before it is normalized.
    pub sum: ValueId,
}

/// K and V of the new tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// `[tokens, kv_heads * head_dim]`.
    pub key: ValueId,
    /// `[tokens, kv_heads * head_dim]`.
    pub value: ValueId,
}

/// Operands of [`Op::Attention`]: grouped-query attention (Ainslie et al., 2023) over paged KV.
///
/// For each query head `h`, with KV head `h / (heads / kv_heads)`, and each new token at position
/// `p`: `softmax_j(cap(scale * q·k_j)) v_j` over positions `j <= p` with `p - j < window`, where
/// `cap(x)` is `soft_cap * tanh(x / soft_cap)` or `x`. A sink adds `exp(sink[h])` to the
/// denominator.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// `[tokens, heads * head_dim]`.
    pub query: ValueId,
    /// K and V of the new tokens. `None` where an earlier attention wrote those of the layer in
    /// this step (Gemma 3n and 4: layers that share KV).
    pub new: Option<KeyValue>,
    /// `[tokens, heads * head_dim]`.
    pub out: ValueId,
    /// The page group that holds its KV.
    pub group: GroupId,
    /// Which of the group's layers it reads, from 0.
    pub layer: u32,
    /// Query heads.
    pub heads: u32,
    /// KV heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// How many positions, its own included, a token sees; `None` is all.
    pub window: Option<u32>,
    /// Bound of the scores.
    pub soft_cap: Option<f32>,
    /// `[heads]`: a learned logit that takes part in the softmax and has no value.
    pub sinks: Option<WeightId>,
}
