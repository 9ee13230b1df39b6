//! GGUF, the file format of the ggml project: one file with metadata, tokenizer and weights.
//!
//! [`GgufFile`] reads a file as it is, under its own names. [`GgufWeights`] presents it as a
//! model: names of Hugging Face, rows in the order that Hugging Face has.

mod error;
mod names;
mod reader;
mod split;
mod value;
mod writer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use error::GgufError;
pub use names::GgufWeights;
use reader::{Header, Stored};
pub use value::{Array, Metadata, Value};
pub use writer::GgufWriter;

#[cfg(test)]
pub(super) fn has_type(format: super::Format) -> bool {
    reader::kind_of(format).is_some()
}

use super::{Tensor, WeightFileError, WeightsError, map::FileBytes};

/// An open GGUF file, version 2 or 3, memory-mapped; or all parts of a model that is split over
/// several such files.
///
/// Opening checks the whole header: every tensor of a supported type lies within the file.
/// The files must not be changed while this lives.
pub struct GgufFile {
    path: PathBuf,
    parts: Vec<Part>,
    version: u32,
    /// Of the first part.
    metadata: Metadata,
    /// By name, with the part that holds the tensor.
    tensors: BTreeMap<String, (usize, Stored)>,
}

/// A file and its bytes.
pub(super) struct Part {
    path: PathBuf,
    bytes: FileBytes,
}

impl Part {
    fn open(path: &Path) -> Result<(Self, Header), WeightFileError> {
        Self::parse(path.to_owned(), FileBytes::open(path)?)
    }

    fn parse(path: PathBuf, bytes: FileBytes) -> Result<(Self, Header), WeightFileError> {
        match Header::parse(&bytes) {
            Ok(header) => Ok((Self { path, bytes }, header)),
            Err(source) => Err(WeightFileError::Gguf { path, source }),
        }
    }
}

impl GgufFile {
    /// Maps the file at `path` and parses its header. Of a split model `path` is any part, whose
    /// name ends in `-00001-of-00003.gguf` or the like; the others lie next to it.
    ///
    /// # Errors
    ///
    /// [`WeightFileError::Io`] if it can't be read, [`WeightFileError::Gguf`] if it is malformed,
    /// [`WeightFileError::MissingPart`] if a part is not there.
    pub fn open(path: &Path) -> Result<Self, WeightFileError> {
        let (part, header) = Part::open(path)?;
        let malformed = |source| WeightFileError::Gguf { path: path.to_owned(), source };
        match split::part_count(&header.metadata).map_err(malformed)? {
            1 => Self::of_parts(path.to_owned(), vec![(part, header)]),
            count => {
                Self::of_parts(path.to_owned(), split::all_parts(path, (part, header), count)?)
            }
        }
    }

    /// Parses a file that is already in memory.
    ///
    /// # Errors
    ///
    /// [`WeightFileError::Gguf`] if it is malformed, or a part of a split model.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, WeightFileError> {
        let path = PathBuf::from("<memory>");
        let (part, header) = Part::parse(path.clone(), FileBytes::Owned(bytes))?;
        match split::part_count(&header.metadata) {
            Ok(1) => Self::of_parts(path, vec![(part, header)]),
            Ok(parts) => {
                Err(WeightFileError::Gguf { path, source: GgufError::SplitName { parts } })
            }
            Err(source) => Err(WeightFileError::Gguf { path, source }),
        }
    }

    fn of_parts(path: PathBuf, all: Vec<(Part, Header)>) -> Result<Self, WeightFileError> {
        let mut file = Self {
            path,
            parts: vec![],
            version: 0,
            metadata: Metadata::default(),
            tensors: BTreeMap::new(),
        };
        for (number, (part, header)) in all.into_iter().enumerate() {
            if number == 0 {
                (file.version, file.metadata) = (header.version, header.metadata);
            }
            for (name, stored) in header.tensors {
                if file.tensors.contains_key(&name) {
                    let source = GgufError::DuplicateTensor { name };
                    return Err(WeightFileError::Gguf { path: part.path, source });
                }
                file.tensors.insert(name, (number, stored));
            }
            file.parts.push(part);
        }
        Ok(file)
    }

    /// The names of all parts of a split model, given one of them (`DIRECTORY/NAME-00001-of-00003.gguf`);
    /// none for a name that isn't a part's.
    pub fn part_names(part: &str) -> Vec<String> {
        split::PartName::parse(part).map(|name| name.all()).unwrap_or_default()
    }

    /// Where the file is: the part that was opened, of a split model.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where all parts are; the file alone, unless the model is split.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// Bytes of the file, or of all parts together.
    pub fn byte_len(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata, tokenizer included.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The names of all tensors, as the file spells them.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor `name`, readable or not.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`, as the file spells it and with the rows as they are.
    ///
    /// # Errors
    ///
    /// [`WeightsError::MissingTensor`], [`WeightsError::UnsupportedType`],
    /// [`WeightsError::UnsupportedRank`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        let Some((part, stored)) = self.tensors.get(name) else {
            return Err(WeightsError::MissingTensor { name: name.to_owned() });
        };
        let name = || name.to_owned();
        match stored {
            Stored::Readable { format, shape, bytes } => {
                let part = self.parts.get(*part);
                let bytes = part.and_then(|part| part.bytes.get(bytes.clone())).unwrap_or_default();
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
            .field("version", &self.version)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
