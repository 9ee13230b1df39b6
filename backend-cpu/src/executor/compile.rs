//! From a [`Program`] and weights to what the forward pass walks.
//!
//! Three things happen: weights are checked and repacked; values are placed in buffers, which are
//! reused once nobody reads them any more; and neighbouring linear operations on the same
//! input (query, key and value; gate and up) become one parallel region.

use std::sync::Arc;

use backend_api::{
    BackendError, GroupId, Limits,
    program::{Activation, Op, Program, RopePairs, RowsOf, ValueId, WeightId},
    weights::{Shape, Weights},
};

use super::BACKEND;
use crate::kernels::{
    panels::PackedMatrix,
    rope::Pairing,
    rows::{Pairwise, Pointwise},
};

/// A program, ready to run.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) instructions: Vec<Instruction>,
    /// What rows each buffer has room for, and how wide they are.
    pub(crate) buffers: Vec<(BufferRows, usize)>,
    pub(crate) weights: LoadedWeights,
    /// Angles to compute for a step: inverse frequencies and the factor on cosine and sine.
    pub(crate) rotaries: Vec<(Arc<[f32]>, f32)>,
    pub(crate) logits: Buffer,
    /// What the logits are computed from.
    pub(crate) hidden: Buffer,
}

impl Compiled {
    /// Bytes of the buffers for the largest step.
    pub(crate) fn activation_bytes(&self, limits: &Limits) -> u64 {
        self.buffers.iter().fold(0, |sum: u64, (rows, width)| {
            let rows = match rows {
                BufferRows::Tokens => limits.tokens,
                BufferRows::Outputs | BufferRows::Logits => limits.outputs,
            };
            let values = u64::from(rows).saturating_mul(*width as u64);
            sum.saturating_add(values.saturating_mul(size_of::<f32>() as u64))
        })
    }
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
    pub(crate) weight: WeightId,
    pub(crate) bias: Option<WeightId>,
    pub(crate) out: Buffer,
}

/// An operation with its operands placed.
#[derive(Debug)]
pub(crate) enum Instruction {
    Embed {
        weight: WeightId,
        scale: f32,
        out: Buffer,
    },
    RmsNorm {
        input: Buffer,
        /// What is added before, and where the sum goes.
        residual: Option<(Buffer, Buffer)>,
        weight: WeightId,
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
    Attention {
        query: Buffer,
        key: Buffer,
        value: Buffer,
        out: Buffer,
        group: GroupId,
        layer: usize,
        heads: usize,
        scale: f32,
        window: Option<usize>,
        soft_cap: Option<f32>,
        sinks: Option<WeightId>,
    },
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
    SelectOutputs {
        input: Buffer,
        out: Buffer,
    },
}

/// Compiles `program`, reading all of its weights.
///
/// # Errors
/// A weight that is missing, has another shape or a format that isn't supported; an operation that
/// this backend does not have.
pub(crate) fn compile(program: &Program, weights: &dyn Weights) -> Result<Compiled, BackendError> {
    let mut placement = Placement::new(program);
    let mut rotaries: Vec<(Arc<[f32]>, f32)> = Vec::new();
    let mut instructions: Vec<Instruction> = Vec::new();
    let ops = program.ops();
    let mut next = 0;
    while let Some(op) = ops.get(next) {
        let run = linear_run(&ops[next..]);
        let instruction = if run > 0 {
            placement.linear(&ops[next..next + run])?
        } else {
            placement.instruction(op, &mut rotaries)?
        };
        instructions.push(instruction);
        next += run.max(1);
        placement.release_before(next);
    }
    let logits = placement.get(program.logits())?;
    let hidden = placement.get(program.hidden())?;
    Ok(Compiled {
        instructions,
        buffers: placement.buffers,
        weights: LoadedWeights::load(program, weights)?,
        rotaries,
        logits,
        hidden,
    })
}

/// Number of linear operations at the front of `ops` that share the first one's input.
fn linear_run(ops: &[Op]) -> usize {
    let Some(Op::Linear { input: shared, .. }) = ops.first() else { return 0 };
    ops.iter().take_while(|op| matches!(op, Op::Linear { input, .. } if input == shared)).count()
}

/// Places values in buffers while operations are walked in order.
struct Placement<'a> {
    program: &'a Program,
    /// By value: after which operation nobody reads it any more.
    last_use: Vec<usize>,
    /// By value.
    placed: Vec<Option<Buffer>>,
    buffers: Vec<(BufferRows, usize)>,
    /// Whether the logits are placed. What follows them is made of them.
    has_logits: bool,
    /// Buffers that nobody reads any more.
    free: Vec<usize>,
}

