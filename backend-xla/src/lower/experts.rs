//! A mixture of experts, with shapes that don't depend on who chose what.
//!
//! Each row's choices are sorted by expert and laid into blocks of rows, each block of one expert;
//! its last rows may be padding. So many choices and experts never need more than a number of
//! blocks that is known beforehand, and a loop walks those that there are: it takes the block's
//! rows, slices its expert's matrices out of their stacks, multiplies, and writes the results. An
//! expert that no row chose has no block, and its weights are not read; the weights of one that
//! was chosen are read once for every [`Blocks::rows`] of its rows.
//!
//! Each device holds its share of every expert's width, so that all devices work alike whatever
//! was chosen; the sum over devices is the result (Shoeybi et al., Megatron-LM, 2019). Rows are
//! weighed and added in `f32`, in the order of their choice.

use backend_api::{
    BackendError,
    program::{Activation, ExpertLinear, MixtureOfExperts, Routing, Scoring, WeightId},
};

use super::{ops::gated, step::Lowering};
use crate::stablehlo::{Element, Function, Order, Reduction, Sharding, Value};

/// Rows that a block has at least: fewer are no faster.
const FEWEST_ROWS: usize = 8;
/// Rows that a block has at most.
const MOST_ROWS: usize = 256;

/// How the choices of a step are laid into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Blocks {
    /// Rows of each.
    rows: usize,
    /// Blocks that are needed at most.
    count: usize,
}

impl Blocks {
    /// For so many choices among so many experts. A block has twice as many rows as an expert
    /// gets on average.
    fn new(choices: usize, experts: usize) -> Self {
        let rows = (2 * choices.div_ceil(experts)).next_power_of_two();
        let rows = rows.clamp(FEWEST_ROWS, MOST_ROWS);
        // Each expert that is chosen wastes less than a block.
        let active = experts.min(choices);
        Self { rows, count: (choices + active * (rows - 1)) / rows }
    }

    /// Rows of all blocks.
    fn places(self) -> usize {
        self.rows * self.count
    }
}

/// The choices of a step in their blocks.
struct Layout {
    blocks: Blocks,
    /// `[choices]`: each choice's place.
    places: Value,
    /// `[places]`: the row at each; 0 for padding.
    rows: Value,
    /// `[blocks]`: the expert of each.
    experts: Value,
    /// How many blocks there are.
    used: Value,
}

