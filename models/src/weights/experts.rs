//! The experts of a mixture, stacked, from files that store them in other ways.
//!
//! A program reads a stack `M.experts.gate_proj.weight`, `[experts, out_features, in_features]`.
//! Files have it as such (GGUF), one tensor an expert (`M.experts.7.gate_proj.weight`: Mixtral,
//! Qwen), or gate and up in one stack `M.experts.gate_up_proj`: each expert's gate above its up
//! (Gemma 4), or in turns, with inputs before outputs unless in blocks (gpt-oss).

use std::ops::Range;

use backend_api::weights::{Format, Shape, Tensor, TensorError, Weights, WeightsError};

use crate::model::{FusedExperts, ModelConfig};

/// Weights in which a program finds its experts.
#[derive(Debug)]
pub(crate) struct ExpertWeights {
    stored: Box<dyn Weights>,
    experts: usize,
    fused: FusedExperts,
}

/// What becomes of `weights` for a model of this configuration.
pub(crate) fn with_experts(weights: Box<dyn Weights>, config: &ModelConfig) -> Box<dyn Weights> {
    match &config.experts {
        None => weights,
        Some(experts) => Box::new(ExpertWeights {
            stored: weights,
            experts: experts.count,
            fused: experts.fused,
        }),
    }
}

impl Weights for ExpertWeights {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        if self.stored.contains(name) {
            return self.stored.tensor(name).and_then(|tensor| as_row(name, tensor));
        }
        let inconsistent = |source| WeightsError::Tensor { name: name.to_owned(), source };
        match self.source(name) {
            Some(Source::Apart { before, after }) => self.stacked(name, before, after),
            Some(Source::Fused { stored, which }) => {
                let tensor = self.stored.tensor(&stored)?;
                unfused(&tensor, which, self.fused).map_err(inconsistent)
            }
            None => Err(WeightsError::MissingTensor { name: name.to_owned() }),
        }
    }

    fn describe(&self, name: &str) -> Result<(Format, Shape), WeightsError> {
        if self.stored.contains(name) {
            let (format, shape) = self.stored.describe(name)?;
            return Ok((format, row_shape(name, shape)));
        }
        match self.source(name) {
            Some(Source::Apart { before, after }) => {
                let stack = self.stack(name, before, after)?;
                Ok((stack.format, stack.shape))
            }
            Some(Source::Fused { stored, which }) => {
                let (format, shape) = self.stored.describe(&stored)?;
                let part = Part::of(format, shape, which, self.fused);
                let name = || name.to_owned();
                let part = part.map_err(|source| WeightsError::Tensor { name: name(), source })?;
                Ok((format, part.shape))
            }
            None => Err(WeightsError::MissingTensor { name: name.to_owned() }),
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.stored.contains(name) || self.source(name).is_some()
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.stored.names()
    }
}

/// Where a stack comes from.
enum Source<'a> {
    /// From `{before}.experts.{number}.{after}`.
    Apart { before: &'a str, after: &'a str },
    /// From a stack of gates and ups, or of downs.
    Fused { stored: String, which: Which },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Gate,
    Up,
    Down,
}

