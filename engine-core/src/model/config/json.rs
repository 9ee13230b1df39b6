//! Typed access to the fields of a JSON object, with errors that name the field.

use serde_json::{Map, Value};

use super::ConfigError;

/// A JSON object. A field that is `null` counts as absent, as it does in Python's readers.
#[derive(Debug)]
pub(super) struct Fields {
    fields: Map<String, Value>,
}

impl Fields {
    pub(super) fn parse(json: &str) -> Result<Self, ConfigError> {
        let fields = serde_json::from_str(json).map_err(|source| ConfigError::Json { source })?;
        Ok(Self { fields })
    }

    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn usize(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(field, "a non-negative integer", |value| {
            value.as_u64().and_then(|value| usize::try_from(value).ok())
        })
    }

    pub(super) fn required_usize(&self, field: &str) -> Result<usize, ConfigError> {
        self.usize(field)?.ok_or_else(|| missing(field))
    }

    pub(super) fn f32(&self, field: &str) -> Result<Option<f32>, ConfigError> {
        self.typed(field, "a number", |value| value.as_f64().map(|value| value as f32))
    }

    pub(super) fn required_f32(&self, field: &str) -> Result<f32, ConfigError> {
        self.f32(field)?.ok_or_else(|| missing(field))
    }

    pub(super) fn bool(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(field, "a boolean", Value::as_bool)
    }

    pub(super) fn string(&self, field: &str) -> Result<Option<&str>, ConfigError> {
        self.typed(field, "a string", Value::as_str)
    }

    pub(super) fn strings(&self, field: &str) -> Result<Option<Vec<&str>>, ConfigError> {
        self.typed(field, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<Fields>, ConfigError> {
        self.typed(field, "an object", |value| {
            value.as_object().map(|fields| Fields { fields: fields.clone() })
        })
    }

    pub(super) fn token(&self, field: &str) -> Result<Option<u32>, ConfigError> {
        self.typed(field, "a token id", as_token)
    }

    /// A token id, or a list of them; empty if the field is absent.
    pub(super) fn tokens(&self, field: &str) -> Result<Vec<u32>, ConfigError> {
        let tokens =
            self.typed(field, "a token id or a list of token ids", |value| match value {
                Value::Array(tokens) => tokens.iter().map(as_token).collect(),
                token => as_token(token).map(|token| vec![token]),
            })?;
        Ok(tokens.unwrap_or_default())
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.fields.values()
    }

    fn typed<'a, T>(
        &'a self,
        field: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(ConfigError::WrongType {
                field: field.to_owned(),
                expected,
                found: shortened(value),
            }),
        }
    }
}

pub(super) fn missing(field: &str) -> ConfigError {
    ConfigError::MissingField { field: field.to_owned() }
}

fn as_token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|token| u32::try_from(token).ok())
}

/// The value as JSON; its beginning, if it is long.
fn shortened(value: &Value) -> String {
    const LIMIT: usize = 60;
    let json = value.to_string();
    match json.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &json[..end]),
        None => json,
    }
}
