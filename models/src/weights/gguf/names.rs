//! A GGUF file seen as a Hugging Face checkpoint: its names, its order of rows.
//!
//! The converter that writes llama-family files reorders the rows of the query and key
//! projections, since ggml's rotary embedding for them turns neighbouring dimensions together
//! and Hugging Face's turns dimension `i` with `i + head_dim / 2`. Within a head, row
//! `half * head_dim / 2 + i` there is row `2 * i + half` here. Quantized blocks run along a row,
//! so moving whole rows back is exact in any format. Other families are stored as they are. Parts
//! that a family names differently are in the family's table.

use std::{collections::BTreeMap, sync::Arc};

use super::{GgufError, GgufFile};
use crate::{
    model::ModelConfig,
    weights::{
        Format, Shape, Tensor, WeightFileError, Weights, WeightsError,
        fused::{self, Rows},
    },
};

/// The weights of a GGUF file under the names of Hugging Face.
///
/// Tensors without a counterpart there keep their names (`rope_freqs.weight`).
#[derive(Debug)]
pub struct GgufWeights {
    file: Arc<GgufFile>,
    entries: BTreeMap<String, Entry>,
}

/// A tensor of the file.
#[derive(Debug)]
struct Entry {
    stored_name: String,
    rows: Rows,
    /// If its rows were reordered: the heads that they belong to.
    reordered_heads: Option<usize>,
}

impl GgufWeights {
    /// The weights of `file`, whose configuration is `config`.
    ///
    /// # Errors
    ///
    /// [`WeightFileError::Gguf`] if two tensors have the same name under Hugging Face's rules.
    pub fn new(file: Arc<GgufFile>, config: &ModelConfig) -> Result<Self, WeightFileError> {
        let mut entries = BTreeMap::new();
        for stored_name in file.tensor_names() {
            let parts = config.architecture.family().gguf_parts;
            let name =
                huggingface_name(stored_name, parts).unwrap_or_else(|| stored_name.to_owned());
            for (name, rows) in fused::parts(&name, config) {
                let stored_name = stored_name.to_owned();
                let reordered_heads = reordered_heads(&stored_name, config);
                let entry = Entry { stored_name, rows, reordered_heads };
                if entries.insert(name.clone(), entry).is_some() {
                    return Err(WeightFileError::Gguf {
                        path: file.path().to_owned(),
                        source: GgufError::DuplicateTensor { name },
                    });
                }
            }
        }
        Ok(Self { file, entries })
    }

    /// The rows of the file that a weight is made of, borrowed.
    fn stored(&self, name: &str) -> Result<(&Entry, Tensor<'_>), WeightsError> {
        let Some(entry) = self.entries.get(name) else {
            return Err(WeightsError::MissingTensor { name: name.to_owned() });
        };
        Ok((entry, entry.rows.take(name, self.file.tensor(&entry.stored_name)?)?))
    }

    fn fault(&self, name: &str, source: GgufError) -> WeightsError {
        let (name, path) = (name.to_owned(), self.file.path().to_owned());
        WeightsError::File { name, path, source: source.into() }
    }
}

impl Weights for GgufWeights {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        let (entry, tensor) = self.stored(name)?;
        match entry.reordered_heads {
            None => Ok(tensor),
            Some(heads) => restore_row_order(&entry.stored_name, &tensor, heads)
                .map_err(|source| self.fault(name, source)),
        }
    }

    fn describe(&self, name: &str) -> Result<(Format, Shape), WeightsError> {
        let (entry, tensor) = self.stored(name)?;
        if let Some(heads) = entry.reordered_heads {
            HeadRows::of(&entry.stored_name, &tensor, heads)
                .map_err(|source| self.fault(name, source))?;
        }
        Ok((tensor.format(), tensor.shape()))
    }

    fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.entries.keys().map(String::as_str))
    }
}