impl ExpertWeights {
    fn source<'a>(&self, name: &'a str) -> Option<Source<'a>> {
        let (before, after) = name.split_once(".experts.")?;
        if self.stored.contains(&format!("{before}.experts.0.{after}")) {
            return Some(Source::Apart { before, after });
        }
        let (part, kind) = after.split_once('.')?;
        let (fused, which) = match part {
            "gate_proj" => ("gate_up_proj", Which::Gate),
            "up_proj" => ("gate_up_proj", Which::Up),
            "down_proj" => ("down_proj", Which::Down),
            _ => return None,
        };
        let suffix = match kind {
            "weight" => "",
            "bias" => "_bias",
            _ => return None,
        };
        let stored = format!("{before}.experts.{fused}{suffix}");
        self.stored.contains(&stored).then_some(Source::Fused { stored, which })
    }

    /// What a stack of one tensor of each expert is.
    fn stack(&self, name: &str, before: &str, after: &str) -> Result<Stack, WeightsError> {
        let inconsistent = |source| WeightsError::Tensor { name: name.to_owned(), source };
        let one = |expert| self.stored.describe(&expert_name(before, expert, after));
        let (mut format, each) = one(0)?;
        for expert in 1..self.experts {
            let (other, found) = one(expert)?;
            if found != each {
                let elements = |shape: Shape| shape.rows().saturating_mul(shape.cols());
                let (expected, actual) = (elements(each), elements(found));
                let (what, format) = ("elements", other);
                let source = TensorError::WrongSize { what, format, shape: each, expected, actual };
                return Err(inconsistent(source));
            }
            if other != format {
                // What all of them have in common are numbers.
                format = Format::F32;
            }
        }
        let shape = match each {
            Shape::Vector(len) => Shape::matrix(self.experts, len),
            each => Shape::stack(self.experts, each.rows(), each.cols()),
        };
        let bytes = shape.byte_len(format).map_err(inconsistent)?;
        Ok(Stack { format, shape, bytes })
    }

    /// One tensor of each expert, one behind the other.
    fn stacked(
        &self,
        name: &str,
        before: &str,
        after: &str,
    ) -> Result<Tensor<'static>, WeightsError> {
        // The number of experts is the configuration's word: nothing is copied before all are there.
        let Stack { format, shape, bytes } = self.stack(name, before, after)?;
        let mut data = Vec::with_capacity(bytes);
        for expert in 0..self.experts {
            let tensor = self.stored.tensor(&expert_name(before, expert, after))?;
            match tensor.format() {
                same if same == format => data.extend_from_slice(tensor.data()),
                _ => data.extend(tensor.to_f32().into_iter().flat_map(f32::to_le_bytes)),
            }
        }
        Tensor::new(format, shape, data)
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }
}

/// A stack that is put together.
struct Stack {
    format: Format,
    shape: Shape,
    bytes: usize,
}

fn expert_name(before: &str, expert: usize, after: &str) -> String {
    format!("{before}.experts.{expert}.{after}")
}

fn as_row<'a>(name: &str, tensor: Tensor<'a>) -> Result<Tensor<'a>, WeightsError> {
    match row_shape(name, tensor.shape()) {
        same if same == tensor.shape() => Ok(tensor),
        shape => Tensor::new(tensor.format(), shape, tensor.into_data())
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source }),
    }
}

/// A gate of a shared expert is one row; GGUF files have it as a vector.
fn row_shape(name: &str, shape: Shape) -> Shape {
    match shape {
        Shape::Vector(len) if name.ends_with("shared_expert_gate.weight") => Shape::matrix(1, len),
        shape => shape,
    }
}

/// A part of each expert of a fused stack.
struct Part {
    /// Which outputs: rows of each matrix, or columns of biases and of matrices that lie on their side.
    picked: Vec<usize>,
    /// Biases are a matrix with a row for each expert.
    is_bias: bool,
    is_turned: bool,
    /// What the picked outputs are together.
    shape: Shape,
}

impl Part {
    fn of(
        format: Format,
        shape: Shape,
        which: Which,
        fused: FusedExperts,
    ) -> Result<Self, TensorError> {
        let dims = shape.dims();
        let (Some(&experts), is_bias) = (dims.first(), dims.len() == 2) else {
            return Err(TensorError::SliceOutOfRange { axis: "matrices", range: 0..1, len: 0 });
        };
        if is_bias && format.is_quantized() {
            return Err(TensorError::SliceInsideBlock { format, range: 0..1 });
        }
        // Blocks run along inputs, so what is in blocks never lies on its side.
        let is_turned = !is_bias && fused == FusedExperts::InTurns && !format.is_quantized();
        let (outputs, inputs) = match dims[..] {
            [_, outputs] => (outputs, 1),
            [_, inputs, outputs] if is_turned => (outputs, inputs),
            [_, outputs, inputs] => (outputs, inputs),
            _ => (0, 1),
        };
        let half = outputs / 2;
        let picked: Vec<usize> = match (which, fused) {
            (Which::Down, _) => (0..outputs).collect(),
            (Which::Gate, FusedExperts::GateFirst) => (0..half).collect(),
            (Which::Up, FusedExperts::GateFirst) => (half..outputs).collect(),
            (Which::Gate, FusedExperts::InTurns) => (0..outputs).step_by(2).collect(),
            (Which::Up, FusedExperts::InTurns) => (1..outputs).step_by(2).collect(),
        };
        let shape = match is_bias {
            true => Shape::matrix(experts, picked.len()),
            false => Shape::stack(experts, picked.len(), inputs),
        };
        shape.byte_len(format)?;
        Ok(Self { picked, is_bias, is_turned, shape })
    }
}

