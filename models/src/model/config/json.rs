//! Typed access to the fields of a JSON object, with errors that name the field.

use serde_json::{Map, Value};

use super::ConfigError;

/// Reads an object of JSON as Python writes it: with the names `NaN`, `Infinity` and `-Infinity`
/// where those numbers stand. They become strings, so that a field that must be a number says what
/// it is instead, and all others are read.
pub(crate) fn object(json: &str) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_str(json).or_else(|error| match quote_names_of_numbers(json) {
        Some(quoted) => serde_json::from_str(&quoted),
        None => Err(error),
    })
}

/// `None` if there is no such name outside of strings.
fn quote_names_of_numbers(json: &str) -> Option<String> {
    let mut quoted = String::new();
    let mut done = 0;
    let mut is_string = false;
    let mut bytes = json.bytes().enumerate();
    while let Some((place, byte)) = bytes.next() {
        match byte {
            b'"' => is_string = !is_string,
            b'\\' if is_string => drop(bytes.next()),
            b'N' | b'I' | b'-' if !is_string && place >= done => {
                let name = ["NaN", "Infinity", "-Infinity"]
                    .into_iter()
                    .find(|name| json[place..].starts_with(name));
                if let Some(name) = name {
                    quoted.extend([&json[done..place], "\"", name, "\""]);
                    done = place + name.len();
                }
            }
            _ => {}
        }
    }
    (done > 0).then(|| quoted + &json[done..])
}

/// A JSON object. A field that is `null` counts as absent, as it does in Python's readers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields {
    fields: Map<String, Value>,
}

impl Fields {
    pub(crate) fn parse(json: &str) -> Result<Self, ConfigError> {
        let fields = object(json).map_err(|source| ConfigError::Json { source })?;
        Ok(Self { fields })
    }

    /// A value of its own, for files that spell the fields otherwise.
    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.fields.insert(field.to_owned(), value.into());
    }

    /// Gives fields that are absent the value in `defaults`. A field that is `null` stays so.
    pub(super) fn set_defaults(&mut self, defaults: Value) {
        let Value::Object(defaults) = defaults else { return };
        for (field, value) in defaults {
            self.fields.entry(field).or_insert(value);
        }
    }

    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn usize(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(field, "a non-negative integer", |value| {
            value.as_u64().and_then(|value| usize::try_from(value).ok())
        })
    }

    pub(crate) fn required_usize(&self, field: &str) -> Result<usize, ConfigError> {
        self.usize(field)?.ok_or_else(|| missing(field))
    }

    pub(crate) fn f32(&self, field: &str) -> Result<Option<f32>, ConfigError> {
        self.typed(field, "a number of 32 bits", |value| {
            value.as_f64().map(|value| value as f32).filter(|value| value.is_finite())
        })
    }

    pub(crate) fn required_f32(&self, field: &str) -> Result<f32, ConfigError> {
        self.f32(field)?.ok_or_else(|| missing(field))
    }

    pub(crate) fn bool(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(field, "a boolean", Value::as_bool)
    }

    pub(crate) fn string(&self, field: &str) -> Result<Option<&str>, ConfigError> {
        self.typed(field, "a string", Value::as_str)
    }

    pub(crate) fn strings(&self, field: &str) -> Result<Option<Vec<&str>>, ConfigError> {
        self.typed(field, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields>, ConfigError> {
        self.typed(field, "an object", |value| {
            value.as_object().map(|fields| Fields { fields: fields.clone() })
        })
    }

    /// All members, each of which must be an object.
    pub(crate) fn objects(&self) -> impl Iterator<Item = Result<Fields, ConfigError>> {
        self.fields.keys().filter_map(|field| self.object(field).transpose())
    }

    pub(crate) fn usizes(&self, field: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        self.typed(field, "a list of non-negative integers", |value| {
            let integer = |value: &Value| usize::try_from(value.as_u64()?).ok();
            value.as_array()?.iter().map(integer).collect()
        })
    }

    pub(crate) fn f32s(&self, field: &str) -> Result<Option<Vec<f32>>, ConfigError> {
        self.typed(field, "a list of numbers", |value| {
            let number = |value: &Value| Some(value.as_f64()? as f32);
            value.as_array()?.iter().map(number).collect()
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
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

pub(crate) fn missing(field: &str) -> ConfigError {
    ConfigError::MissingField { field: field.to_owned() }
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
