//! What a checkpoint recommends for generation.

use super::{ConfigError, json::Fields};
use crate::clip;
use crate::weights::{
    GgufFile,
    gguf::{Array, Value},
};

/// How many tokens may end a generation; lists of models have less than ten.
pub(crate) const MAX_END_TOKENS: usize = 1_024;

/// The recommendations of `generation_config.json`. A request's own parameters go first;
/// `None` means that the checkpoint has no opinion.
///
/// A model can be used without any of them. So one that makes no sense (a temperature below 0, a
/// token id of -1) is dropped with a warning in the log, and never refuses the model.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationDefaults {
    /// The token that starts a text.
    pub bos_token: Option<u32>,
    /// Any of these ends the generation; at most 1,024.
    pub eos_tokens: Vec<u32>,
    /// `Some(false)` recommends greedy decoding, whatever the temperature.
    pub do_sample: Option<bool>,
    /// At least 0.
    pub temperature: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens up to this much probability; within 0..=1, where 0 is greedy.
    pub top_p: Option<f32>,
    /// Keep tokens at least this likely relative to the likeliest; within 0..=1.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens seen before; above 0.
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Reads the text of `config.json`, and of `generation_config.json` where there is one:
    /// token ids that the latter does not have come from the former.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Json`] if either is no JSON object.
    pub fn from_huggingface(
        config: &str,
        generation_config: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let config = Fields::parse(config)?;
        let mut defaults = match generation_config {
            Some(json) => Self::read(&Fields::parse(json)?, JSON_KEYS),
            None => Self::default(),
        };
        if defaults.eos_tokens.is_empty() {
            defaults.eos_tokens = tokens(&config, "eos_token_id");
        }
        if defaults.bos_token.is_none() {
            defaults.bos_token = tokens(&config, "bos_token_id").first().copied();
        }
        Ok(defaults)
    }

    /// Reads the metadata of a GGUF file: its special tokens, and `general.sampling.*`.
    pub fn from_gguf(file: &GgufFile) -> Self {
        let metadata = file.metadata();
        let mut defaults = Self::read(metadata, GGUF_KEYS);
        for name in ["eot", "eom"] {
            for id in tokens(metadata, &format!("tokenizer.ggml.{name}_token_id")) {
                let ends = &defaults.eos_tokens;
                if ends.len() < MAX_END_TOKENS && !ends.contains(&id) {
                    defaults.eos_tokens.push(id);
                }
            }
        }
        defaults
    }

    fn read(source: &impl Recommendations, keys: Keys) -> Self {
        let probability = |value: f64| (0.0..=1.0).contains(&value);
        let number = |key, is_sensible: &dyn Fn(f64) -> bool| {
            let value = read(source, key, "a sensible number", |found| match found {
                Found::Number(value) if is_sensible(value) => Some(value),
                _ => None,
            });
            value.map(|value| value as f32)
        };
        Self {
            bos_token: tokens(source, keys.bos).first().copied(),
            eos_tokens: tokens(source, keys.eos),
            do_sample: read(source, keys.do_sample, "a boolean", |found| match found {
                Found::Bool(value) => Some(value),
                _ => None,
            }),
            temperature: number(keys.temperature, &|value| {
                (0.0..=f64::from(f32::MAX)).contains(&value)
            }),
            top_k: read(source, keys.top_k, "a whole number", |found| match found {
                // Any number up to 0 is written for "keep all".
                Found::Number(value) if value.fract() == 0.0 => Some(value.max(0.0) as usize),
                _ => None,
            }),
            top_p: number(keys.top_p, &probability),
            min_p: number(keys.min_p, &probability),
            repetition_penalty: number(keys.repetition_penalty, &|value| {
                value as f32 > 0.0 && value <= f64::from(f32::MAX)
            }),
        }
    }
}

/// How a source spells the recommendations; one that it doesn't know is empty.
struct Keys {
    bos: &'static str,
    eos: &'static str,
    do_sample: &'static str,
    temperature: &'static str,
    top_k: &'static str,
    top_p: &'static str,
    min_p: &'static str,
    repetition_penalty: &'static str,
}

