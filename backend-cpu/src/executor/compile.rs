//! From a [`Program`] to what the forward pass walks.
//!
//! Values are placed in buffers, which are used again once no operation needs the value any more,
//! and neighbouring linear operations on the same input (query, key and value; gate and up) become
//! one parallel region.

use std::sync::Arc;

use backend_api::{
    BackendError, GroupId,
    kit::{Buffers, Liveness},
    program::{Activation, Op, Program, RopePairs, RowsOf, ValueId},
};

use super::{
    BACKEND,
    experts::ExpertsInstruction,
    weights::{MatrixId, VectorId, WeightPlaces},
};
use crate::{
    isa::LANES,
    kernels::{
        rope::Pairing,
        rows::{Pairwise, Pointwise},
    },
};

/// A program, ready to run.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) instructions: Vec<Instruction>,
    /// What rows each buffer has room for, and how wide they are.
    pub(crate) buffers: Vec<(BufferRows, usize)>,
    /// Angles to compute for a step: inverse frequencies and the factor on cosine and sine.
    pub(crate) rotaries: Vec<(Arc<[f32]>, f32)>,
    pub(crate) logits: Buffer,
    /// What the logits are computed from.
    pub(crate) hidden: Buffer,
}

/// What the rows of a buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BufferRows {
    /// New tokens.
    Tokens,
    /// Output rows.
    Outputs,
    /// Output rows that need logits: the first ones.
    Logits,
}

/// A value's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) index: usize,
    pub(crate) rows: BufferRows,
    pub(crate) width: usize,
}

/// One linear operation among those that share an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearPart {
    pub(crate) matrix: MatrixId,
    pub(crate) bias: Option<VectorId>,
    pub(crate) out: Buffer,
}

/// An operation with its operands placed.
#[derive(Debug)]
pub(crate) enum Instruction {
    Embed {
        matrix: MatrixId,
        scale: f32,
        out: Buffer,
    },
    RmsNorm {
        input: Buffer,
        /// What is added before, and where the sum goes.
        residual: Option<(Buffer, Buffer)>,
        weight: VectorId,
        offset: f32,
        epsilon: f32,
        out: Buffer,
    },
    Linear {
        input: Buffer,
        parts: Vec<LinearPart>,
    },
    Rope {
        input: Buffer,
        head_dim: usize,
        /// Index into [`Compiled::rotaries`].
        rotary: usize,
        pairing: Pairing,
        out: Buffer,
    },
    Attention(AttentionInstruction),
    Pairwise {
        function: Pairwise,
        a: Buffer,
        b: Buffer,
        out: Buffer,
    },
    Pointwise {
        function: Pointwise,
        input: Buffer,
        out: Buffer,
    },
    Multiply {
        input: Buffer,
        weight: VectorId,
        out: Buffer,
    },
    ScaleByPosition {
        input: Buffer,
        beta: f32,
        original_context: u32,
        out: Buffer,
    },
    SelectColumns {
        input: Buffer,
        first: usize,
        out: Buffer,
    },
    Experts(ExpertsInstruction),
    SelectOutputs {
        input: Buffer,
        out: Buffer,
    },
}

/// Operands of attention.
#[derive(Debug)]
pub(crate) struct AttentionInstruction {
    pub(crate) query: Buffer,
    /// K and V of the new tokens, unless an earlier layer wrote them.
    pub(crate) new: Option<[Buffer; 2]>,
    pub(crate) out: Buffer,
    /// Among those of the program.
    pub(crate) group: GroupId,
    pub(crate) layer: usize,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) sinks: Option<VectorId>,
}

impl AttentionInstruction {
    /// Values of a state: for each head a weighted sum, padded.
    pub(crate) fn state_width(&self) -> usize {
        (self.query.width / self.heads.max(1)).next_multiple_of(LANES) * self.heads
    }
}

/// Compiles a program whose weights are loaded.
///
/// # Errors
/// An operation on a weight of another kind than it needs.
pub(crate) fn compile(
    program: &Program,
    weights: &WeightPlaces<'_>,
) -> Result<Compiled, BackendError> {
    let mut placement = Placement::new(program, weights);
    let mut instructions: Vec<Instruction> = Vec::new();
    let ops = program.ops();
    let mut next = 0;
    while let Some(op) = ops.get(next) {
        let run = linear_run(&ops[next..]);
        let instruction = if run > 0 {
            placement.linear(&ops[next..next + run])?
        } else {
            placement.instruction(op)?
        };
        instructions.push(instruction);
        let done = next..next + run.max(1);
        next = done.end;
        done.for_each(|op| placement.release_after(op));
    }
    Ok(Compiled {
        instructions,
        logits: placement.get(program.logits())?,
        hidden: placement.get(program.hidden())?,
        buffers: placement.buffers.into_kinds(),
        rotaries: placement.rotaries,
    })
}