impl<'a> Placement<'a> {
    fn new(program: &'a Program) -> Self {
        let mut last_use = vec![0; program.values().len()];
        for (index, op) in program.ops().iter().enumerate() {
            for_operands(op, |value| {
                if let Some(last) = last_use.get_mut(value.index()) {
                    *last = index;
                }
            });
        }
        for kept in [program.logits(), program.hidden()] {
            if let Some(last) = last_use.get_mut(kept.index()) {
                *last = usize::MAX;
            }
        }
        let placed = vec![None; program.values().len()];
        Self { program, last_use, placed, buffers: Vec::new(), has_logits: false, free: Vec::new() }
    }

    /// A buffer for a value that is about to be written.
    fn put(&mut self, value: ValueId) -> Result<Buffer, BackendError> {
        let described = self.program.values().get(value.index()).ok_or_else(unknown_value)?;
        let rows = match described.rows {
            RowsOf::Tokens => BufferRows::Tokens,
            RowsOf::Outputs if self.has_logits => BufferRows::Logits,
            RowsOf::Outputs => BufferRows::Outputs,
        };
        let width = described.width as usize;
        let reusable = self.free.iter().position(|&index| self.buffers[index] == (rows, width));
        let index = match reusable {
            Some(position) => self.free.swap_remove(position),
            None => {
                self.buffers.push((rows, width));
                self.buffers.len() - 1
            }
        };
        let buffer = Buffer { index, rows, width };
        self.placed[value.index()] = Some(buffer);
        Ok(buffer)
    }

    /// Where a value that was written is.
    fn get(&self, value: ValueId) -> Result<Buffer, BackendError> {
        self.placed.get(value.index()).copied().flatten().ok_or_else(unknown_value)
    }

    /// Frees what no operation from number `next` on uses.
    fn release_before(&mut self, next: usize) {
        for (placed, last_use) in self.placed.iter_mut().zip(&self.last_use) {
            if *last_use < next
                && let Some(buffer) = placed.take()
            {
                self.free.push(buffer.index);
            }
        }
    }

    fn linear(&mut self, ops: &[Op]) -> Result<Instruction, BackendError> {
        let mut shared = None;
        let mut parts = Vec::with_capacity(ops.len());
        for op in ops {
            if let Op::Linear { input, weight, bias, out } = op {
                shared = Some(self.get(*input)?);
                parts.push(LinearPart { weight: *weight, bias: *bias, out: self.put(*out)? });
            }
        }
        Ok(Instruction::Linear { input: shared.ok_or_else(unknown_value)?, parts })
    }