const JSON_KEYS: Keys = Keys {
    bos: "bos_token_id",
    eos: "eos_token_id",
    do_sample: "do_sample",
    temperature: "temperature",
    top_k: "top_k",
    top_p: "top_p",
    min_p: "min_p",
    repetition_penalty: "repetition_penalty",
};

const GGUF_KEYS: Keys = Keys {
    bos: "tokenizer.ggml.bos_token_id",
    eos: "tokenizer.ggml.eos_token_id",
    do_sample: "",
    temperature: "general.sampling.temp",
    top_k: "general.sampling.top_k",
    top_p: "general.sampling.top_p",
    min_p: "general.sampling.min_p",
    repetition_penalty: "general.sampling.penalty_repeat",
};

/// A recommendation as either kind of file has it.
enum Found {
    Bool(bool),
    Number(f64),
    Numbers(Vec<f64>),
    /// The beginning of anything else.
    Other(String),
}

/// Where recommendations are found.
trait Recommendations {
    fn find(&self, key: &str) -> Option<Found>;
}

impl Recommendations for Fields {
    fn find(&self, key: &str) -> Option<Found> {
        use serde_json::Value;
        let value = self.get(key)?;
        let numbers = |list: &Vec<Value>| list.iter().map(Value::as_f64).collect::<Option<_>>();
        Some(match value {
            Value::Bool(value) => Found::Bool(*value),
            Value::Array(list) => numbers(list)
                .map_or_else(|| Found::Other(clip(&value.to_string()).to_string()), Found::Numbers),
            _ => value
                .as_f64()
                .map_or_else(|| Found::Other(clip(&value.to_string()).to_string()), Found::Number),
        })
    }
}

impl Recommendations for crate::weights::Metadata {
    fn find(&self, key: &str) -> Option<Found> {
        Some(match self.get(key)? {
            Value::Bool(value) => Found::Bool(*value),
            Value::F32(value) => Found::Number(f64::from(*value)),
            Value::F64(value) => Found::Number(*value),
            Value::Array(Array::F32(values)) => {
                Found::Numbers(values.iter().copied().map(f64::from).collect())
            }
            value @ Value::Array(array) => match array.as_integers() {
                Some(values) => Found::Numbers(values.iter().map(|value| *value as f64).collect()),
                None => Found::Other(value.type_name().to_owned()),
            },
            value => match value.as_integer() {
                Some(integer) => Found::Number(integer as f64),
                None => Found::Other(value.type_name().to_owned()),
            },
        })
    }
}

/// What `convert` makes of the value under `key`; `None` with a warning if it makes nothing of it.
fn read<T>(
    source: &impl Recommendations,
    key: &str,
    expected: &str,
    convert: impl FnOnce(Found) -> Option<T>,
) -> Option<T> {
    let found = source.find(key)?;
    let shown = found.to_string();
    let converted = convert(found);
    if converted.is_none() {
        tracing::warn!("the recommendation `{key}` is ignored: it is {shown}, not {expected}");
    }
    converted
}

/// A token id, or a list of them. Those that can't be ids are left out, and so are those beyond
/// [`MAX_END_TOKENS`].
fn tokens(source: &impl Recommendations, key: &str) -> Vec<u32> {
    let ids = read(source, key, "a token id or a list of token ids", |found| match found {
        Found::Number(id) => Some(vec![id]),
        Found::Numbers(ids) => Some(ids),
        _ => None,
    });
    let ids = ids.unwrap_or_default();
    let is_id = |id: &&f64| id.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(*id);
    let kept: Vec<u32> =
        ids.iter().filter(is_id).take(MAX_END_TOKENS).map(|id| *id as u32).collect();
    let ignored = ids.len() - kept.len();
    if ignored > 0 {
        tracing::warn!(
            "{ignored} of the token ids of `{key}` are ignored: they are no whole numbers of 32 bits, \
             or more than {MAX_END_TOKENS}"
        );
    }
    kept
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Bool(value) => write!(f, "{value}"),
            Found::Number(value) => write!(f, "{value}"),
            Found::Numbers(values) => write!(f, "a list of {} numbers", values.len()),
            Found::Other(text) => f.write_str(text),
        }
    }
}