/// Number of linear operations at the front of `ops` that share the first one's input.
fn linear_run(ops: &[Op]) -> usize {
    let Some(Op::Linear { input: shared, .. }) = ops.first() else { return 0 };
    ops.iter().take_while(|op| matches!(op, Op::Linear { input, .. } if input == shared)).count()
}

/// Places values in buffers while operations are walked in order.
pub(super) struct Placement<'a> {
    program: &'a Program,
    pub(super) weights: &'a WeightPlaces<'a>,
    liveness: Liveness,
    /// By value.
    placed: Vec<Option<Buffer>>,
    /// Of rows and width.
    buffers: Buffers<(BufferRows, usize)>,
    rotaries: Vec<(Arc<[f32]>, f32)>,
    /// Whether the logits are placed. What follows them is made of them.
    has_logits: bool,
}

impl<'a> Placement<'a> {
    fn new(program: &'a Program, weights: &'a WeightPlaces<'a>) -> Self {
        Self {
            program,
            weights,
            liveness: Liveness::new(program, &[program.logits(), program.hidden()]),
            placed: vec![None; program.values().len()],
            buffers: Buffers::default(),
            rotaries: Vec::new(),
            has_logits: false,
        }
    }

    /// A buffer for a value that is about to be written.
    pub(super) fn put(&mut self, value: ValueId) -> Result<Buffer, BackendError> {
        let described = self.program.values().get(value.index()).ok_or_else(unknown_value)?;
        let rows = match described.rows {
            RowsOf::Tokens => BufferRows::Tokens,
            RowsOf::Outputs if self.has_logits => BufferRows::Logits,
            RowsOf::Outputs => BufferRows::Outputs,
        };
        let width = described.width as usize;
        let index = self.buffers.take((rows, width));
        let buffer = Buffer { index, rows, width };
        self.placed[value.index()] = Some(buffer);
        Ok(buffer)
    }

    /// A buffer that only one operation needs.
    pub(super) fn scratch(&mut self, rows: BufferRows, width: usize) -> Buffer {
        Buffer { index: self.buffers.take((rows, width)), rows, width }
    }

    /// Takes such a buffer back.
    pub(super) fn give_back(&mut self, scratch: Buffer) {
        self.buffers.give_back(scratch.index);
    }

    /// Where a value that was written is.
    pub(super) fn get(&self, value: ValueId) -> Result<Buffer, BackendError> {
        self.placed.get(value.index()).copied().flatten().ok_or_else(unknown_value)
    }

    /// Frees what no operation after number `op` needs.
    fn release_after(&mut self, op: usize) {
        for value in self.liveness.dying_after(op) {
            if let Some(buffer) = self.placed[value.index()].take() {
                self.buffers.give_back(buffer.index);
            }
        }
    }

    fn linear(&mut self, ops: &[Op]) -> Result<Instruction, BackendError> {
        let mut shared = None;
        let mut parts = Vec::with_capacity(ops.len());
        for op in ops {
            if let Op::Linear { input, weight, bias, out } = op {
                shared = Some(self.get(*input)?);
                let matrix = self.weights.matrix(*weight)?;
                let bias = bias.map(|bias| self.weights.vector(bias)).transpose()?;
                parts.push(LinearPart { matrix, bias, out: self.put(*out)? });
            }
        }
        Ok(Instruction::Linear { input: shared.ok_or_else(unknown_value)?, parts })
    }

