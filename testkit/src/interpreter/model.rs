//! A program with its weights, and the loop that interprets it.

use engine_core::backend::BackendError;
use engine_core::model::{
    Attention, ExpertLinear, MixtureOfExperts, Op, Program, ValueId, Weight, WeightId,
};
use engine_core::weights::Weights;
use engine_core::{PageId, Token};

use super::attention::attention;
use super::experts::{Layer, Parts, mixture};
use super::kv::PagedKv;
use super::matrix::Matrix;
use super::{BACKEND, ops};

/// A program that was checked against its weights.
#[derive(Clone, Debug)]
pub(super) struct Model {
    program: Program,
    /// By [`WeightId`]; a vector is a matrix of one row, a stack is one matrix of all rows.
    weights: Vec<Matrix>,
}

/// One row of a step: everything that its result depends on, beside the KV memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowInput<'a> {
    /// New tokens; all below the vocabulary size.
    pub(super) tokens: &'a [Token],
    /// Absolute position of the first of them.
    pub(super) position: usize,
    /// After which of them an output is wanted, as indices into `tokens`.
    pub(super) outputs: &'a [usize],
    /// Page tables by group, long enough for the new tokens.
    pub(super) tables: &'a [&'a [PageId]],
}

/// What a program computed of the tokens after which something is wanted.
#[derive(Debug)]
pub(super) struct RowValues {
    /// `[outputs, vocab_size]`.
    pub(super) logits: Matrix,
    /// `[outputs, hidden width]`.
    pub(super) hidden: Matrix,
}

impl Model {
    /// Reads every weight that the program names, as f32.
    pub(super) fn load(program: &Program, weights: &dyn Weights) -> Result<Self, BackendError> {
        for op in program.ops() {
            check_supported(program, op)?;
        }
        let loaded = program.weights().iter().map(|weight| load_weight(weight, weights));
        Ok(Self { program: program.clone(), weights: loaded.collect::<Result<_, _>>()? })
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    /// Interprets the program over one row, with the KV memory of the program's groups.
    pub(super) fn run(&self, row: &RowInput<'_>, kv: &mut [PagedKv]) -> RowValues {
        let mut values: Vec<Matrix> =
            self.program.values().iter().map(|_| Matrix::zeros(0, 0)).collect();
        for op in self.program.ops() {
            self.execute(op, row, kv, &mut values);
        }
        let mut take =
            |id: ValueId| std::mem::replace(&mut values[id.index()], Matrix::zeros(0, 0));
        let hidden = take(self.program.hidden());
        RowValues { logits: take(self.program.logits()), hidden }
    }

    /// Computes one operation from the values before it.
    fn execute(&self, op: &Op, row: &RowInput<'_>, kv: &mut [PagedKv], values: &mut [Matrix]) {
        let read = |id: ValueId| &values[id.index()];
        let (out, result) = match op {
            Op::Embed { weight, scale, out } => {
                (*out, ops::embed(self.weight(*weight), row.tokens, *scale))
            }
            Op::RmsNorm { input, residual, weight, run, weight_offset, epsilon, out } => {
                let weight = weight.map(|weight| self.weight(weight).elements());
                let run = *run as usize;
                let normalize =
                    |x: &Matrix| ops::rms_norm(x, weight, run, *weight_offset, *epsilon);
                match residual {
                    None => (*out, normalize(read(*input))),
                    Some(residual) => {
                        let sum = read(*input).zip(read(residual.value), |x, y| x + y);
                        let normalized = normalize(&sum);
                        values[residual.sum.index()] = sum;
                        (*out, normalized)
                    }
                }
            }
            Op::Linear { input, weight, bias, out } => {
                let bias = bias.map(|bias| self.weight(bias).elements());
                (*out, ops::linear(read(*input), self.weight(*weight), bias))
            }
            Op::Rope { input, head_dim, inverse_frequencies, attention_factor, pairs, out } => {
                let rotated = ops::rope(
                    read(*input),
                    row.position,
                    *head_dim as usize,
                    inverse_frequencies,
                    *attention_factor,
                    *pairs,
                );
                (*out, rotated)
            }
            Op::Attention(op) => {
                let Attention { query, new, out, group, sinks, .. } = op;
                let group = usize::from(group.0);
                let sinks = sinks.map(|sinks| self.weight(sinks).elements());
                let new = new.map(|new| [read(new.key), read(new.value)]);
                let table = row.tables[group];
                (*out, attention(op, read(*query), new, sinks, &mut kv[group], table, row.position))
            }
            Op::ScaleByPosition { input, beta, original_context, out } => {
                let input = read(*input);
                (*out, ops::scale_by_position(input, row.position, *beta, *original_context))
            }
            Op::GatedActivation { gate, up, activation, out } => {
                (*out, ops::gated_activation(read(*gate), read(*up), *activation))
            }
            Op::MixtureOfExperts(op) => {
                (op.out, mixture(op, read(op.input), read(op.scores), &self.parts(op)))
            }
            Op::Multiply { input, weight, out } => {
                (*out, ops::multiply(read(*input), self.weight(*weight).elements()))
            }
            Op::SelectColumns { input, first, out } => {
                let columns = self.program.values()[out.index()].width as usize;
                (*out, ops::select_columns(read(*input), *first as usize, columns))
            }
            Op::Add { left, right, out } => (*out, read(*left).zip(read(*right), |x, y| x + y)),
            Op::Scale { input, factor, out } => (*out, read(*input).map(|x| x * factor)),
            Op::SoftCap { input, cap, out } => {
                (*out, read(*input).map(|x| ops::soft_cap(f64::from(x), *cap) as f32))
            }
            Op::SelectOutputs { input, out } => (*out, ops::select(read(*input), row.outputs)),
            Op::Logits { input, weight, out } => {
                (*out, ops::linear(read(*input), self.weight(*weight), None))
            }
        };
        values[out.index()] = result;
    }

    fn parts(&self, op: &MixtureOfExperts) -> Parts<'_> {
        let layer = |linear: ExpertLinear| Layer {
            weight: self.weight(linear.weight),
            bias: linear.bias.map(|bias| self.weight(bias)),
        };
        let of_each =
            |weight: Option<WeightId>| weight.map(|weight| self.weight(weight).elements());
        Parts {
            gate: layer(op.gate),
            up: layer(op.up),
            down: layer(op.down),
            selection_bias: of_each(op.routing.selection_bias),
            scales: of_each(op.routing.scales),
        }
    }

    fn weight(&self, id: WeightId) -> &Matrix {
        &self.weights[id.index()]
    }
}

/// Refuses attention that reaches further back than its page group keeps pages.
fn check_supported(program: &Program, op: &Op) -> Result<(), BackendError> {
    let Op::Attention(attention) = op else { return Ok(()) };
    let kept = program.groups()[usize::from(attention.group.0)].window;
    if kept.is_none_or(|kept| attention.window.is_some_and(|window| window <= kept)) {
        return Ok(());
    }
    Err(BackendError::Unsupported { backend: BACKEND, what: format!("{op:?}") })
}

fn load_weight(weight: &Weight, weights: &dyn Weights) -> Result<Matrix, BackendError> {
    let tensor = weights.tensor(&weight.name)?;
    let found = tensor.shape().dims();
    if found != weight.shape {
        let (name, expected) = (weight.name.clone(), weight.shape.clone());
        return Err(BackendError::Shape { name, expected, found });
    }
    Ok(Matrix::new(tensor.shape().cols(), tensor.to_f32()))
}
