//! The keys of one architecture in the metadata of a GGUF file, with errors that name them.

use super::{ConfigError, MAX_LAYERS};
use crate::weights::{
    GgufError,
    gguf::{Metadata, Value},
};

/// The keys of one architecture: `llama.block_count` and so on.
pub(crate) struct Keys<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) architecture: &'a str,
}

impl Keys<'_> {
    pub(super) fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    pub(crate) fn optional(&self, suffix: &str) -> Result<Option<usize>, ConfigError> {
        // A number that does not fit is out of every range that validation allows.
        let value = self.metadata.unsigned(&self.key(suffix))?;
        Ok(value.map(|value| usize::try_from(value).unwrap_or(usize::MAX)))
    }

    pub(crate) fn required(&self, suffix: &str) -> Result<usize, ConfigError> {
        self.optional(suffix)?.ok_or_else(|| self.missing(suffix))
    }

    pub(crate) fn float(&self, suffix: &str) -> Result<Option<f32>, ConfigError> {
        Ok(self.metadata.float(&self.key(suffix))?.map(|value| value as f32))
    }

    pub(super) fn required_float(&self, suffix: &str) -> Result<f32, ConfigError> {
        self.float(suffix)?.ok_or_else(|| self.missing(suffix))
    }

    pub(super) fn missing(&self, suffix: &str) -> ConfigError {
        GgufError::MissingKey { key: self.key(suffix) }.into()
    }

    /// A number that is the same in all layers: alone, or in a list.
    pub(super) fn one_for_all(&self, suffix: &str) -> Result<usize, ConfigError> {
        let key = self.key(suffix);
        let Some(Value::Array(listed)) = self.metadata.get(&key) else {
            return self.required(suffix);
        };
        if listed.len() > MAX_LAYERS {
            return Err(self.wrong_length(listed.len())?);
        }
        let counts = self.metadata.integers(&key)?.unwrap_or_default();
        match counts.first().and_then(|&first| usize::try_from(first).ok()) {
            Some(first) if counts.iter().all(|&count| count == first as i128) => Ok(first),
            _ => Err(ConfigError::Unsupported {
                field: key,
                value: "a list of different numbers".into(),
                supported: "the same number in every layer",
            }),
        }
    }

    pub(super) fn is_list(&self, suffix: &str) -> bool {
        matches!(self.metadata.get(&self.key(suffix)), Some(Value::Array(_)))
    }

    /// A list with a number for each layer.
    pub(super) fn listed(&self, suffix: &str, layers: usize) -> Result<Vec<usize>, ConfigError> {
        let key = self.key(suffix);
        if let Some(Value::Array(listed)) = self.metadata.get(&key)
            && listed.len() != layers
        {
            return Err(self.wrong_length(listed.len())?);
        }
        let counts = self.metadata.integers(&key)?.unwrap_or_default();
        // A number below zero is out of every range that validation allows.
        Ok(counts.into_iter().map(|it| usize::try_from(it).unwrap_or(usize::MAX)).collect())
    }

    /// That of a list of numbers of layers.
    fn wrong_length(&self, actual: usize) -> Result<ConfigError, ConfigError> {
        let expected = self.required("block_count")?;
        Ok(ConfigError::WrongLength { field: "a list of numbers of layers", expected, actual })
    }

    /// Refuses any value but `supported`; absent is fine.
    pub(crate) fn only(&self, suffix: &str, supported: usize) -> Result<(), ConfigError> {
        match self.optional(suffix)? {
            Some(value) if value != supported => Err(ConfigError::Unsupported {
                field: self.key(suffix),
                value: value.to_string(),
                supported: match supported {
                    0 => "0",
                    _ => "the size of a head",
                },
            }),
            _ => Ok(()),
        }
    }
}