    fn instruction(&mut self, op: &Op) -> Result<Instruction, BackendError> {
        Ok(match op {
            Op::Embed { weight, scale, out } => {
                let matrix = self.weights.matrix(*weight)?;
                Instruction::Embed { matrix, scale: *scale, out: self.put(*out)? }
            }
            Op::RmsNorm { input, residual, weight, run, weight_offset, epsilon, out } => {
                let input = self.get(*input)?;
                let residual = match residual {
                    Some(residual) => Some((self.get(residual.value)?, self.put(residual.sum)?)),
                    None => None,
                };
                Instruction::RmsNorm {
                    input,
                    residual,
                    weight: self.weights.norm(*weight, *run)?,
                    offset: *weight_offset,
                    epsilon: *epsilon,
                    out: self.put(*out)?,
                }
            }
            Op::Linear { .. } => self.linear(std::slice::from_ref(op))?,
            Op::Logits { input, weight, out } => {
                let input = self.get(*input)?;
                self.has_logits = true;
                let matrix = self.weights.matrix(*weight)?;
                let part = LinearPart { matrix, bias: None, out: self.put(*out)? };
                Instruction::Linear { input, parts: vec![part] }
            }
            Op::Rope { input, head_dim, inverse_frequencies, attention_factor, pairs, out } => {
                let wanted = (Arc::clone(inverse_frequencies), *attention_factor);
                let rotary = self.rotaries.iter().position(|known| *known == wanted);
                let rotary = rotary.unwrap_or_else(|| {
                    self.rotaries.push(wanted);
                    self.rotaries.len() - 1
                });
                Instruction::Rope {
                    input: self.get(*input)?,
                    head_dim: *head_dim as usize,
                    rotary,
                    pairing: match pairs {
                        RopePairs::Halves => Pairing::Halves,
                        RopePairs::Adjacent => Pairing::Adjacent,
                    },
                    out: self.put(*out)?,
                }
            }
            Op::Attention(attention) => Instruction::Attention(AttentionInstruction {
                query: self.get(attention.query)?,
                new: match attention.new {
                    Some(new) => Some([self.get(new.key)?, self.get(new.value)?]),
                    None => None,
                },
                out: self.put(attention.out)?,
                group: attention.group,
                layer: attention.layer as usize,
                heads: attention.heads as usize,
                scale: attention.scale,
                window: attention.window.map(|window| window as usize),
                soft_cap: attention.soft_cap,
                sinks: attention.sinks.map(|sinks| self.weights.vector(sinks)).transpose()?,
            }),
            Op::GatedActivation { gate, up, activation, out } => Instruction::Pairwise {
                function: pairwise(*activation),
                a: self.get(*gate)?,
                b: self.get(*up)?,
                out: self.put(*out)?,
            },
            Op::Add { left, right, out } => Instruction::Pairwise {
                function: Pairwise::Add,
                a: self.get(*left)?,
                b: self.get(*right)?,
                out: self.put(*out)?,
            },
            Op::Scale { input, factor, out } => Instruction::Pointwise {
                function: Pointwise::Scale(*factor),
                input: self.get(*input)?,
                out: self.put(*out)?,
            },
            Op::Multiply { input, weight, out } => Instruction::Multiply {
                input: self.get(*input)?,
                weight: self.weights.vector(*weight)?,
                out: self.put(*out)?,
            },
            Op::ScaleByPosition { input, beta, original_context, out } => {
                Instruction::ScaleByPosition {
                    input: self.get(*input)?,
                    beta: *beta,
                    original_context: *original_context,
                    out: self.put(*out)?,
                }
            }
            Op::SelectColumns { input, first, out } => Instruction::SelectColumns {
                input: self.get(*input)?,
                first: *first as usize,
                out: self.put(*out)?,
            },
            Op::MixtureOfExperts(mixture) => Instruction::Experts(self.experts(mixture)?),
            Op::SoftCap { input, cap, out } => Instruction::Pointwise {
                function: Pointwise::SoftCap(*cap),
                input: self.get(*input)?,
                out: self.put(*out)?,
            },
            Op::SelectOutputs { input, out } => {
                Instruction::SelectOutputs { input: self.get(*input)?, out: self.put(*out)? }
            }
        })
    }
}

/// The function of gate and up.
pub(super) fn pairwise(activation: Activation) -> Pairwise {
    match activation {
        Activation::Identity => Pairwise::Multiply,
        Activation::Sigmoid => Pairwise::SigmoidTimes,
        Activation::Silu => Pairwise::SiluTimes,
        Activation::GeluTanh => Pairwise::GeluTanhTimes,
        Activation::ClampedSwiglu { slope, limit } => Pairwise::ClampedSwiglu { slope, limit },
    }
}

fn unsupported(what: String) -> BackendError {
    BackendError::Unsupported { backend: BACKEND, what }
}

fn unknown_value() -> BackendError {
    unsupported("a program that reads a value before it is written".to_owned())
}
