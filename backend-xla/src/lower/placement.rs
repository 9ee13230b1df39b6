//! How weights and heads lie on the devices.
//!
//! Tensor parallelism divides what a program says may be divided (Shoeybi et al., Megatron-LM,
//! 2019). Heads need not divide evenly: [`HeadLayout`] repeats KV heads where there are fewer than
//! devices, and fills up with heads of zeros. A head of zeros has zero scores and zero values, and
//! the output projection has zeros for it, so it changes nothing.

use std::collections::HashMap;

use backend_api::{
    BackendError,
    program::{KeyValue, Op, Program, Split, ValueId, WeightId},
};

use super::{packed::Packed, unsupported};
use crate::stablehlo::{Element, Sharding, Type};

/// How a program lies on `devices` devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) devices: usize,
    /// The element type of activations and matrices. Norms and biases are `f32`.
    pub(crate) element: Element,
    /// By [`WeightId`].
    pub(crate) weights: Vec<PlacedWeight>,
    /// The widths of values over all devices, by [`ValueId`], with heads that fill up.
    pub(crate) widths: Vec<usize>,
    /// By [`ValueId`]: the values whose heads moved.
    heads: HashMap<usize, Heads>,
}

/// A weight as the devices see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlacedWeight {
    /// Over all devices.
    pub(crate) kind: Type,
    pub(crate) sharding: Sharding,
    /// Where each dimension's elements come from in the file.
    pub(crate) sources: Vec<Source>,
    /// Whether the devices hold the file's matrix transposed: `[inputs, outputs]`. XLA's CPU
    /// compiler multiplies few rows by such a matrix several times as fast, and a TPU's does not
    /// mind. What tokens are looked up in stays as it is, one row a token.
    pub(crate) transposed: bool,
    /// Of a matrix that stays quantized: its kind is that of the levels.
    pub(crate) packed: Option<Packed>,
}

impl PlacedWeight {
    /// The same weight in the file's order of dimensions.
    pub(crate) fn as_in_file(&self) -> Self {
        let mut weight = self.clone();
        if self.transposed {
            weight.transpose();
        }
        weight
    }

    fn transpose(&mut self) {
        self.kind.dims.reverse();
        self.sources.reverse();
        self.sharding = match self.sharding.dim() {
            Some(dim) => Sharding::along(self.kind.dims.len() - 1 - dim),
            None => self.sharding,
        };
        self.transposed = !self.transposed;
    }
}

/// Where the elements along a dimension come from: runs of `run` consecutive elements, each from
/// run `from[i]` of the file, or zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) run: usize,
    pub(crate) from: Vec<Option<usize>>,
}

impl Source {
    /// Each element from its own place.
    fn identity(len: usize) -> Self {
        Self { run: len, from: vec![Some(0)] }
    }

    fn len(&self) -> usize {
        self.run * self.from.len()
    }
}

/// Which heads the devices hold, in order; `None` is a head of zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeadLayout {
    pub(crate) query: Vec<Option<usize>>,
    pub(crate) kv: Vec<Option<usize>>,
}

impl HeadLayout {
    /// Spreads `heads` query heads and `kv_heads` KV heads over `devices` devices. Each device gets
    /// as many KV heads as any other, with the query heads that read them.
    pub(crate) fn new(heads: usize, kv_heads: usize, devices: usize) -> Self {
        let copies = devices.div_ceil(kv_heads).max(1);
        let group = heads / kv_heads;
        let group_share = group.div_ceil(copies);
        let total = (kv_heads * copies).next_multiple_of(devices);
        let mut layout = Self { query: Vec::new(), kv: Vec::new() };
        for place in 0..total {
            let (head, copy) = (place / copies, place % copies);
            let exists = head < kv_heads;
            layout.kv.push(exists.then_some(head));
            for index in copy * group_share..(copy + 1) * group_share {
                layout.query.push((exists && index < group).then_some(head * group + index));
            }
        }
        layout
    }

    /// KV heads over `devices` devices, where the model has `kv_heads`.
    pub(crate) fn kv_heads(kv_heads: usize, devices: usize) -> usize {
        if kv_heads == 0 { 0 } else { Self::new(kv_heads, kv_heads, devices).kv.len() }
    }
}

/// What the columns of a value are, where they are heads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heads {
    head_dim: usize,
    places: Vec<Option<usize>>,
}

impl Heads {
    /// Whether so many columns of the program's are a row of several heads.
    fn is_row(&self, run: usize) -> bool {
        let heads = self.places.iter().flatten().max().map_or(0, |last| last + 1);
        heads > 1 && run == heads * self.head_dim
    }

    /// How often each head is there.
    fn copies(&self) -> usize {
        self.places.iter().filter(|place| **place == Some(0)).count()
    }

