//! A model as a flat list of kernel-sized operations over named weights.
//!
//! A [`Program`] is what an architecture *is* to a backend. Values are activations: matrices of
//! f32 semantics with one row for each new token of the step (later: for each requested output).
//! Operations are as large as a good fused kernel and no larger. Every value is written once,
//! by the operation that names it as `out`, before it is read.
//!
//! Build one with [`ProgramBuilder`], which checks shapes.

use std::sync::Arc;

use crate::GroupId;

mod builder;

pub use builder::{AttentionOptions, ProgramBuilder, Rotary};

/// Index of a value: an activation matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Index of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

impl ValueId {
    /// As an index into [`Program::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl WeightId {
    /// As an index into [`Program::weights`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A model, ready to be compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    name: String,
    vocab_size: u32,
    ops: Vec<Op>,
    values: Vec<Value>,
    weights: Vec<Weight>,
    groups: Vec<PageGroup>,
    logits: ValueId,
}

impl Program {
    /// For people and cache keys.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of token ids, and columns of the logits.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The operations, in an order in which they can run.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The values, by [`ValueId`].
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// The weights, by [`WeightId`].
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The page groups, by [`GroupId`]. At least one.
    pub fn groups(&self) -> &[PageGroup] {
        &self.groups
    }

    /// The value that holds the logits: `[outputs, vocab_size]`.
    pub fn logits(&self) -> ValueId {
        self.logits
    }

    /// The value that the logits are computed from: `[outputs, width]`, the hidden states.
    pub fn hidden(&self) -> ValueId {
        let inputs = self.ops.iter().rev().map(|op| match op {
            Op::Logits { input, .. } => Some(*input),
            _ => None,
        });
        // The builder ends every program with logits.
        inputs.flatten().next().unwrap_or(self.logits)
    }

    /// Elements of K and V together that one position takes in a group, over all its layers.
    pub fn kv_elements(&self, group: GroupId) -> u64 {
        let group = &self.groups[usize::from(group.0)];
        2 * u64::from(group.layers) * u64::from(group.kv_heads) * u64::from(group.head_dim)
    }
}

/// An activation matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Columns, over all devices.
    pub width: u32,
    /// What its rows are.
    pub rows: RowsOf,
    /// With tensor parallelism each device holds its share of the columns; otherwise each holds
    /// all of them.
    pub sharded: bool,
}

/// What the rows of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOf {
    /// The new tokens of the step.
    Tokens,
    /// The requested outputs of the step.
    Outputs,
}

/// A tensor of the model file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Hugging Face's name.
    pub name: String,
    /// `[len]`, or `[rows, columns]` with rows = output features (`torch.nn.Linear`).
    pub shape: Vec<usize>,
    /// How tensor parallelism divides it.
    pub split: Split,
}

/// How a linear operation is divided between devices (Shoeybi et al., Megatron-LM, 2019).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Every device has it whole.
    None,
    /// Output features are divided; the result is sharded. The weight's rows are divided.
    Columns,
    /// Input features are divided; partial results are summed over devices. The weight's columns
    /// are divided.
    Rows,
}

/// Layers that share a page table and a lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageGroup {
    /// Number of layers with KV in this group.
    pub layers: u32,
    /// KV heads of each layer.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Positions older than this are never read again; `None` is full attention.
    pub window: Option<u32>,
}

/// Nonlinearity of a gated activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
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
    /// `normalize(x) = x / sqrt(mean(x²) + eps)` over each run of `weight.len()` columns: the
    /// whole row, or one head of it. Of a sharded row the mean is that over all devices.
    RmsNorm {
        /// What is normalized.
        input: ValueId,
        /// Added before. Then `sum` is written too.
        residual: Option<Residual>,
        /// `[width]` or `[head_dim]`.
        weight: WeightId,
        /// 0, or 1 where the file holds the weight's difference from one.
        weight_offset: f32,
        /// Keeps the root from zero.
        epsilon: f32,
        /// Same shape as the input.
        out: ValueId,
    },
    /// `out = input × weightᵀ (+ bias)`. The weight's split says how devices share it; with
    /// [`Split::Rows`] the results are summed over devices, and the bias is added once.
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
    /// Writes the new tokens' K and V into their pages, then attends to all positions up to each
    /// token's own.
    Attention(Attention),
    /// `out = activation(gate) * up`
    GatedActivation {
        /// `[rows, width]`.
        gate: ValueId,
        /// `[rows, width]`.
        up: ValueId,
        /// The nonlinearity.
        activation: Activation,
        /// `[rows, width]`.
        out: ValueId,
    },
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
            | Self::Scale { input, .. }
            | Self::SoftCap { input, .. }
            | Self::SelectOutputs { input, .. }
            | Self::Logits { input, .. } => [Some(*input), None, None],
            Self::Attention(Attention { query, key, value, .. }) => {
                [Some(*query), Some(*key), Some(*value)]
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
            | Self::Attention(Attention { out, .. })
            | Self::GatedActivation { out, .. }
            | Self::Add { out, .. }
            | Self::Scale { out, .. }
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
    /// `[tokens, kv_heads * head_dim]`.
    pub key: ValueId,
    /// `[tokens, kv_heads * head_dim]`.
    pub value: ValueId,
    /// `[tokens, heads * head_dim]`.
    pub out: ValueId,
    /// The page group that holds its KV.
    pub group: GroupId,
    /// Which of the group's layers this is, from 0.
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

/// A program that is not well formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// Two things that must be equally wide are not.
    #[error("{op}: {what} is {found} wide, but must be {expected}")]
    Width {
        /// The operation.
        op: &'static str,
        /// Which operand.
        what: &'static str,
        /// The width that it must have.
        expected: usize,
        /// The width that it has.
        found: usize,
    },
    /// An operand has rows for tokens where rows for outputs are needed, or the reverse.
    #[error("{op}: {what} must have one row for each {expected:?}")]
    Rows {
        /// The operation.
        op: &'static str,
        /// Which operand.
        what: &'static str,
        /// What its rows must be.
        expected: RowsOf,
    },
    /// Sharded and whole values were mixed.
    #[error("{op}: {what} must {}be divided between devices", if *.expected { "" } else { "not " })]
    Sharding {
        /// The operation.
        op: &'static str,
        /// Which operand.
        what: &'static str,
        /// Whether it must be sharded.
        expected: bool,
    },
    /// A number that makes no sense: zero heads, heads that KV heads don't divide.
    #[error("{op}: {what} can't be {value}")]
    Number {
        /// The operation.
        op: &'static str,
        /// Which number.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// A weight was declared twice with different shapes or splits.
    #[error(
        "weight `{name}` is used with shape {first:?} and with shape {second:?}, or split in two ways"
    )]
    WeightConflict {
        /// The weight's name.
        name: String,
        /// Shape at its first use.
        first: Vec<usize>,
        /// Shape at the later use.
        second: Vec<usize>,
    },
    /// A page group that was not declared.
    #[error("attention names page group {group}, but {groups} are declared")]
    Group {
        /// The group named.
        group: u8,
        /// How many there are.
        groups: usize,
    },
    /// The program ends without logits, or continues after them.
    #[error("a program ends with its logits")]
    Logits,
}
