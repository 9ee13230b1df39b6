//! A model as a flat list of kernel-sized operations over named weights.
//!
//! A [`Program`] is what an architecture *is* to a backend. Values are activations: matrices of
//! f32 semantics with one row for each new token of the step (later: for each requested output).
//! Operations are as large as a good fused kernel and no larger. Every value is written once,
//! by the operation that names it as `out`, before it is read.
//!
//! Build one with [`ProgramBuilder`], which checks shapes.

use crate::GroupId;

mod builder;
mod error;
mod experts;
mod op;

pub use builder::{AttentionOptions, ExpertNames, ExpertOptions, ProgramBuilder, Rotary};
pub use error::ProgramError;
pub use experts::{ExpertLinear, MixtureOfExperts, Routing, Scoring};
pub use op::{Activation, Attention, KeyValue, Op, Residual, RopePairs};

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
    /// `[len]`, or `[rows, columns]` with rows = output features (`torch.nn.Linear`), or
    /// `[count, rows, columns]` for a stack of such matrices.
    pub shape: Vec<usize>,
    /// How tensor parallelism divides it.
    pub split: Split,
}

/// How a linear operation is divided between devices (Shoeybi et al., Megatron-LM, 2019).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Every device has it whole.
    None,
    /// Output features are divided; the result is sharded. The weight's rows are divided, in a
    /// stack those of each matrix.
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