    fn source(&self) -> Source {
        Source { run: self.head_dim, from: self.places.clone() }
    }
}

impl Placement {
    /// Places `program` on `devices` devices.
    ///
    /// # Errors
    ///
    /// [`BackendError::Option`] for a dimension that `devices` does not divide,
    /// [`BackendError::Unsupported`] for a program whose heads can't be followed.
    pub(crate) fn new(
        program: &Program,
        devices: usize,
        element: Element,
    ) -> Result<Self, BackendError> {
        let heads = follow_heads(program, devices)?;
        let widths = program.values().iter().enumerate().map(|(index, value)| {
            heads.get(&index).map_or(value.width as usize, |heads| heads.source().len())
        });
        let widths: Vec<usize> = widths.collect();

        let mut sources: Vec<Vec<Source>> = program
            .weights()
            .iter()
            .map(|weight| weight.shape.iter().map(|&len| Source::identity(len)).collect())
            .collect();
        let place =
            |sources: &mut Vec<Vec<Source>>, weight: WeightId, dim: usize, value: ValueId| {
                if let Some(heads) = heads.get(&value.index()) {
                    sources[weight.index()][dim] = heads.source();
                }
            };
        for op in program.ops() {
            match op {
                Op::Linear { input, weight, bias, out } => {
                    place(&mut sources, *weight, 0, *out);
                    place(&mut sources, *weight, 1, *input);
                    if let Some(bias) = bias {
                        place(&mut sources, *bias, 0, *out);
                    }
                }
                Op::Attention(attention) => {
                    if let Some(sinks) = attention.sinks {
                        let layout = HeadLayout::new(
                            attention.heads as usize,
                            attention.kv_heads as usize,
                            devices,
                        );
                        sources[sinks.index()] = vec![Source { run: 1, from: layout.query }];
                    }
                }
                // A norm of all heads of a row has a weight for each of their columns.
                Op::RmsNorm { weight: Some(weight), run, out, .. }
                    if heads.get(&out.index()).is_some_and(|heads| heads.is_row(*run as usize)) =>
                {
                    place(&mut sources, *weight, 0, *out);
                }
                Op::Multiply { weight, out, .. }
                    if program.weights()[weight.index()].shape[..] != [1] =>
                {
                    place(&mut sources, *weight, 0, *out);
                }
                _ => {}
            }
        }
        let in_vocabulary = vocabulary_weights(program);
        let is_multiplied = linear_weights(program);
        let weights = program
            .weights()
            .iter()
            .zip(sources)
            .enumerate()
            .map(|(index, (weight, sources))| {
                let dims: Vec<usize> = sources.iter().map(Source::len).collect();
                let dim = match weight.split {
                    Split::None => None,
                    // In a stack, rows are those of each matrix.
                    Split::Columns => Some(dims.len().saturating_sub(2)),
                    Split::Rows => Some(dims.len() - 1),
                };
                let sharding = match dim {
                    _ if devices == 1 => Sharding::REPLICATED,
                    None => Sharding::REPLICATED,
                    Some(dim) if dims[dim].is_multiple_of(devices) => Sharding::along(dim),
                    // An odd vocabulary is kept whole on each device.
                    Some(_) if in_vocabulary[index] => Sharding::REPLICATED,
                    Some(dim) => {
                        let reason = format!(
                            "dimension {dim} of `{}` is {}, which {devices} devices don't divide",
                            weight.name, dims[dim]
                        );
                        return Err(BackendError::Option { option: "tensor_parallel", reason });
                    }
                };
                // Vectors are small, and norms want their precision.
                let element = if dims.len() == 1 { Element::F32 } else { element };
                let kind = Type::new(element, &dims);
                let mut weight =
                    PlacedWeight { kind, sharding, sources, transposed: false, packed: None };
                if is_multiplied[index] && !in_vocabulary[index] {
                    weight.transpose();
                }
                Ok(weight)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { devices, element, weights, widths, heads })
    }

    /// Columns of a run of `run` columns that a norm of a value takes, with heads that fill up,
    /// and how many of them count.
    pub(crate) fn norm_run(&self, value: ValueId, run: usize) -> (usize, usize) {
        match self.heads.get(&value.index()) {
            Some(heads) if heads.is_row(run) => (heads.source().len(), run * heads.copies()),
            _ => (run, run),
        }
    }

    /// KV heads over all devices, where the model has `kv_heads`.
    pub(crate) fn kv_heads(&self, kv_heads: usize) -> usize {
        HeadLayout::kv_heads(kv_heads, self.devices)
    }
}

/// Which weights have one row for each token of the vocabulary.
fn vocabulary_weights(program: &Program) -> Vec<bool> {
    let mut found = vec![false; program.weights().len()];
    for op in program.ops() {
        if let Op::Embed { weight, .. } | Op::Logits { weight, .. } = op {
            found[weight.index()] = true;
        }
    }
    found
}

/// Which weights are matrices of linear layers.
fn linear_weights(program: &Program) -> Vec<bool> {
    let mut found = vec![false; program.weights().len()];
    for op in program.ops() {
        if let Op::Linear { weight, .. } = op {
            found[weight.index()] = true;
        }
    }
    found
}

/// Finds the values whose columns are heads, from the attention operations outwards, and how the
/// heads lie in them. Empty where heads divide evenly: then nothing moves.
fn follow_heads(program: &Program, devices: usize) -> Result<HashMap<usize, Heads>, BackendError> {
    let mut found: HashMap<usize, Heads> = HashMap::new();
    let mut moved = false;
    let mut set = |value: ValueId, heads: Heads| match found.insert(value.index(), heads.clone()) {
        Some(before) if before != heads => {
            Err(unsupported("a value that is heads of two kinds of attention"))
        }
        _ => Ok(()),
    };
    for op in program.ops() {
        let Op::Attention(attention) = op else { continue };
        let head_dim = attention.head_dim as usize;
        let (heads, kv_heads) = (attention.heads as usize, attention.kv_heads as usize);
        let layout = HeadLayout::new(heads, kv_heads, devices);
        moved |= layout.query.len() != heads || layout.kv.len() != kv_heads;
        set(attention.query, Heads { head_dim, places: layout.query.clone() })?;
        set(attention.out, Heads { head_dim, places: layout.query })?;
        if let Some(KeyValue { key, value }) = attention.new {
            set(key, Heads { head_dim, places: layout.kv.clone() })?;
            set(value, Heads { head_dim, places: layout.kv })?;
        }
    }
    if !moved {
        return Ok(HashMap::new());
    }
    // Queries, keys and values come from projections, by way of norms and rotations.
    for op in program.ops().iter().rev() {
        let (input, out) = match op {
            Op::Rope { input, out, .. } => (*input, *out),
            Op::Scale { input, out, .. }
            | Op::ScaleByPosition { input, out, .. }
            | Op::Multiply { input, out, .. } => (*input, *out),
            Op::RmsNorm { input, out, residual: None, .. } => (*input, *out),
            _ => continue,
        };
        if let Some(heads) = found.get(&out.index()).cloned() {
            found.insert(input.index(), heads);
        }
    }
    for op in program.ops() {
        let mixed = match op {
            Op::Add { left, right, .. } => [Some(*left), Some(*right)],
            Op::GatedActivation { gate, up, .. } => [Some(*gate), Some(*up)],
            Op::RmsNorm { input, residual: Some(residual), .. } => {
                [Some(*input), Some(residual.value)]
            }
            _ => [None, None],
        };
        if mixed.into_iter().flatten().any(|value| found.contains_key(&value.index())) {
            return Err(unsupported("arithmetic between heads that don't divide evenly"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_divide_stay_where_they_are() {
        for (heads, kv_heads, devices) in [(16, 8, 1), (16, 8, 4), (32, 8, 8), (9, 3, 3)] {
            let layout = HeadLayout::new(heads, kv_heads, devices);
            assert_eq!(layout.query, (0..heads).map(Some).collect::<Vec<_>>());
            assert_eq!(layout.kv, (0..kv_heads).map(Some).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_query_head_is_once_beside_its_kv_head() {
        for heads_of_a_group in 1..6 {
            for kv_heads in 1..9 {
                for devices in [1, 2, 4, 8] {
                    let heads = heads_of_a_group * kv_heads;
                    let layout = HeadLayout::new(heads, kv_heads, devices);
                    let share = layout.query.len() / layout.kv.len();
                    assert!(layout.kv.len().is_multiple_of(devices));
                    assert_eq!(share * layout.kv.len(), layout.query.len());
                    let mut seen = vec![0; heads];
                    for (place, head) in layout.query.iter().enumerate() {
                        if let Some(head) = head {
                            seen[*head] += 1;
                            assert_eq!(layout.kv[place / share], Some(head / heads_of_a_group));
                        }
                    }
                    assert_eq!(seen, vec![1; heads], "{heads} {kv_heads} {devices}");
                }
            }
        }
    }

    #[test]
    fn few_kv_heads_are_repeated() {
        let layout = HeadLayout::new(8, 2, 4);
        assert_eq!(layout.kv, [Some(0), Some(0), Some(1), Some(1)]);
        assert_eq!(layout.query, (0..8).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn odd_heads_are_filled_up() {
        // SmolLM2-135M.
        let layout = HeadLayout::new(9, 3, 2);
        assert_eq!(layout.kv, [Some(0), Some(1), Some(2), None]);
        assert_eq!(layout.query.len(), 12);
    }
}
