//! What can be wrong with weights.

use std::{error::Error, ops::Range, path::PathBuf};

use super::{Format, Shape};
use crate::clip;

/// A tensor whose format, shape and bytes don't fit together, or a slice that doesn't fit
/// the tensor.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum TensorError {
    /// A row that is not a whole number of quantized blocks.
    #[error("a row of {cols} elements is not a whole number of {format} blocks ({} elements each)", format.block_elements())]
    RaggedRow {
        /// The quantized format.
        format: Format,
        /// Elements in the row.
        cols: usize,
    },
    /// A size that this machine can't address.
    #[error("a tensor of {rows} x {cols} elements is too large for this machine")]
    TooLarge {
        /// Rows claimed.
        rows: usize,
        /// Columns claimed.
        cols: usize,
    },
    /// More or fewer bytes or elements than format and shape call for.
    #[error("a {format} tensor of shape {shape} takes {expected} {what}, not {actual}")]
    WrongSize {
        /// `bytes` or `elements`.
        what: &'static str,
        /// Element format.
        format: Format,
        /// Tensor shape.
        shape: Shape,
        /// How many it takes.
        expected: usize,
        /// How many were given.
        actual: usize,
    },
    /// A slice that reaches past the tensor, or runs backwards.
    #[error("{axis} {}..{} are not within 0..{len}", range.start, range.end)]
    SliceOutOfRange {
        /// `rows` or `columns`.
        axis: &'static str,
        /// The range asked for.
        range: Range<usize>,
        /// What there is.
        len: usize,
    },
    /// A slice of columns that would cut a quantized block.
    #[error("columns {}..{} would cut a {format} block of {} elements", range.start, range.end, format.block_elements())]
    SliceInsideBlock {
        /// The quantized format.
        format: Format,
        /// The range asked for.
        range: Range<usize>,
    },
}

/// A weight that can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// No tensor of that name.
    #[error("the model has no tensor `{name}`", name = clip(name))]
    MissingTensor {
        /// The name asked for.
        name: String,
    },
    /// A tensor stored in a way that this crate does not read.
    #[error(
        "tensor `{name}` is stored as {kind}, which is not supported (supported: F32, F16, BF16, and in GGUF files {gguf})",
        gguf = "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4",
        name = clip(name)
    )]
    UnsupportedType {
        /// The tensor.
        name: String,
        /// Its type, as its file names it.
        kind: String,
    },
    /// A tensor that is no vector, no matrix and no stack of matrices.
    #[error("tensor `{name}` has shape {shape:?}; only vectors, matrices and stacks of matrices are supported", name = clip(name))]
    UnsupportedRank {
        /// The tensor.
        name: String,
        /// Its dimensions, slowest first.
        shape: Vec<usize>,
    },
    /// A tensor that is inconsistent in itself.
    #[error("tensor `{name}` is malformed", name = clip(name))]
    Tensor {
        /// The tensor.
        name: String,
        /// What does not fit.
        source: TensorError,
    },
    /// A tensor that is quantized in several parts which don't fit together.
    #[error("tensor `{name}` can't be put together from its quantized parts: {reason}", name = clip(name))]
    Quantized {
        /// The tensor.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// The file that holds the tensor is malformed where the tensor needs the file to be right.
    #[error("{} can't give tensor `{name}`", path.display(), name = clip(name))]
    File {
        /// The tensor.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
}