/// A part of each expert of the stack `tensor`.
fn unfused(
    tensor: &Tensor<'_>,
    which: Which,
    fused: FusedExperts,
) -> Result<Tensor<'static>, TensorError> {
    let Part { picked, is_bias, is_turned, shape } =
        Part::of(tensor.format(), tensor.shape(), which, fused)?;
    let mut data = Vec::with_capacity(shape.byte_len(tensor.format())?);
    if is_bias {
        columns(tensor, 0..tensor.shape().rows(), &picked, &mut data);
        return Tensor::new(tensor.format(), shape, data);
    }
    let experts = tensor.shape().dims().first().copied().unwrap_or_default();
    let rows = tensor.shape().rows() / experts.max(1);
    for expert in 0..experts {
        if is_turned {
            for &column in &picked {
                columns(tensor, expert * rows..(expert + 1) * rows, &[column], &mut data);
            }
        } else {
            for &row in &picked {
                data.extend_from_slice(tensor.row(expert * rows + row).unwrap_or_default());
            }
        }
    }
    Tensor::new(tensor.format(), shape, data)
}

/// Appends the elements in some columns of some rows, row after row. They are in no blocks.
fn columns(tensor: &Tensor<'_>, rows: Range<usize>, picked: &[usize], data: &mut Vec<u8>) {
    let size = tensor.format().block_bytes();
    for row in rows {
        let row = tensor.row(row).unwrap_or_default();
        for &column in picked {
            data.extend_from_slice(row.get(column * size..(column + 1) * size).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::SafetensorsWeights;
    use backend_api::weights::MapWeights;

    fn tensor(shape: Shape, values: &[f32]) -> Tensor<'static> {
        Tensor::from_f32(Format::F16, shape, values).expect("consistent")
    }

    fn weights(tensors: &[(&str, Tensor<'static>)], fused: FusedExperts) -> ExpertWeights {
        let mut stored = MapWeights::new();
        for (name, tensor) in tensors {
            stored.insert(*name, tensor.clone());
        }
        ExpertWeights { stored: Box::new(stored), experts: 2, fused }
    }

    #[test]
    fn experts_that_are_stored_apart_are_stacked() {
        let each = |first: f32| tensor(Shape::matrix(1, 2), &[first, first + 1.0]);
        let all = weights(
            &[("a.experts.0.w1.weight", each(1.0)), ("a.experts.1.w1.weight", each(3.0))],
            FusedExperts::GateFirst,
        );
        let stack = all.tensor("a.experts.w1.weight").expect("both are there");
        assert_eq!(stack, tensor(Shape::stack(2, 1, 2), &[1.0, 2.0, 3.0, 4.0]));
        assert!(all.contains("a.experts.w1.weight") && !all.contains("a.experts.w2.weight"));

        let one = weights(&[("a.experts.0.w1.weight", each(1.0))], FusedExperts::GateFirst);
        assert!(matches!(
            one.tensor("a.experts.w1.weight"),
            Err(WeightsError::MissingTensor { name }) if name == "a.experts.1.w1.weight"
        ));
        // Their number is the configuration's word.
        let wide = tensor(Shape::matrix(1 << 10, 1 << 10), &vec![0.0; 1 << 20]);
        let mut many = weights(&[("a.experts.0.w1.weight", wide)], FusedExperts::GateFirst);
        many.experts = 1 << 16;
        assert!(matches!(
            many.tensor("a.experts.w1.weight"),
            Err(WeightsError::MissingTensor { name }) if name == "a.experts.1.w1.weight"
        ));
    }

    #[test]
    fn experts_of_two_formats_become_numbers_and_of_two_shapes_an_error() {
        let first = tensor(Shape::matrix(1, 2), &[1.0, 2.0]);
        let other = Tensor::from_f32(Format::F32, Shape::matrix(1, 2), &[3.0, 4.0]).expect("valid");
        let names = ["a.experts.0.w1.weight", "a.experts.1.w1.weight"];
        let mixed = [(names[0], first.clone()), (names[1], other)];
        let mixed = weights(&mixed, FusedExperts::GateFirst);
        let stack = mixed.tensor("a.experts.w1.weight").expect("numbers");
        assert_eq!((stack.format(), stack.to_f32()), (Format::F32, vec![1.0, 2.0, 3.0, 4.0]));
        let wide = tensor(Shape::matrix(1, 3), &[0.0; 3]);
        let odd = weights(&[(names[0], first), (names[1], wide)], FusedExperts::GateFirst);
        assert!(matches!(odd.tensor("a.experts.w1.weight"), Err(WeightsError::Tensor { .. })));
    }

    #[test]
    fn a_stack_without_elements_is_not_taken_apart() {
        let header = r#"{"a.experts.gate_up_proj":
            {"dtype":"F32","shape":[1,1099511627776,0],"data_offsets":[0,0]}}"#;
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        let stored = SafetensorsWeights::from_bytes(file).expect("well-formed");
        let all =
            ExpertWeights { stored: Box::new(stored), experts: 1, fused: FusedExperts::GateFirst };
        assert!(matches!(
            all.tensor("a.experts.gate_proj.weight"),
            Err(WeightsError::UnsupportedRank { shape, .. }) if shape == [1, 1 << 40, 0]
        ));
    }

    #[test]
    fn gates_above_ups_are_taken_apart_in_any_format() {
        for format in Format::ALL {
            let values: Vec<f32> = (0..2 * 4 * 256).map(|i| (i % 97) as f32 / 50.0).collect();
            let shape = Shape::stack(2, 4, 256);
            let stored = Tensor::from_f32(format, shape, &values).expect("blocks");
            let all = stored.to_f32();
            let stored = [("a.experts.gate_up_proj", stored)];
            let stored = weights(&stored, FusedExperts::GateFirst);
            for (name, first) in [("gate", 0), ("up", 2)] {
                let name = format!("a.experts.{name}_proj.weight");
                let part = stored.tensor(&name).expect("there");
                assert_eq!(part.shape(), Shape::stack(2, 2, 256));
                let expected: Vec<f32> = [first, 4 + first]
                    .iter()
                    .flat_map(|row| all[row * 256..(row + 2) * 256].to_vec())
                    .collect();
                assert_eq!(part.to_f32(), expected, "{format}");
            }
        }
    }

    #[test]
    fn gates_and_ups_in_turns_lie_on_their_side_unless_in_blocks() {
        // Two experts of three inputs and two outputs each of gate and up.
        let values: Vec<f32> = (0..2 * 3 * 4).map(|i| i as f32).collect();
        let bias: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let down: Vec<f32> = (0..2 * 2 * 3).map(|i| i as f32).collect();
        let all = weights(
            &[
                ("a.experts.gate_up_proj", tensor(Shape::stack(2, 3, 4), &values)),
                ("a.experts.gate_up_proj_bias", tensor(Shape::matrix(2, 4), &bias)),
                ("a.experts.down_proj", tensor(Shape::stack(2, 2, 3), &down)),
            ],
            FusedExperts::InTurns,
        );
        let read = |name: &str| all.tensor(&format!("a.experts.{name}")).expect("there");
        let gate = read("gate_proj.weight");
        assert_eq!(gate.shape(), Shape::stack(2, 2, 3));
        assert_eq!(gate.to_f32(), [0., 4., 8., 2., 6., 10., 12., 16., 20., 14., 18., 22.]);
        assert_eq!(read("up_proj.weight").to_f32()[..3], [1.0, 5.0, 9.0]);
        assert_eq!(read("up_proj.bias"), tensor(Shape::matrix(2, 2), &[1.0, 3.0, 5.0, 7.0]));
        let turned = read("down_proj.weight");
        assert_eq!(turned.shape(), Shape::stack(2, 3, 2));
        assert_eq!(turned.to_f32()[..6], [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);

        let values: Vec<f32> = (0..2 * 4 * 32).map(|i| i as f32 / 9.0).collect();
        let blocks = Tensor::from_f32(Format::MXFP4, Shape::stack(2, 4, 32), &values);
        let blocks = blocks.expect("blocks");
        let all = blocks.to_f32();
        let stored = [("a.experts.gate_up_proj", blocks)];
        let up = weights(&stored, FusedExperts::InTurns);
        let up = up.tensor("a.experts.up_proj.weight").expect("there");
        assert_eq!((up.format(), up.shape()), (Format::MXFP4, Shape::stack(2, 2, 32)));
        assert_eq!(up.to_f32()[32..64], all[3 * 32..4 * 32]);
    }

    #[test]
    fn a_gate_of_a_shared_expert_may_be_a_vector() {
        let name = "a.shared_expert_gate.weight";
        let stored = [(name, tensor(Shape::Vector(2), &[1.0, 2.0]))];
        let gate = weights(&stored, FusedExperts::GateFirst);
        assert_eq!(gate.tensor(name).expect("there").shape(), Shape::matrix(1, 2));
    }
}
