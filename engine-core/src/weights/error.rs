//! What can be wrong with weights.

use crate::error::clip;
use std::{io, ops::Range, path::PathBuf};

use super::{Format, GgufError, Shape};

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
    /// More or fewer bytes than format and shape call for.
    #[error("a {format} tensor of shape {shape} takes {expected} bytes, not {actual}")]
    WrongByteCount {
        /// Element format.
        format: Format,
        /// Tensor shape.
        shape: Shape,
        /// Bytes that it takes.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
    /// More or fewer values than the shape calls for.
    #[error("a tensor of shape {shape} has {expected} elements, not {actual}")]
    WrongElementCount {
        /// Tensor shape.
        shape: Shape,
        /// Elements that it has.
        expected: usize,
        /// Values that were given.
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

/// A model file that can't be read, or a weight that can't be found in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory with neither `model.safetensors` nor an index of shards.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json", directory.display())]
    NoWeightFiles {
        /// The directory.
        directory: PathBuf,
    },
    /// A safetensors file that ends before its header does.
    #[error("{} is truncated: its header needs {needed} bytes, the file has {actual}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes up to the end of the header.
        needed: u64,
        /// Bytes in the file.
        actual: u64,
    },
    /// A safetensors header of absurd size.
    #[error("the header of {} has {bytes} bytes, more than any real one", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes of the header.
        bytes: usize,
    },
    /// A safetensors header or an index that is not what it should be.
    #[error("{} is malformed", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A safetensors file with more or fewer bytes than its header describes.
    #[error("{} is truncated or malformed: its header describes {claimed} bytes of tensors, it holds {actual}", path.display())]
    DataSize {
        /// The file.
        path: PathBuf,
        /// Bytes that the header describes.
        claimed: usize,
        /// Bytes that follow it.
        actual: usize,
    },
    /// An index that names a shard outside its directory.
    #[error("`{file}` in the index is not the name of a file next to it", file = clip(file))]
    ShardName {
        /// What the index says.
        file: String,
    },
    /// An index that places a tensor in a shard that does not hold it.
    #[error("{} does not hold tensor `{name}`, contrary to the index", shard.display(), name = clip(name))]
    NotInShard {
        /// The tensor.
        name: String,
        /// The shard.
        shard: PathBuf,
    },
    /// A GGUF file that is malformed.
    #[error("{} is not a usable GGUF file", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// No tensor of that name.
    #[error("the model has no tensor `{name}`", name = clip(name))]
    MissingTensor {
        /// The name asked for.
        name: String,
    },
    /// A tensor stored in a way that this crate does not read.
    #[error(
        "tensor `{name}` is stored as {kind}, which is not supported (supported: F32, F16, BF16, and from GGUF files Q4_0, Q4_1, Q8_0)", name = clip(name))]
    UnsupportedType {
        /// The tensor.
        name: String,
        /// Its type, as its file names it.
        kind: String,
    },
    /// A tensor that is neither a vector nor a matrix.
    #[error("tensor `{name}` has shape {shape:?}; only vectors and matrices are supported", name = clip(name))]
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
}
