//! Weights that a file stores as one, each below the other: a program reads rows of them.
//!
//! Phi-3 has query, key and value in `qkv_proj`; Phi-3 and GLM-4 have the gate and what it opens in
//! `gate_up_proj`. Blocks of quantized formats run along a row, so any rows can be taken.

use std::{borrow::Cow, ops::Range};

use super::{Format, Shape, Tensor, TensorError, WeightsError};
use crate::model::ModelConfig;

/// What a program reads of a stored tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rows {
    All,
    /// Some of so many.
    Some {
        rows: Range<usize>,
        of: usize,
    },
}

impl Rows {
    /// These rows of `tensor`, or these elements of a bias.
    pub(super) fn take<'a>(
        &self,
        name: &str,
        tensor: Tensor<'a>,
    ) -> Result<Tensor<'a>, WeightsError> {
        let Self::Some { rows, .. } = self else { return Ok(tensor) };
        self.shape(name, tensor.format(), tensor.shape())?;
        take_output_features(tensor, rows.clone())
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }

    /// The shape of what is taken of a tensor of `format` and `shape`.
    pub(super) fn shape(
        &self,
        name: &str,
        format: Format,
        shape: Shape,
    ) -> Result<Shape, WeightsError> {
        let Self::Some { rows, of } = self else { return Ok(shape) };
        let (len, taken, block) = match shape {
            Shape::Vector(len) => (len, Shape::Vector(rows.len()), format.block_elements()),
            shape => (shape.rows(), Shape::matrix(rows.len(), shape.cols()), 1),
        };
        let is_whole = rows.start.is_multiple_of(block) && rows.end.is_multiple_of(block);
        let source = match len == *of {
            true if is_whole => return Ok(taken),
            true => TensorError::SliceInsideBlock { format, range: rows.clone() },
            false => TensorError::SliceOutOfRange { axis: "rows", range: 0..*of, len },
        };
        Err(WeightsError::Tensor { name: name.to_owned(), source })
    }
}

/// Rows `range` of a matrix, or elements `range` of a vector: a bias has one for each output feature. Borrowed bytes stay borrowed.
fn take_output_features(
    tensor: Tensor<'_>,
    range: Range<usize>,
) -> Result<Tensor<'_>, TensorError> {
    let (start, part) = match tensor.shape() {
        Shape::Vector(_) => {
            (tensor.format().row_bytes(range.start)?, tensor.slice_cols(range.clone())?)
        }
        _ => (range.start * tensor.row_bytes(), tensor.slice_rows(range.clone())?),
    };
    let (format, shape, bytes) = (part.format(), part.shape(), start..start + part.data().len());
    match tensor.into_data() {
        Cow::Borrowed(data) => Tensor::new(format, shape, &data[bytes]),
        Cow::Owned(data) => Tensor::new(format, shape, data[bytes].to_vec()),
    }
}

