//! Builds a [`Program`] in the order in which a paper's figure is read.

use std::collections::HashMap;
use std::sync::Arc;

use super::{
    Activation, Attention, KeyValue, Op, PageGroup, Program, ProgramError, Residual, RopePairs,
    RowsOf, Split, Value, ValueId, Weight, WeightId,
};
use crate::GroupId;

/// Builds a [`Program`].
///
/// Each method appends an operation and returns the value that it computes. Mistakes don't
/// interrupt the description of a model: the first one is kept, and
/// [`finish_with_logits`](Self::finish_with_logits) returns it.
///
/// ```
/// use backend_api::program::{Activation, ProgramBuilder, Split};
///
/// let mut b = ProgramBuilder::new("a network without attention", 1000);
/// let x = b.embed("embed.weight", 64, 1.0);
/// let h = b.rms_norm(x, "norm.weight", 1e-5);
/// let gate = b.linear(h, "gate.weight", 128, Split::Columns);
/// let up = b.linear(h, "up.weight", 128, Split::Columns);
/// let h = b.gated_activation(gate, up, Activation::Silu);
/// let h = b.linear(h, "down.weight", 64, Split::Rows);
/// let x = b.add(x, h);
/// let x = b.select_outputs(x);
/// let program = b.finish_with_logits(x, "embed.weight", None)?;
/// assert_eq!(program.vocab_size(), 1000);
/// # Ok::<(), backend_api::program::ProgramError>(())
/// ```
#[derive(Debug)]
pub struct ProgramBuilder {
    program: Program,
    by_name: HashMap<String, WeightId>,
    error: Option<ProgramError>,
}

/// What an attention layer needs beside its three inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Page group of its KV.
    pub group: GroupId,
    /// Factor of the scores.
    pub scale: f32,
    /// How many positions a token sees, its own included.
    pub window: Option<u32>,
    /// Bound of the scores.
    pub soft_cap: Option<f32>,
    /// Name of the `[heads]` weight of attention sinks.
    pub sinks: Option<String>,
}

impl AttentionOptions {
    /// Full causal attention in the first page group, scaled by `1 / sqrt(head_dim)`.
    pub fn full(head_dim: u32) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { group: GroupId(0), scale, window: None, soft_cap: None, sinks: None }
    }
}

/// Rotary embedding's angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians a position, one for each pair of dimensions.
    pub inverse_frequencies: Arc<[f32]>,
    /// Multiplies cosine and sine.
    pub attention_factor: f32,
    /// Which dimensions form a pair.
    pub pairs: RopePairs,
}

impl ProgramBuilder {
    /// An empty program with no page group.
    pub fn new(name: impl Into<String>, vocab_size: u32) -> Self {
        Self {
            program: Program {
                name: name.into(),
                vocab_size,
                ops: Vec::new(),
                values: Vec::new(),
                weights: Vec::new(),
                groups: Vec::new(),
                logits: ValueId(0),
            },
            by_name: HashMap::new(),
            error: None,
        }
    }

    /// Declares a page group; its layers are counted as attention operations join it.
    pub fn page_group(&mut self, kv_heads: u32, head_dim: u32, window: Option<u32>) -> GroupId {
        let id = GroupId(self.program.groups.len() as u8);
        self.program.groups.push(PageGroup { layers: 0, kv_heads, head_dim, window });
        id
    }

    /// Columns of a value, over all devices.
    pub fn width(&self, value: ValueId) -> usize {
        self.at(value).width as usize
    }

    /// Looks the new tokens up in a table and multiplies by `scale`.
    pub fn embed(&mut self, weight: &str, width: usize, scale: f32) -> ValueId {
        // Divided by vocabulary, as the logits' weight is: the two may be one.
        let rows = self.program.vocab_size as usize;
        let weight = self.weight(weight, vec![rows, width], Split::Columns);
        let out = self.value(width as u32, RowsOf::Tokens, false);
        self.program.ops.push(Op::Embed { weight, scale, out });
        out
    }

    /// Root-mean-square norm of whole rows. When `input` was just made by [`add`](Self::add) the two
    /// become one operation.
    pub fn rms_norm(&mut self, input: ValueId, weight: &str, epsilon: f32) -> ValueId {
        self.norm(input, Some(weight), self.width(input), epsilon, 0.0)
    }

    /// Root-mean-square norm of each head by itself (Qwen3's query and key norm).
    pub fn head_norm(
        &mut self,
        input: ValueId,
        weight: &str,
        head_dim: u32,
        epsilon: f32,
    ) -> ValueId {
        self.norm(input, Some(weight), head_dim as usize, epsilon, 0.0)
    }

