//! The step: embeds the new tokens, runs the layers, writes KV, and ends with logits.

use std::sync::Arc;

use backend_api::{
    BackendError,
    program::{Program, ValueId},
};

use super::{
    Geometry, Module, Placed,
    attention::RaggedRows,
    placement::{PlacedWeight, Placement},
    unsupported,
};
use crate::pallas::Kernels;
use crate::stablehlo::{Element, Function, Input, Order, Output, Sharding, Type, Value};

/// The shape of a step: a bucket.
///
/// Tokens lie in one of two orders, padding included. In runs: one for each decode row, then
/// `blocks` runs of `block` tokens, each run from one other row; so the portable attention reads
/// them. Or ragged: row behind row, of `decode` rows in all, in as many tokens, with padding at the
/// end; so the kernel reads them. In a shape without decode rows, all rows lie in runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StepShape {
    /// Rows with one new token; in ragged order, rows of any kind.
    pub(crate) decode: usize,
    /// Runs of tokens of prefill rows.
    pub(crate) blocks: usize,
    /// Tokens in a run.
    pub(crate) block: usize,
    /// Tokens whose logits are wanted.
    pub(crate) outputs: usize,
    /// Tokens whose hidden states are wanted: those that the logits are made of.
    pub(crate) hidden: usize,
    pub(crate) is_ragged: bool,
}

impl StepShape {
    /// Tokens, padding included.
    pub(crate) fn tokens(&self) -> usize {
        self.decode + self.blocks * self.block
    }

    /// Runs that a row of so many tokens takes.
    pub(crate) fn runs(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block)
    }

    /// Length of the control vector: for each token its id (or -1: the slot's next token), its
    /// slot and its position; for each output, and then for each hidden state, its token's index. In
    /// ragged order also: for each
    /// row its slot and the length of its KV with the new tokens; the bounds between rows, from 0
    /// to the number of tokens; the number of rows. Bounds and rows are without padding.
    pub(crate) fn control_len(&self) -> usize {
        let of_rows = if self.is_ragged { 3 * self.decode + 2 } else { 0 };
        3 * self.tokens() + self.outputs + self.hidden + of_rows
    }
}

/// What is being lowered, and what is known so far.
pub(super) struct Lowering<'a> {
    pub(super) function: Function,
    pub(super) program: &'a Program,
    pub(super) placement: &'a Placement,
    pub(super) geometry: &'a Geometry,
    pub(super) shape: StepShape,
    /// The kernels that attend, if the step is ragged.
    pub(super) kernels: Option<&'a Kernels>,
    /// By [`ValueId`].
    pub(super) values: Vec<Option<Value>>,
    /// By [`WeightId`](backend_api::program::WeightId).
    pub(super) weights: Vec<Value>,
    /// Where a weight's arrays begin among all, by weight.
    pub(super) arrays: Vec<usize>,
    /// The arrays of all weights.
    pub(super) all_arrays: Vec<Value>,
    /// As they are after the layers so far; see [`Geometry::kv_types`].
    pub(super) kv: Vec<Value>,
    pub(super) tables: Vec<Value>,
    /// `[tokens]` each.
    pub(super) token_ids: Value,
    pub(super) token_slots: Value,
    pub(super) positions: Value,
    /// `[outputs + hidden]`.
    pub(super) output_tokens: Value,
    /// `[hidden, width]` in `f32`, if any are wanted.
    pub(super) hidden: Option<Value>,
    /// For each page group the flat position that each token writes: `page * page_size + offset`.
    pub(super) destinations: Vec<Option<Value>>,
    pub(super) rotations: Vec<Rotation>,
    /// What the kernel reads of rows, if the step is ragged.
    pub(super) rows: Option<RaggedRows>,
}

/// Cosines and sines of all tokens, shared by the layers that rotate alike.
pub(super) struct Rotation {
    pub(super) frequencies: Arc<[f32]>,
    pub(super) factor: f32,
    /// `[tokens, pairs]` each.
    pub(super) cosine: Value,
    pub(super) sine: Value,
}

/// Lowers a program to the step of one shape.
///
/// Arguments: the weights; the KV arrays, which are donated; the page tables; the next tokens; the
/// control vector. Results: the KV arrays; the logits, `[outputs, vocab_size]` in `f32`; the hidden
/// states, `[hidden, width]` in `f32`, if the shape has any.
pub(crate) fn step(placed: &Placed, shape: StepShape) -> Result<Module, BackendError> {
    let Placed { program, placement, .. } = placed;
    let inputs = Inputs::new(placed, shape);
    let mut lowering = Lowering::new(placed, shape, &inputs);
    for op in program.ops() {
        lowering.op(op)?;
    }
    let logits = lowering.value(program.logits())?;
    let sharding = kv_sharding(placement);
    let mut outputs: Vec<Output> =
        lowering.kv.into_iter().map(|value| Output { value, sharding }).collect();
    for value in [logits].into_iter().chain(lowering.hidden) {
        outputs.push(Output { value, sharding: Sharding::REPLICATED });
    }
    Ok(Module::finish(lowering.function, &inputs.all, &outputs, placement.devices))
}

