//! What can be wrong with a model's configuration.

use crate::clip;
use std::{io, path::PathBuf};

use super::Architecture;
use crate::weights::{GgufError, WeightsError};

/// A configuration that can't be read, or describes a model that this crate can't compute.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not JSON, or not an object.
    #[error("not a JSON object")]
    Json {
        /// Where and why.
        source: serde_json::Error,
    },
    /// Metadata of a GGUF file that is absent or of another type than its key calls for.
    #[error("unusable GGUF metadata")]
    Gguf {
        /// The key, and what is wrong with it.
        #[from]
        source: GgufError,
    },
    /// A tensor that is part of the configuration could not be read.
    #[error("cannot read a tensor that belongs to the configuration")]
    Weights {
        /// The tensor, and why; in a box, as it is larger than what the others hold.
        source: Box<WeightsError>,
    },
    /// A model family that this crate has no program for.
    #[error("architecture `{found}` is not supported (supported: {})", supported(), found = clip(found))]
    UnknownArchitecture {
        /// What the model says it is.
        found: String,
    },
    /// A model family that needs a part which this crate does not compute.
    #[error("architecture `{found}` needs {missing}, which is not supported (supported: {})", supported(), found = clip(found))]
    MissingPart {
        /// What the model says it is.
        found: String,
        /// What the family is made of.
        missing: &'static str,
    },
    /// A field that a model can't do without.
    #[error("`{field}` is missing")]
    MissingField {
        /// The field.
        field: String,
    },
    /// A field of another type than it should be.
    #[error("`{field}` is {found}, not {expected}")]
    WrongType {
        /// The field.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// What it is, as JSON.
        found: String,
    },
    /// A number that no sensible model has.
    #[error("`{field}` is {value}, it must be {allowed}", value = clip(value))]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A number that must be a multiple of another one.
    #[error("`{field}` is {value}, not a multiple of {divisor_name} ({divisor})")]
    NotDivisible {
        /// The field.
        field: &'static str,
        /// What it is.
        value: usize,
        /// The other field.
        divisor_name: &'static str,
        /// What that is.
        divisor: usize,
    },
    /// A list with one entry a layer, or a dimension, that has more or fewer.
    #[error("`{field}` has {actual} entries, it must have {expected}")]
    WrongLength {
        /// The field.
        field: &'static str,
        /// Entries that it must have.
        expected: usize,
        /// Entries that it has.
        actual: usize,
    },
    /// A field with a meaning that this crate does not implement.
    #[error("`{field}` = {value} is not supported (supported: {supported})", value = clip(value))]
    Unsupported {
        /// The field.
        field: String,
        /// What it is.
        value: String,
        /// What it may be.
        supported: &'static str,
    },
}

impl From<WeightsError> for ConfigError {
    fn from(source: WeightsError) -> Self {
        Self::Weights { source: Box::new(source) }
    }
}

fn supported() -> String {
    Architecture::all().map(Architecture::name).collect::<Vec<_>>().join(", ")
}