/// The name in a Hugging Face checkpoint, if the tensor has one. What `parts` says of a part of a
/// layer goes first.
fn huggingface_name(stored: &str, parts: &[(&str, &str)]) -> Option<String> {
    let own = |part| parts.iter().find(|(theirs, _)| *theirs == part).map(|(_, own)| *own);
    if let Some((layer, parameter)) = layer_and_part(stored)
        && let Some(own) = own(parameter)
    {
        return Some(format!("model.layers.{layer}.{own}"));
    }
    let (stem, suffix) = stored.rsplit_once('.')?;
    if !matches!(suffix, "weight" | "bias") {
        return None;
    }
    let module = match stem {
        "token_embd" => "model.embed_tokens".to_owned(),
        "output_norm" => "model.norm".to_owned(),
        "output" => "lm_head".to_owned(),
        "per_layer_token_embd" => "model.embed_tokens_per_layer".to_owned(),
        "per_layer_model_proj" => "model.per_layer_model_projection".to_owned(),
        "per_layer_proj_norm" => "model.per_layer_projection_norm".to_owned(),
        _ => {
            let (layer, part) = layer_and_part(stem)?;
            let part = match part {
                _ if let Some(own) = own(part) => own,
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_qkv" => "self_attn.qkv_proj",
                "attn_output" => "self_attn.o_proj",
                "attn_q_norm" => "self_attn.q_norm",
                "attn_k_norm" => "self_attn.k_norm",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                _ => return None,
            };
            format!("model.layers.{layer}.{part}")
        }
    };
    Some(format!("{module}.{suffix}"))
}