/// The arguments of a step, and where each kind of them begins.
pub(super) struct Inputs {
    all: Vec<Input>,
    kv: usize,
    tables: usize,
    next_tokens: usize,
    control: usize,
}

impl Inputs {
    pub(super) fn new(placed: &Placed, shape: StepShape) -> Self {
        let Placed { program, placement, geometry, .. } = placed;
        let array = |array: PlacedWeight| Input {
            kind: array.kind,
            sharding: array.sharding,
            aliased_output: None,
        };
        let arrays = placement.weights.iter().flat_map(PlacedWeight::arrays);
        let mut all: Vec<Input> = arrays.map(array).collect();
        let kv = all.len();
        let sharding = kv_sharding(placement);
        let kinds = geometry.kv_types(program, placement);
        let array = |(index, kind)| Input { kind, sharding, aliased_output: Some(index) };
        all.extend(kinds.into_iter().enumerate().map(array));
        let tables = all.len();
        all.extend(geometry.table_types().into_iter().map(replicated));
        let next_tokens = all.len();
        all.push(replicated(geometry.next_tokens_type()));
        let control = all.len();
        all.push(replicated(Type::new(Element::I32, &[shape.control_len()])));
        Self { all, kv, tables, next_tokens, control }
    }
}

/// KV arrays are divided by heads.
pub(super) fn kv_sharding(placement: &Placement) -> Sharding {
    if placement.devices == 1 { Sharding::REPLICATED } else { Sharding::along(2) }
}

pub(super) fn replicated(kind: Type) -> Input {
    Input { kind, sharding: Sharding::REPLICATED, aliased_output: None }
}

/// The token given, or, where it is negative, the one that the slot produced last.
fn choose_tokens(
    function: &mut Function,
    given: &Value,
    next_tokens: &Value,
    slots: &Value,
) -> Value {
    let produced = function.take(next_tokens, slots);
    let zero = function.splat(Element::I32, given.dims(), 0.0);
    let is_produced = function.compare(given, Order::Less, &zero);
    function.select(&is_produced, &produced, given)
}

impl<'a> Lowering<'a> {
    pub(super) fn new(placed: &'a Placed, shape: StepShape, inputs: &Inputs) -> Self {
        let Placed { program, placement, geometry, kernels } = placed;
        let mut function = Function::new();
        let argument = |index: usize| function.argument(index, &inputs.all[index]);
        let all_arrays: Vec<Value> = (0..inputs.kv).map(argument).collect();
        let arrays = placement.weights.iter().scan(0, |next, weight| {
            let first = *next;
            *next += weight.arrays().len();
            Some(first)
        });
        let arrays: Vec<usize> = arrays.collect();
        let weights = arrays.iter().map(|first| all_arrays[*first].clone()).collect();
        let kv = (inputs.kv..inputs.tables).map(argument).collect();
        let tables: Vec<Value> = (inputs.tables..inputs.next_tokens).map(argument).collect();
        let (next_tokens, control) = (argument(inputs.next_tokens), argument(inputs.control));

        let tokens = shape.tokens();
        let part = |function: &mut Function, index: usize| {
            function.slice(&control, 0, index * tokens, tokens)
        };
        let given = part(&mut function, 0);
        let token_slots = part(&mut function, 1);
        let positions = part(&mut function, 2);
        let wanted = shape.outputs + shape.hidden;
        let output_tokens = function.slice(&control, 0, 3 * tokens, wanted);
        let rows = shape.is_ragged.then(|| RaggedRows::new(&mut function, &control, shape));
        let token_ids = choose_tokens(&mut function, &given, &next_tokens, &token_slots);
        Self {
            function,
            program,
            placement,
            geometry,
            shape,
            kernels: kernels.as_ref(),
            values: vec![None; program.values().len()],
            weights,
            arrays,
            all_arrays,
            kv,
            destinations: vec![None; tables.len()],
            tables,
            token_ids,
            token_slots,
            positions,
            output_tokens,
            hidden: None,
            rotations: Vec::new(),
            rows,
        }
    }

    pub(super) fn value(&self, id: ValueId) -> Result<Value, BackendError> {
        let value = self.values.get(id.index()).and_then(Option::as_ref);
        value
            .cloned()
            .ok_or_else(|| unsupported("a program that reads a value before it is written"))
    }

    pub(super) fn set(&mut self, id: ValueId, value: Value) {
        self.values[id.index()] = Some(value);
    }

    /// The width of a value over all devices, with heads that fill up.
    pub(super) fn width(&self, id: ValueId) -> usize {
        self.placement.widths[id.index()]
    }
}