    /// Root-mean-square norm over runs of `run` columns, with an offset on the weight (Gemma
    /// stores it less one).
    pub fn rms_norm_with(
        &mut self,
        input: ValueId,
        weight: &str,
        run: usize,
        epsilon: f32,
        weight_offset: f32,
    ) -> ValueId {
        self.norm(input, Some(weight), run, epsilon, weight_offset)
    }

    /// Root-mean-square norm over runs of `run` columns, without a weight.
    pub fn unit_norm(&mut self, input: ValueId, run: usize, epsilon: f32) -> ValueId {
        self.norm(input, None, run, epsilon, 0.0)
    }

    fn norm(
        &mut self,
        input: ValueId,
        weight: Option<&str>,
        run: usize,
        epsilon: f32,
        weight_offset: f32,
    ) -> ValueId {
        let Value { width, rows, sharded } = self.at(input);
        if run == 0 || !(width as usize).is_multiple_of(run) {
            let (expected, found) = (width as usize, run);
            self.fail(ProgramError::Width { op: "rms_norm", what: "the weight", expected, found });
        }
        let weight = weight.map(|weight| self.weight(weight, vec![run], Split::None));
        let out = self.value(width, rows, sharded);
        let (input, residual) = match self.program.ops.last() {
            Some(&Op::Add { left, right, out: sum }) if sum == input => {
                self.program.ops.pop();
                (right, Some(Residual { value: left, sum }))
            }
            _ => (input, None),
        };
        let run = run as u32;
        let norm = Op::RmsNorm { input, residual, weight, run, weight_offset, epsilon, out };
        self.program.ops.push(norm);
        out
    }

    /// A linear layer without bias.
    pub fn linear(&mut self, input: ValueId, weight: &str, out: usize, split: Split) -> ValueId {
        self.linear_with(input, weight, None, out, split)
    }

    /// A linear layer, with a bias where one is named.
    pub fn linear_with(
        &mut self,
        input: ValueId,
        weight: &str,
        bias: Option<&str>,
        out_features: usize,
        split: Split,
    ) -> ValueId {
        let Value { width, rows, .. } = self.at(input);
        self.expect_sharded("linear", "the input", input, split == Split::Rows);
        let weight = self.weight(weight, vec![out_features, width as usize], split);
        let bias = bias.map(|name| {
            // The bias lies along the output: divided with it, or added once after the sum.
            let bias_split = if split == Split::Columns { Split::Columns } else { Split::None };
            self.weight(name, vec![out_features], bias_split)
        });
        let out = self.value(out_features as u32, rows, split == Split::Columns);
        self.program.ops.push(Op::Linear { input, weight, bias, out });
        out
    }

    /// Rotary position embedding of each head.
    pub fn rope(&mut self, input: ValueId, head_dim: u32, rotary: &Rotary) -> ValueId {
        let Value { width, rows, sharded } = self.at(input);
        self.expect_rows("rope", "the input", input, RowsOf::Tokens);
        let rotated = 2 * rotary.inverse_frequencies.len();
        if head_dim == 0 || width % head_dim != 0 || rotated > head_dim as usize {
            self.refuse("rope", "head_dim", head_dim);
        }
        let out = self.value(width, rows, sharded);
        self.program.ops.push(Op::Rope {
            input,
            head_dim,
            inverse_frequencies: rotary.inverse_frequencies.clone(),
            attention_factor: rotary.attention_factor,
            pairs: rotary.pairs,
            out,
        });
        out
    }

    /// Multiplies by `1 + beta * ln(1 + floor(position / original_context))`.
    pub fn scale_by_position(
        &mut self,
        input: ValueId,
        beta: f32,
        original_context: u32,
    ) -> ValueId {
        self.expect_rows("scale_by_position", "the input", input, RowsOf::Tokens);
        if original_context == 0 || !beta.is_finite() {
            let value = format!("{beta} and {original_context}");
            self.refuse("scale_by_position", "beta and the original context", value);
        }
        let out = self.same_shape("scale_by_position", input, input);
        self.program.ops.push(Op::ScaleByPosition { input, beta, original_context, out });
        out
    }

    /// Writes K and V to their pages and attends. Heads are counted from the inputs' widths and
    /// the page group.
    pub fn attention(
        &mut self,
        query: ValueId,
        key: ValueId,
        value: ValueId,
        options: &AttentionOptions,
    ) -> ValueId {
        let layer = match self.program.groups.get_mut(usize::from(options.group.0)) {
            Some(group) => {
                group.layers += 1;
                group.layers - 1
            }
            None => 0,
        };
        self.attend(query, Some(KeyValue { key, value }), options, layer)
    }

