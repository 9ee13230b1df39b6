//! What a checkpoint recommends for generation.

use super::{ConfigError, json::Fields, out_of_range};
use crate::weights::{GgufError, GgufFile, gguf::Metadata};

/// The recommendations of `generation_config.json`. A request's own parameters go first;
/// `None` means that the checkpoint has no opinion.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationDefaults {
    /// The token that starts a text.
    pub bos_token: Option<u32>,
    /// Any of these ends the generation.
    pub eos_tokens: Vec<u32>,
    /// `Some(false)` recommends greedy decoding, whatever the temperature.
    pub do_sample: Option<bool>,
    /// At least 0.
    pub temperature: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens up to this much probability; within 0..=1.
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
    /// [`ConfigError`], naming the field that is of a wrong type or out of range.
    pub fn from_huggingface(
        config: &str,
        generation_config: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let config = Fields::parse(config)?;
        let mut defaults = match generation_config {
            Some(json) => Self::read(&Fields::parse(json)?)?,
            None => Self::default(),
        };
        if defaults.eos_tokens.is_empty() {
            defaults.eos_tokens = config.tokens("eos_token_id")?;
        }
        if defaults.bos_token.is_none() {
            defaults.bos_token = config.token("bos_token_id")?;
        }
        Ok(defaults)
    }

    /// Reads the metadata of a GGUF file: its special tokens, and `general.sampling.*`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the key that is of a wrong type or out of range.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ConfigError> {
        let metadata = file.metadata();
        let mut eos_tokens = Vec::new();
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            let id = token(metadata, &format!("tokenizer.ggml.{key}"))?;
            eos_tokens.extend(id.filter(|id| !eos_tokens.contains(id)));
        }
        let float = |key: &str| -> Result<Option<f32>, ConfigError> {
            let value = metadata.float(&format!("general.sampling.{key}"))?;
            Ok(value.map(|value| value as f32))
        };
        let top_k = metadata.get("general.sampling.top_k").and_then(|value| value.as_integer());
        Self {
            bos_token: token(metadata, "tokenizer.ggml.bos_token_id")?,
            eos_tokens,
            do_sample: None,
            temperature: float("temp")?,
            // llama.cpp writes any number up to 0 for "keep all".
            top_k: top_k.map(|k| usize::try_from(k).unwrap_or(0)),
            top_p: float("top_p")?,
            min_p: float("min_p")?,
            repetition_penalty: float("penalty_repeat")?,
        }
        .validated()
    }

    fn read(json: &Fields) -> Result<Self, ConfigError> {
        Self {
            bos_token: json.token("bos_token_id")?,
            eos_tokens: json.tokens("eos_token_id")?,
            do_sample: json.bool("do_sample")?,
            temperature: json.f32("temperature")?,
            top_k: json.usize("top_k")?,
            top_p: json.f32("top_p")?,
            min_p: json.f32("min_p")?,
            repetition_penalty: json.f32("repetition_penalty")?,
        }
        .validated()
    }

    fn validated(self) -> Result<Self, ConfigError> {
        let probability = |value: f32| (0.0..=1.0).contains(&value);
        let check =
            |field, value: Option<f32>, valid: &dyn Fn(f32) -> bool, allowed: &str| match value {
                Some(value) if !valid(value) => Err(out_of_range(field, value, allowed.to_owned())),
                _ => Ok(()),
            };
        let at_least_zero = |value: f32| value.is_finite() && value >= 0.0;
        let positive = |value: f32| value.is_finite() && value > 0.0;
        check("temperature", self.temperature, &at_least_zero, "finite and at least 0")?;
        check("top_p", self.top_p, &probability, "within 0..=1")?;
        check("min_p", self.min_p, &probability, "within 0..=1")?;
        check("repetition_penalty", self.repetition_penalty, &positive, "finite and positive")?;
        Ok(self)
    }
}

fn token(metadata: &Metadata, key: &str) -> Result<Option<u32>, GgufError> {
    let Some(id) = metadata.unsigned(key)? else { return Ok(None) };
    match u32::try_from(id) {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(GgufError::WrongType {
            key: key.to_owned(),
            expected: "a token id",
            found: "an integer beyond 32 bits",
        }),
    }
}