impl Lowering<'_> {
    pub(super) fn mixture_of_experts(&mut self, op: &MixtureOfExperts) -> Result<(), BackendError> {
        let (input, scores) = (self.value(op.input)?, self.value(op.scores)?);
        let devices = self.placement.devices;
        let layers = [op.gate, op.up, op.down];
        let stacks: Vec<Value> =
            layers.iter().map(|layer| self.weights[layer.weight.index()].clone()).collect();
        let biases = layers
            .map(|layer: ExpertLinear| layer.bias.map(|bias| self.weights[bias.index()].clone()));
        let [gate_bias, up_bias, down_bias] = biases;
        let (rows, chosen) = (input.dim(0), op.routing.chosen as usize);
        let experts = op.experts as usize;
        let (ids, weights) = self.route(&op.routing, &scores);

        let f = &mut self.function;
        let layout = Layout::new(f, &ids, experts);
        let (whole, along) = match devices {
            1 => (Sharding::REPLICATED, [Sharding::REPLICATED; 2]),
            _ => (Sharding::REPLICATED, [Sharding::along(1), Sharding::along(2)]),
        };
        let mut inputs = vec![
            (&input, whole),
            (&layout.rows, whole),
            (&layout.experts, whole),
            (&layout.used, whole),
            (&stacks[0], along[0]),
            (&stacks[1], along[0]),
            (&stacks[2], along[1]),
        ];
        let has_bias = [gate_bias.is_some(), up_bias.is_some()];
        inputs.extend(gate_bias.iter().chain(&up_bias).map(|bias| (bias, along[0])));
        let (blocks, activation) = (layout.blocks, op.activation);
        let results = f.on_each_device(devices, &inputs, &[whole], |f, local| {
            let results = each_block(f, local, blocks, has_bias, activation);
            let is_shared = devices > 1;
            results
                .map(|it| if is_shared { f.sum_over_devices(&it, devices) } else { it })
                .into_iter()
                .collect()
        });
        let Some(results) = results.first() else { return Ok(()) };

        // Padding may be anything; no choice names it.
        let by_choice = f.take(results, &layout.places);
        let by_choice = f.convert(&by_choice, Element::F32);
        let by_choice = f.reshape(&by_choice, &[rows, chosen, input.dim(1)]);
        let by_choice = match down_bias {
            Some(bias) => {
                let bias = f.take(&bias, &ids);
                let bias = f.convert(&bias, Element::F32);
                f.add(&by_choice, &bias)
            }
            None => by_choice,
        };
        let weights = f.broadcast_to(&weights, &by_choice, &[0, 1]);
        let weighed = f.multiply(&by_choice, &weights);
        let sum = f.reduce(&weighed, Reduction::Sum, &[1]);
        let sum = f.convert(&sum, input.element());
        self.set(op.out, sum);
        Ok(())
    }

    /// Each row's experts and their weights, `[rows, chosen]` each, in the order of their choice.
    fn route(&mut self, routing: &Routing, scores: &Value) -> (Value, Value) {
        let vector = |weight: Option<WeightId>| weight.map(|it| self.weights[it.index()].clone());
        let (bias, scales) = (vector(routing.selection_bias), vector(routing.scales));
        let f = &mut self.function;
        let scores = f.convert(scores, Element::F32);
        let dims = scores.dims().to_vec();
        let probabilities = match routing.scoring {
            Scoring::Sigmoid => f.logistic(&scores),
            Scoring::Softmax => {
                let largest = f.reduce(&scores, Reduction::Max, &[1]);
                let largest = f.broadcast_to(&largest, &scores, &[0]);
                let shifted = f.subtract(&scores, &largest);
                let powers = f.exponential(&shifted);
                let total = f.reduce(&powers, Reduction::Sum, &[1]);
                let total = f.broadcast_to(&total, &scores, &[0]);
                f.divide(&powers, &total)
            }
        };
        let mut keys = match bias {
            Some(bias) => {
                let bias = f.broadcast_to(&bias, &scores, &[1]);
                f.add(&probabilities, &bias)
            }
            None => scores,
        };
        let index = f.iota(Element::I32, &dims, 1);
        let never = f.splat(Element::F32, &dims, f64::NEG_INFINITY);
        let nothing = f.splat(Element::F32, &dims, 0.0);
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for _ in 0..routing.chosen {
            let best = f.argmax(&keys);
            let wide = f.broadcast_to(&best, &index, &[0]);
            let is_best = f.compare(&index, Order::Equal, &wide);
            keys = f.select(&is_best, &never, &keys);
            let weight = f.select(&is_best, &probabilities, &nothing);
            let weight = f.reduce(&weight, Reduction::Sum, &[1]);
            ids.push(f.reshape(&best, &[dims[0], 1]));
            weights.push(f.reshape(&weight, &[dims[0], 1]));
        }
        let ids = f.concatenate(&ids.iter().collect::<Vec<_>>(), 1);
        let mut weights = f.concatenate(&weights.iter().collect::<Vec<_>>(), 1);
        if routing.normalize {
            let sum = f.reduce(&weights, Reduction::Sum, &[1]);
            let least = f.splat(Element::F32, sum.dims(), 1e-20);
            let sum = f.add(&sum, &least);
            let sum = f.broadcast_to(&sum, &weights, &[0]);
            weights = f.divide(&weights, &sum);
        }
        weights = f.scale(&weights, routing.factor);
        if let Some(scales) = scales {
            let scales = f.take(&scales, &ids);
            weights = f.multiply(&weights, &scales);
        }
        (ids, weights)
    }
}

impl Layout {
    /// Lays the choices `ids`, `[rows, chosen]`, into blocks.
    fn new(f: &mut Function, ids: &Value, experts: usize) -> Self {
        let chosen = ids.dim(1);
        let choices = ids.dim(0) * chosen;
        let blocks = Blocks::new(choices, experts);
        let ids = f.reshape(ids, &[choices]);
        let choice = f.iota(Element::I32, &[choices], 0);
        let [sorted, order] = f.sort_by_key(&ids, &choice);

        // By expert: its choices, its blocks, and where both begin.
        let dims = [choices, experts];
        let wide = f.broadcast(&sorted, &dims, &[0]);
        let expert = f.iota(Element::I32, &dims, 1);
        let counts = count(f, &wide, Order::Equal, &expert, 0);
        let first_choices = sums_before(f, &counts);
        let size = f.splat(Element::I32, &[experts], blocks.rows as f64);
        let round_up = f.splat(Element::I32, &[experts], (blocks.rows - 1) as f64);
        let of_expert = f.add(&counts, &round_up);
        let of_expert = f.divide(&of_expert, &size);
        let first_blocks = sums_before(f, &of_expert);
        let used = f.reduce(&of_expert, Reduction::Sum, &[0]);

        // A choice comes behind those of its expert that come before it.
        let first_choice = f.take(&first_choices, &sorted);
        let behind = f.subtract(&choice, &first_choice);
        let first_place = f.take(&first_blocks, &sorted);
        let size = f.splat(Element::I32, &[choices], blocks.rows as f64);
        let first_place = f.multiply(&first_place, &size);
        let sorted_places = f.add(&first_place, &behind);
        let places = f.put(&choice, &order, &sorted_places);
        let row = f.splat(Element::I32, &[choices], chosen as f64);
        let row = f.divide(&order, &row);
        let padding = f.splat(Element::I32, &[blocks.places()], 0.0);
        let rows = f.put(&padding, &sorted_places, &row);

        // A block belongs to the last expert that begins with it or before: one without blocks
        // begins where the next one does.
        let dims = [blocks.count, experts];
        let block = f.iota(Element::I32, &dims, 0);
        let ends = f.add(&first_blocks, &of_expert);
        let ends = f.broadcast(&ends, &dims, &[1]);
        let of_block = count(f, &ends, Order::LessEqual, &block, 1);
        let last = f.splat(Element::I32, &[blocks.count], (experts - 1) as f64);
        let of_block = f.minimum(&of_block, &last);
        Self { blocks, places, rows, experts: of_block, used }
    }
}