/// `blk.7.attn_q` is the part `attn_q` of layer 7.
fn layer_and_part(stem: &str) -> Option<(usize, &str)> {
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

fn reordered_heads(stored: &str, config: &ModelConfig) -> Option<usize> {
    if !config.architecture.family().gguf_reorders_rows {
        return None;
    }
    let (stem, _) = stored.rsplit_once('.')?;
    match layer_and_part(stem)?.1 {
        "attn_q" => Some(config.heads),
        "attn_k" => Some(config.kv_heads),
        _ => None,
    }
}

/// The rows of a tensor, or the elements of a bias, by head.
struct HeadRows {
    /// Rows of a head: an even number.
    head_dim: usize,
    row_bytes: usize,
}

impl HeadRows {
    fn of(name: &str, tensor: &Tensor<'_>, heads: usize) -> Result<Self, GgufError> {
        let (rows, row_bytes) = match tensor.shape() {
            Shape::Matrix { .. } | Shape::Stack { .. } => {
                (tensor.shape().rows(), tensor.row_bytes())
            }
            // A bias has an element where a matrix has a row. Blocks can't be taken apart.
            Shape::Vector(_) if tensor.format().is_quantized() => (1, tensor.row_bytes()),
            Shape::Vector(len) => (len, tensor.format().block_bytes()),
        };
        let head_dim = rows.checked_div(heads).unwrap_or(0);
        if head_dim * heads != rows || !head_dim.is_multiple_of(2) {
            return Err(GgufError::RowsAreNotHeads { name: name.to_owned(), rows, heads });
        }
        Ok(Self { head_dim, row_bytes })
    }
}

/// Moves rows, or the elements of a bias, back to Hugging Face's order.
fn restore_row_order(
    name: &str,
    tensor: &Tensor<'_>,
    heads: usize,
) -> Result<Tensor<'static>, GgufError> {
    let HeadRows { head_dim, row_bytes } = HeadRows::of(name, tensor, heads)?;
    let mut data = Vec::with_capacity(tensor.data().len());
    for head in tensor.data().chunks_exact((head_dim * row_bytes).max(1)) {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = 2 * pair + half;
                data.extend_from_slice(&head[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    Tensor::new(tensor.format(), tensor.shape(), data)
        .map_err(|source| GgufError::Tensor { name: name.to_owned(), source: source.into() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_become_those_of_hugging_face() {
        let expected = [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
            ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
            ("blk.11.attn_k.bias", "model.layers.11.self_attn.k_proj.bias"),
            ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
            ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"),
            ("blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
            ("blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm.weight"),
            ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight"),
            ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"),
            ("blk.123.ffn_down.weight", "model.layers.123.mlp.down_proj.weight"),
        ];
        for (stored, name) in expected {
            assert_eq!(huggingface_name(stored, &[]).as_deref(), Some(name));
        }
        for stranger in
            ["rope_freqs.weight", "blk.x.attn_q.weight", "blk.0.attn_sinks.weight", "", "."]
        {
            assert_eq!(huggingface_name(stranger, &[]), None, "{stranger}");
        }
    }

    #[test]
    fn a_name_with_a_dot_is_that_of_a_whole_parameter() {
        let parts = [
            ("ffn_gate_inp", "router.proj"),
            ("ffn_gate_inp.scale", "router.scale"),
            ("layer_output_scale.weight", "layer_scalar"),
        ];
        for (stored, name) in [
            ("blk.3.ffn_gate_inp.weight", Some("model.layers.3.router.proj.weight")),
            ("blk.3.ffn_gate_inp.scale", Some("model.layers.3.router.scale")),
            ("blk.12.layer_output_scale.weight", Some("model.layers.12.layer_scalar")),
            ("blk.3.attn_q.scale", None),
        ] {
            assert_eq!(huggingface_name(stored, &parts).as_deref(), name, "{stored}");
        }
    }

    /// What the converter does, written from its definition: view the rows as
    /// `[heads, 2, head_dim / 2]` and swap the last two axes.
    fn converted<T: Copy>(rows: &[T], heads: usize) -> Vec<T> {
        let half = rows.len() / heads / 2;
        let mut stored = Vec::new();
        for head in 0..heads {
            for pair in 0..half {
                for side in 0..2 {
                    stored.push(rows[(head * 2 + side) * half + pair]);
                }
            }
        }
        stored
    }

    proptest! {
        #[test]
        fn restored_rows_are_those_before_conversion(
            heads in 1usize..5,
            half in 1usize..5,
            format in prop::sample::select(Format::ALL.to_vec()),
        ) {
            let rows: Vec<usize> = (0..heads * half * 2).collect();
            let cols = format.block_elements().max(32);
            let encode = |order: &[usize]| {
                let values: Vec<f32> = order
                    .iter()
                    .flat_map(|&row| (0..cols).map(move |col| (row * cols + col) as f32))
                    .collect();
                Tensor::from_f32(format, Shape::matrix(order.len(), cols), &values)
            };
            let original = encode(&rows)?;
            let stored = encode(&converted(&rows, heads))?;
            prop_assert_eq!(restore_row_order("q", &stored, heads)?, original);
        }
    }

    #[test]
    fn a_bias_is_reordered_element_by_element() {
        let original = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let stored = Tensor::from_f32(Format::F32, Shape::Vector(8), &converted(&original, 2))
            .expect("valid");
        let restored = restore_row_order("q", &stored, 2).expect("whole heads");
        assert_eq!(restored.to_f32(), original);
    }

    #[test]
    fn rows_that_are_not_whole_heads_of_even_size_are_refused() {
        let matrix = |rows: usize| {
            Tensor::from_f32(Format::F32, Shape::matrix(rows, 1), &vec![0.0; rows]).expect("valid")
        };
        for (rows, heads) in [(6, 4), (6, 2), (3, 3), (6, 0), (5, 7)] {
            assert_eq!(
                restore_row_order("q", &matrix(rows), heads),
                Err(GgufError::RowsAreNotHeads { name: "q".into(), rows, heads })
            );
        }
        let quantized_bias =
            Tensor::from_f32(Format::Q8_0, Shape::Vector(32), &[0.0; 32]).expect("valid");
        assert!(restore_row_order("q", &quantized_bias, 2).is_err());
    }
}