    fn instruction(
        &mut self,
        op: &Op,
        rotaries: &mut Vec<(Arc<[f32]>, f32)>,
    ) -> Result<Instruction, BackendError> {
        Ok(match op {
            Op::Embed { weight, scale, out } => {
                Instruction::Embed { weight: *weight, scale: *scale, out: self.put(*out)? }
            }
            Op::RmsNorm { input, residual, weight, weight_offset, epsilon, out } => {
                let input = self.get(*input)?;
                let residual = match residual {
                    Some(residual) => Some((self.get(residual.value)?, self.put(residual.sum)?)),
                    None => None,
                };
                Instruction::RmsNorm {
                    input,
                    residual,
                    weight: *weight,
                    offset: *weight_offset,
                    epsilon: *epsilon,
                    out: self.put(*out)?,
                }
            }
            Op::Linear { .. } => self.linear(std::slice::from_ref(op))?,
            Op::Logits { input, weight, out } => {
                let input = self.get(*input)?;
                self.has_logits = true;
                let part = LinearPart { weight: *weight, bias: None, out: self.put(*out)? };
                Instruction::Linear { input, parts: vec![part] }
            }
            Op::Rope { input, head_dim, inverse_frequencies, attention_factor, pairs, out } => {
                let wanted = (Arc::clone(inverse_frequencies), *attention_factor);
                let rotary = rotaries.iter().position(|known| *known == wanted);
                let rotary = rotary.unwrap_or_else(|| {
                    rotaries.push(wanted);
                    rotaries.len() - 1
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
            Op::Attention(attention) => Instruction::Attention {
                query: self.get(attention.query)?,
                key: self.get(attention.key)?,
                value: self.get(attention.value)?,
                out: self.put(attention.out)?,
                group: attention.group,
                layer: attention.layer as usize,
                heads: attention.heads as usize,
                scale: attention.scale,
                window: attention.window.map(|window| window as usize),
                soft_cap: attention.soft_cap,
                sinks: attention.sinks,
            },
            Op::GatedActivation { gate, up, activation, out } => Instruction::Pairwise {
                function: match activation {
                    Activation::Silu => Pairwise::SiluTimes,
                    Activation::GeluTanh => Pairwise::GeluTanhTimes,
                },
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

/// Calls `visit` with every value that an operation reads or writes: a value that is written and
/// never read must still keep its place until it is written.
fn for_operands(op: &Op, mut visit: impl FnMut(ValueId)) {
    match op {
        Op::Embed { out, .. } => visit(*out),
        Op::RmsNorm { input, residual, out, .. } => {
            if let Some(residual) = residual {
                visit(residual.value);
                visit(residual.sum);
            }
            visit(*input);
            visit(*out);
        }
        Op::Attention(attention) => {
            for value in [attention.query, attention.key, attention.value, attention.out] {
                visit(value);
            }
        }
        Op::GatedActivation { gate, up, out, .. } => {
            [*gate, *up, *out].into_iter().for_each(visit);
        }
        Op::Add { left, right, out } => [*left, *right, *out].into_iter().for_each(visit),
        Op::Linear { input, out, .. }
        | Op::Rope { input, out, .. }
        | Op::Scale { input, out, .. }
        | Op::SoftCap { input, out, .. }
        | Op::SelectOutputs { input, out }
        | Op::Logits { input, out, .. } => [*input, *out].into_iter().for_each(visit),
    }
}

fn unsupported(what: String) -> BackendError {
    BackendError::Unsupported { backend: BACKEND, what }
}

fn unknown_value() -> BackendError {
    unsupported("a program that reads a value before it is written".to_owned())
}

/// A program's weights in memory, by [`WeightId`].
#[derive(Debug)]
pub(crate) struct LoadedWeights {
    loaded: Vec<LoadedWeight>,
}

#[derive(Debug)]
enum LoadedWeight {
    Matrix(PackedMatrix),
    Vector(Vec<f32>),
}

impl LoadedWeights {
    fn load(program: &Program, weights: &dyn Weights) -> Result<Self, BackendError> {
        let mut loaded = Vec::with_capacity(program.weights().len());
        for weight in program.weights() {
            let tensor = weights.tensor(&weight.name)?;
            let found = match tensor.shape() {
                Shape::Vector(len) => vec![len],
                Shape::Matrix { rows, cols } => vec![rows, cols],
            };
            if found != weight.shape {
                let (name, expected) = (weight.name.clone(), weight.shape.clone());
                return Err(BackendError::Shape { name, expected, found });
            }
            loaded.push(match tensor.shape() {
                Shape::Vector(_) => LoadedWeight::Vector(tensor.to_f32()),
                Shape::Matrix { .. } => LoadedWeight::Matrix(PackedMatrix::pack(&tensor)),
            });
        }
        let this = Self { loaded };
        this.check_kinds(program)?;
        Ok(this)
    }

    /// A matrix where operations need one, a vector where they need one.
    fn check_kinds(&self, program: &Program) -> Result<(), BackendError> {
        for op in program.ops() {
            let (matrix, vector) = match op {
                Op::Embed { weight, .. } | Op::Logits { weight, .. } => (Some(*weight), None),
                Op::Linear { weight, bias, .. } => (Some(*weight), *bias),
                Op::RmsNorm { weight, .. } => (None, Some(*weight)),
                Op::Attention(attention) => (None, attention.sinks),
                _ => (None, None),
            };
            let wrong = matrix.filter(|weight| self.matrix(*weight).is_none());
            let wrong = wrong.or(vector.filter(|weight| self.vector(*weight).is_none()));
            if let Some(weight) = wrong {
                let name = program.weights().get(weight.index()).map(|weight| &weight.name);
                return Err(unsupported(format!("{op:?} with a weight of the shape of {name:?}")));
            }
        }
        Ok(())
    }

    /// A matrix.
    pub(crate) fn matrix(&self, weight: WeightId) -> Option<&PackedMatrix> {
        match self.loaded.get(weight.index()) {
            Some(LoadedWeight::Matrix(matrix)) => Some(matrix),
            _ => None,
        }
    }

    /// A vector.
    pub(crate) fn vector(&self, weight: WeightId) -> Option<&[f32]> {
        match self.loaded.get(weight.index()) {
            Some(LoadedWeight::Vector(vector)) => Some(vector),
            _ => None,
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |weight: &LoadedWeight| match weight {
            LoadedWeight::Matrix(matrix) => matrix.bytes(),
            LoadedWeight::Vector(vector) => size_of_val(vector.as_slice()),
        };
        self.loaded.iter().map(|weight| bytes(weight) as u64).sum()
    }
}