/// How often a comparison holds along a dimension.
fn count(f: &mut Function, left: &Value, order: Order, right: &Value, over: usize) -> Value {
    let holds = f.compare(left, order, right);
    let holds = f.convert(&holds, Element::I32);
    f.reduce(&holds, Reduction::Sum, &[over])
}

/// For each element of a short vector the sum of those before it.
fn sums_before(f: &mut Function, values: &Value) -> Value {
    let len = values.dim(0);
    let dims = [len, len];
    let own = f.iota(Element::I32, &dims, 0);
    let other = f.iota(Element::I32, &dims, 1);
    let is_before = f.compare(&other, Order::Less, &own);
    let wide = f.broadcast(values, &dims, &[1]);
    let nothing = f.splat(Element::I32, &dims, 0.0);
    let before = f.select(&is_before, &wide, &nothing);
    f.reduce(&before, Reduction::Sum, &[1])
}

/// The results of all blocks, `[places, width]`, of a device's share of the experts.
fn each_block(
    f: &mut Function,
    local: &[Value],
    blocks: Blocks,
    has_bias: [bool; 2],
    activation: Activation,
) -> Option<Value> {
    let [input, rows, experts, used, gate, up, down, biases @ ..] = local else { return None };
    let mut biases = biases.iter();
    let [gate_bias, up_bias] = has_bias.map(|it| if it { biases.next() } else { None });
    let element = input.element();
    let first = f.int(0);
    let results = f.splat(element, &[blocks.places(), input.dim(1)], 0.0);
    let state = f.while_loop(
        &[&first, &results],
        |f, state| f.compare(&state[0], Order::Less, used),
        |f, state| {
            let [block, results] = state else { return Vec::new() };
            let size = f.int(blocks.rows);
            let place = f.multiply(block, &size);
            let rows = f.dynamic_slice(rows, 0, &place, blocks.rows);
            let x = f.take(input, &rows);
            let expert = f.dynamic_slice(experts, 0, block, 1);
            let expert = f.scalar(&expert);
            let linear = |f: &mut Function, x: &Value, stack: &Value, bias: Option<&Value>| {
                let matrix = f.dynamic_slice(stack, 0, &expert, 1);
                let matrix = f.reshape(&matrix, &stack.dims()[1..]);
                let product = f.dot((x, &matrix), &[], (1, 1), element);
                let Some(bias) = bias else { return product };
                let bias = f.dynamic_slice(bias, 0, &expert, 1);
                let bias = f.reshape(&bias, &[product.dim(1)]);
                let bias = f.convert(&bias, element);
                let bias = f.broadcast_to(&bias, &product, &[1]);
                f.add(&product, &bias)
            };
            let gates = linear(f, &x, gate, gate_bias);
            let ups = linear(f, &x, up, up_bias);
            let inner = gated(f, &gates, &ups, activation);
            let out = linear(f, &inner, down, None);
            let results = f.dynamic_update(results, &out, 0, &place);
            let one = f.int(1);
            vec![f.add(block, &one), results]
        },
    );
    state.get(1).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_suffice_however_choices_fall_on_experts() {
        for (choices, experts) in [(1, 1), (2, 6), (8, 128), (64, 6), (300, 6), (4096, 128)] {
            let Blocks { rows, count } = Blocks::new(choices, experts);
            // One each, and the others of one expert; evenly; all of one expert.
            let active = experts.min(choices);
            let skewed = (active - 1) + (choices - (active - 1)).div_ceil(rows);
            let even = active * choices.div_ceil(active).div_ceil(rows).max(1);
            let most = (active - 1) + (choices + 1 - active).div_ceil(rows);
            assert!(count >= skewed.max(most), "{choices} {experts}");
            assert!(count + active >= even, "{choices} {experts}");
            assert!(count >= choices.div_ceil(rows), "{choices} {experts}");
        }
        assert_eq!(Blocks::new(8, 128), Blocks { rows: 8, count: 8 });
    }
}
