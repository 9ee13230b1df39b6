//! What can be wrong with model files.

use std::{io, path::PathBuf};

use super::GgufError;
use crate::clip;

/// A model file that can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightFileError {
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
    /// A part of a split model that is not next to the others.
    #[error("{} is missing: part {number} of {parts} of the model", path.display())]
    MissingPart {
        /// Where it should be.
        path: PathBuf,
        /// Which part, from 1.
        number: u64,
        /// How many there are.
        parts: u64,
    },
    /// A GGUF file that is malformed.
    #[error("{} is not a usable GGUF file", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
}