    /// Attends to the K and V that an earlier attention wrote, whose result was `earlier`. The
    /// page group is that of the earlier one; `options.group` does not matter.
    pub fn attention_to(
        &mut self,
        query: ValueId,
        earlier: ValueId,
        options: &AttentionOptions,
    ) -> ValueId {
        let found = self.program.ops.iter().find_map(|op| match op {
            Op::Attention(attention) if attention.out == earlier => {
                Some((attention.group, attention.layer))
            }
            _ => None,
        });
        let Some((group, layer)) = found else {
            self.fail(ProgramError::NotAttention);
            return self.same_shape("attention", query, query);
        };
        self.attend(query, None, &AttentionOptions { group, ..options.clone() }, layer)
    }

    fn attend(
        &mut self,
        query: ValueId,
        new: Option<KeyValue>,
        options: &AttentionOptions,
        layer: u32,
    ) -> ValueId {
        let Value { width, rows, sharded } = self.at(query);
        let out = self.value(width, rows, sharded);
        let groups = self.program.groups.len();
        let Some(group) = self.program.groups.get(usize::from(options.group.0)) else {
            self.fail(ProgramError::Group { group: options.group.0, groups });
            return out;
        };
        let PageGroup { kv_heads, head_dim, .. } = *group;
        let heads = width.checked_div(head_dim).unwrap_or(0);
        let mut operands = vec![(query, "the query", heads)];
        if let Some(KeyValue { key, value }) = new {
            operands.extend([(key, "the key", kv_heads), (value, "the value", kv_heads)]);
        }
        for (operand, what, heads) in operands {
            self.expect_rows("attention", what, operand, RowsOf::Tokens);
            self.expect_width("attention", what, operand, heads.saturating_mul(head_dim));
            self.expect_sharded("attention", what, operand, sharded);
        }
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
            let value = format!("{heads} with {kv_heads} KV heads");
            self.refuse("attention", "the number of heads", value);
        }
        if options.window == Some(0) {
            self.refuse("attention", "the window", 0);
        }
        let sinks = options
            .sinks
            .as_deref()
            .map(|name| self.weight(name, vec![heads as usize], Split::Columns));
        self.program.ops.push(Op::Attention(Attention {
            query,
            new,
            out,
            group: options.group,
            layer,
            heads,
            kv_heads,
            head_dim,
            scale: options.scale,
            window: options.window,
            soft_cap: options.soft_cap,
            sinks,
        }));
        out
    }

    /// `activation(gate, up)`. The gate is as wide as what it gates, or one column wide.
    pub fn gated_activation(
        &mut self,
        gate: ValueId,
        up: ValueId,
        activation: Activation,
    ) -> ValueId {
        let op = "gated_activation";
        let whole_gate = self.at(gate);
        let out = if whole_gate.width == 1 && !whole_gate.sharded {
            self.expect_rows(op, "the right operand", up, whole_gate.rows);
            self.same_shape(op, up, up)
        } else {
            self.same_shape(op, gate, up)
        };
        self.program.ops.push(Op::GatedActivation { gate, up, activation, out });
        out
    }

    /// `left + right`
    pub fn add(&mut self, left: ValueId, right: ValueId) -> ValueId {
        let out = self.same_shape("add", left, right);
        self.program.ops.push(Op::Add { left, right, out });
        out
    }

    /// `input * factor`
    pub fn scale(&mut self, input: ValueId, factor: f32) -> ValueId {
        let out = self.same_shape("scale", input, input);
        self.program.ops.push(Op::Scale { input, factor, out });
        out
    }

    /// `input * weight`, where `len` says whether the weight is one number or one for each column.
    pub fn multiply(&mut self, input: ValueId, weight: &str, len: usize) -> ValueId {
        let Value { width, sharded, .. } = self.at(input);
        if len != 1 && len != width as usize {
            let (expected, found) = (width as usize, len);
            let what = "the weight";
            self.fail(ProgramError::Width { op: "multiply", what, expected, found });
        }
        let split = if sharded && len != 1 { Split::Columns } else { Split::None };
        let weight = self.weight(weight, vec![len], split);
        let out = self.same_shape("multiply", input, input);
        self.program.ops.push(Op::Multiply { input, weight, out });
        out
    }

    /// Columns `first..first + columns` of a value that isn't sharded.
    pub fn select_columns(&mut self, input: ValueId, first: u32, columns: u32) -> ValueId {
        let Value { width, rows, sharded } = self.at(input);
        let (op, what) = ("select_columns", "the input");
        self.expect_sharded(op, what, input, false);
        let end = first.saturating_add(columns);
        if columns == 0 || end > width {
            let (expected, found) = (end as usize, width as usize);
            self.fail(ProgramError::Width { op, what, expected, found });
        }
        let out = self.value(columns, rows, sharded);
        self.program.ops.push(Op::SelectColumns { input, first, out });
        out
    }

    /// Keeps the rows after which an output is wanted.
    pub fn select_outputs(&mut self, input: ValueId) -> ValueId {
        let Value { width, sharded, .. } = self.at(input);
        self.expect_rows("select_outputs", "the input", input, RowsOf::Tokens);
        let out = self.value(width, RowsOf::Outputs, sharded);
        self.program.ops.push(Op::SelectOutputs { input, out });
        out
    }

    /// Appends the logits, soft-capped where a bound is given, and ends the program.
    ///
    /// # Errors
    ///
    /// The first mistake in the whole description.
    pub fn finish_with_logits(
        self,
        input: ValueId,
        weight: &str,
        soft_cap: Option<f32>,
    ) -> Result<Program, ProgramError> {
        self.finish_with_scaled_logits(input, weight, 1.0, soft_cap)
    }

    /// As [`finish_with_logits`](Self::finish_with_logits), with the logits multiplied by `factor`
    /// before they are capped.
    ///
    /// # Errors
    ///
    /// The first mistake in the whole description.
    pub fn finish_with_scaled_logits(
        mut self,
        input: ValueId,
        weight: &str,
        factor: f32,
        soft_cap: Option<f32>,
    ) -> Result<Program, ProgramError> {
        let width = self.at(input).width;
        self.expect_rows("logits", "the input", input, RowsOf::Outputs);
        self.expect_sharded("logits", "the input", input, false);
        let vocab_size = self.program.vocab_size;
        let weight = self.weight(weight, vec![vocab_size as usize, width as usize], Split::Columns);
        let mut out = self.value(vocab_size, RowsOf::Outputs, true);
        self.program.ops.push(Op::Logits { input, weight, out });
        if factor != 1.0 {
            let input = std::mem::replace(&mut out, self.value(vocab_size, RowsOf::Outputs, true));
            self.program.ops.push(Op::Scale { input, factor, out });
        }
        if let Some(cap) = soft_cap {
            let capped = self.value(vocab_size, RowsOf::Outputs, true);
            self.program.ops.push(Op::SoftCap { input: out, cap, out: capped });
            out = capped;
        }
        self.program.logits = out;
        self.error.map_or(Ok(self.program), Err)
    }

    fn at(&self, value: ValueId) -> Value {
        self.program.values[value.index()]
    }

    fn value(&mut self, width: u32, rows: RowsOf, sharded: bool) -> ValueId {
        let id = ValueId(self.program.values.len() as u32);
        self.program.values.push(Value { width, rows, sharded });
        id
    }

    fn weight(&mut self, name: &str, shape: Vec<usize>, split: Split) -> WeightId {
        if let Some(&id) = self.by_name.get(name) {
            let first = &self.program.weights[id.index()];
            if first.shape != shape || first.split != split {
                let first = first.shape.clone();
                self.fail(ProgramError::WeightConflict { name: name.into(), first, second: shape });
            }
            return id;
        }
        let id = WeightId(self.program.weights.len() as u32);
        self.program.weights.push(Weight { name: name.into(), shape, split });
        self.by_name.insert(name.into(), id);
        id
    }

    fn same_shape(&mut self, op: &'static str, left: ValueId, right: ValueId) -> ValueId {
        let Value { width, rows, sharded } = self.at(left);
        self.expect_width(op, "the right operand", right, width);
        self.expect_rows(op, "the right operand", right, rows);
        self.expect_sharded(op, "the right operand", right, sharded);
        self.value(width, rows, sharded)
    }

    fn expect_width(&mut self, op: &'static str, what: &'static str, value: ValueId, width: u32) {
        let found = self.at(value).width;
        if found != width {
            let (expected, found) = (width as usize, found as usize);
            self.fail(ProgramError::Width { op, what, expected, found });
        }
    }

    fn expect_rows(&mut self, op: &'static str, what: &'static str, value: ValueId, rows: RowsOf) {
        if self.at(value).rows != rows {
            self.fail(ProgramError::Rows { op, what, expected: rows });
        }
    }

    fn expect_sharded(
        &mut self,
        op: &'static str,
        what: &'static str,
        value: ValueId,
        expected: bool,
    ) {
        if self.at(value).sharded != expected {
            self.fail(ProgramError::Sharding { op, what, expected });
        }
    }

    fn refuse(&mut self, op: &'static str, what: &'static str, value: impl ToString) {
        self.fail(ProgramError::Number { op, what, value: value.to_string() });
    }

    fn fail(&mut self, error: ProgramError) {
        self.error.get_or_insert(error);
    }
}

mod experts;
#[cfg(test)]
mod tests;

pub use experts::{ExpertNames, ExpertOptions};
