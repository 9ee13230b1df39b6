//! Weights that a file stores as one, each below the other: a program reads rows of them.
//!
//! Phi-3 has query, key and value in `qkv_proj`; Phi-3 and GLM-4 have the gate and what it opens in
//! `gate_up_proj`. Blocks of quantized formats run along a row, so any rows can be taken.

use std::ops::Range;

use super::{Tensor, TensorError, WeightsError};
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
        let Self::Some { rows, of } = self else { return Ok(tensor) };
        let taken = match tensor.output_features() {
            found if found == *of => tensor.into_output_features(rows.clone()),
            len => Err(TensorError::SliceOutOfRange { axis: "rows", range: 0..*of, len }),
        };
        taken.map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
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
        } else if let Some(block) = module.strip_suffix(".mlp.gate_up_proj") {
            (block, &[("mlp.gate_proj", width), ("mlp.up_proj", width)])
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
