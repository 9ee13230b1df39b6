//! GGUF, the file format of the ggml project: one file with metadata, tokenizer and weights.
//!
//! [`GgufFile`] reads a file as it is, under its own names. [`GgufWeights`] presents it as a
//! model: names of Hugging Face, rows in the order that Hugging Face has.

mod error;
mod names;
mod reader;
mod value;
mod writer;

use std::path::{Path, PathBuf};

pub use error::GgufError;
pub use names::GgufWeights;
use reader::{Header, Stored};
pub use value::{Array, Metadata, Value};
pub use writer::GgufWriter;

use super::{Tensor, WeightFileError, WeightsError, map::FileBytes};

/// An open GGUF file, version 2 or 3, memory-mapped.
///
/// Opening checks the whole header: every tensor of a supported type lies within the file.
/// The file must not be changed while this lives.
pub struct GgufFile {
    path: PathBuf,
    bytes: FileBytes,
    header: Header,
}

impl GgufFile {
    /// Maps the file at `path` and parses its header.
    ///
    /// # Errors
    ///
    /// [`WeightFileError::Io`] if it can't be read, [`WeightFileError::Gguf`] if it is malformed.
    pub fn open(path: &Path) -> Result<Self, WeightFileError> {
        Self::parse(path.to_owned(), FileBytes::open(path)?)
    }

    /// Parses a file that is already in memory.
    ///
    /// # Errors
    ///
    /// [`WeightFileError::Gguf`] if it is malformed.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, WeightFileError> {
        Self::parse(PathBuf::from("<memory>"), FileBytes::Owned(bytes))
    }

    fn parse(path: PathBuf, bytes: FileBytes) -> Result<Self, WeightFileError> {
        match Header::parse(&bytes) {
            Ok(header) => Ok(Self { path, bytes, header }),
            Err(source) => Err(WeightFileError::Gguf { path, source }),
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// The metadata, tokenizer included.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The names of all tensors, as the file spells them.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor `name`, readable or not.
    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// The tensor `name`, as the file spells it and with the rows as they are.
    ///
    /// # Errors
    ///
    /// [`WeightsError::MissingTensor`], [`WeightsError::UnsupportedType`],
    /// [`WeightsError::UnsupportedRank`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        let Some(stored) = self.header.tensors.get(name) else {
            return Err(WeightsError::MissingTensor { name: name.to_owned() });
        };
        let name = || name.to_owned();
        match stored {
            Stored::Readable { format, shape, bytes } => {
                let bytes = self.bytes.get(bytes.clone()).unwrap_or_default();
                Tensor::new(*format, *shape, bytes)
                    .map_err(|source| WeightsError::Tensor { name: name(), source })
            }
            Stored::UnsupportedType { kind } => {
                Err(WeightsError::UnsupportedType { name: name(), kind: reader::kind_name(*kind) })
            }
            Stored::UnsupportedRank { shape } => {
                Err(WeightsError::UnsupportedRank { name: name(), shape: shape.clone() })
            }
        }
    }
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GgufFile")
            .field("path", &self.path)
            .field("version", &self.header.version)
            .field("tensors", &self.header.tensors.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