/// The names that a program has for the parts of the tensor `stored`; its own name for all of it,
/// unless it is a fused one. Names are Hugging Face's.
pub(super) fn parts(stored: &str, config: &ModelConfig) -> Vec<(String, Rows)> {
    let all = || vec![(stored.to_owned(), Rows::All)];
    let Some((module, suffix)) = stored.rsplit_once('.') else { return all() };
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let width = config.intermediate_size;
    let (block, parts): (_, &[(&str, usize)]) =
        if let Some(block) = module.strip_suffix(".self_attn.qkv_proj") {
            (
                block,
                &[
                    ("self_attn.q_proj", queries),
                    ("self_attn.k_proj", keys),
                    ("self_attn.v_proj", keys),
                ],
            )
        } else if let Some(block) = module
            .strip_suffix(".mlp.gate_up_proj")
            .or_else(|| module.strip_suffix(".shared_mlp.input_linear"))
        {
            (block, &[("mlp.gate_proj", width), ("mlp.up_proj", width)])
        } else if let Some(block) = module.strip_suffix(".shared_mlp.output_linear") {
            return vec![(format!("{block}.mlp.down_proj.{suffix}"), Rows::All)];
        } else {
            return all();
        };
    let of = parts.iter().map(|(_, rows)| rows).sum();
    let mut next = 0;
    let mut part = |&(part, rows): &(&str, usize)| {
        let start = next;
        next += rows;
        (format!("{block}.{part}.{suffix}"), Rows::Some { rows: start..next, of })
    };
    parts.iter().map(&mut part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{
        GgufFile, GgufWeights, GgufWriter, HuggingFaceWeights, MapWeights, Value, Weights,
    };

    const COLUMNS: usize = 256;

    /// Two query heads and one KV head of two dimensions, and a gated network four wide.
    const CONFIG: &str = r#"{"architectures": ["Phi3ForCausalLM"], "vocab_size": 8,
        "hidden_size": 256, "intermediate_size": 4, "num_hidden_layers": 1, "head_dim": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}"#;

    const PARTS: [(&str, &str, Range<usize>); 5] = [
        ("self_attn.qkv_proj", "self_attn.q_proj", 0..4),
        ("self_attn.qkv_proj", "self_attn.k_proj", 4..6),
        ("self_attn.qkv_proj", "self_attn.v_proj", 6..8),
        ("mlp.gate_up_proj", "mlp.gate_proj", 0..4),
        ("mlp.gate_up_proj", "mlp.up_proj", 4..8),
    ];

    fn config() -> ModelConfig {
        ModelConfig::from_huggingface(CONFIG).expect("valid")
    }

    fn matrix(format: Format, rows: usize) -> Tensor<'static> {
        let values: Vec<f32> = (0..rows * COLUMNS).map(|i| (i % 61) as f32 - 30.0).collect();
        Tensor::from_f32(format, Shape::matrix(rows, COLUMNS), &values).expect("whole blocks")
    }

    fn in_layer(part: &str, suffix: &str) -> String {
        format!("model.layers.0.{part}.{suffix}")
    }

    /// Each part is the rows that it should be, and borrowed.
    fn check(weights: &dyn Weights, stored: &Tensor<'_>) {
        for (_, part, range) in PARTS {
            let name = in_layer(part, "weight");
            let rows = stored.slice_rows(range).expect("in range");
            let taken = weights.tensor(&name).expect("a part");
            assert_eq!(taken, rows, "{name}");
            assert!(matches!(taken.into_data(), Cow::Borrowed(_)), "{name}");
        }
        assert!(!weights.contains(&in_layer("self_attn.qkv_proj", "weight")));
    }

    #[test]
    fn fused_rows_of_every_format_are_borrowed_apart() {
        for format in Format::ALL {
            let mut weights = MapWeights::new();
            for (fused, ..) in PARTS {
                weights.insert(in_layer(fused, "weight"), matrix(format, 8));
            }
            check(&HuggingFaceWeights::new(weights, &config()), &matrix(format, 8));
        }
    }

    #[test]
    fn fused_blocks_of_a_gguf_file_are_borrowed_apart() {
        let stored = matrix(Format::Q8_0, 8);
        let writer = GgufWriter::new()
            .metadata("general.architecture", Value::String("phi3".into()))
            .tensor("blk.0.attn_qkv.weight", &stored)
            .tensor("blk.0.ffn_up.weight", &stored);
        let file = GgufFile::from_bytes(writer.finish()).expect("well-formed");
        check(&GgufWeights::new(file.into(), &config()).expect("distinct names"), &stored);
    }

    #[test]
    fn a_fused_bias_comes_apart_as_its_matrix_does() {
        let mut weights = MapWeights::new();
        let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let bias = Tensor::from_f32(Format::F32, Shape::Vector(8), &values).expect("valid");
        weights.insert(in_layer("self_attn.qkv_proj", "bias"), bias);
        let weights = HuggingFaceWeights::new(weights, &config());
        for (_, part, range) in &PARTS[..3] {
            let taken = weights.tensor(&in_layer(part, "bias")).expect("a part");
            assert_eq!(taken.to_f32(), values[range.clone()], "{part}");
        }
    }

    #[test]
    fn a_fused_tensor_of_other_rows_than_its_parts_is_refused() {
        for rows in [7, 9] {
            let mut weights = MapWeights::new();
            weights.insert(in_layer("mlp.gate_up_proj", "weight"), matrix(Format::F32, rows));
            let weights = HuggingFaceWeights::new(weights, &config());
            let name = in_layer("mlp.gate_proj", "weight");
            let error = weights.tensor(&name).expect_err("rows left over, or missing");
            let WeightsError::Tensor { name: found, source } = error else { panic!("{error}") };
            assert_eq!(
                (found, source.to_string()),
                (name, format!("rows 0..8 are not within 0..{rows}"))
            );
        }
    }

    #[test]
    fn the_text_model_is_found_where_larger_models_keep_it() {
        for prefix in ["", "language_model.", "model.language_"] {
            let mut weights = MapWeights::new();
            for name in ["model.norm.weight", "model.layers.0.mlp.gate_up_proj.weight"] {
                weights.insert(format!("{prefix}{name}"), matrix(Format::F32, 8));
            }
            let lm_head = if prefix == "language_model." { prefix } else { "" };
            weights.insert(format!("{lm_head}lm_head.weight"), matrix(Format::F32, 8));
            weights.insert("vision_tower.norm.weight", matrix(Format::F32, 8));
            let weights = HuggingFaceWeights::new(weights, &config());
            let names: Vec<&str> = weights.names().collect();
            let expected = [
                "lm_head.weight",
                "model.layers.0.mlp.gate_proj.weight",
                "model.layers.0.mlp.up_proj.weight",
                "model.norm.weight",
                "vision_tower.norm.weight",
            ];
            assert_eq!(names, expected, "{prefix}");
        }
    }
}
