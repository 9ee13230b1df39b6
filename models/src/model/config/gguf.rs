//! Reads the metadata of a GGUF file.

use super::{Architecture, ConfigError, ModelConfig, RopeScaling, SlidingWindow};
use crate::weights::{
    GgufError, GgufFile,
    gguf::{Metadata, Value},
};

/// Per-frequency divisors of Llama 3.
const FREQUENCY_FACTORS: &str = "rope_freqs.weight";
const DEFAULT_ROPE_THETA: f32 = 10_000.0;

/// The configuration as the file has it, not validated. Absent keys mean what they mean to
/// llama.cpp.
pub(super) fn read(file: &GgufFile) -> Result<ModelConfig, ConfigError> {
    let metadata = file.metadata();
    let name = metadata.required("general.architecture", Metadata::string)?;
    let keys = Keys { metadata, architecture: Architecture::from_name(name)? };
    if let Some(parts @ 2..) = metadata.unsigned("split.count")? {
        return Err(GgufError::Split { parts }.into());
    }
    keys.only("expert_count", 0)?;

    let hidden_size = keys.required("embedding_length")?;
    let layers = keys.required("block_count")?;
    // Layers left out would be a model that answers, and wrongly.
    if let Some(name) = file.tensor_names().find(|name| layer_of(name) >= Some(layers)) {
        let (name, key) = (name.to_owned(), keys.key("block_count"));
        return Err(GgufError::LayerOutOfRange { name, key, layers }.into());
    }
    let heads =
        keys.heads("attention.head_count")?.ok_or_else(|| keys.missing("attention.head_count"))?;
    let head_dim = match keys.optional("attention.key_length")? {
        Some(head_dim) => head_dim,
        // Zero heads are found out in validation.
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    keys.only("attention.value_length", head_dim)?;
    keys.only("rope.dimension_count", head_dim)?;
    let has_bias = |layer: &str| file.contains(&format!("blk.0.{layer}.bias"));
    let sliding_window = keys
        .optional("attention.sliding_window")?
        .filter(|&size| size > 0)
        .map(|size| SlidingWindow { size, layers: vec![true; layers.min(super::MAX_LAYERS)] });
    Ok(ModelConfig {
        architecture: keys.architecture,
        vocab_size: vocab_size(&keys)?,
        hidden_size,
        intermediate_size: keys.required("feed_forward_length")?,
        layers,
        heads,
        kv_heads: keys.heads("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: keys.required_float("attention.layer_norm_rms_epsilon")?,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA),
        rope_scaling: rope_scaling(&keys, file)?,
        context_length: keys.required("context_length")?,
        tie_word_embeddings: !file.contains("output.weight"),
        qkv_bias: has_bias("attn_q"),
        attention_output_bias: has_bias("attn_output"),
        mlp_bias: has_bias("ffn_up"),
        sliding_window,
    })
}

/// The layer that a tensor belongs to, by its name.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The key `vocab_size` is optional; the vocabulary itself is as long as the embedding.
fn vocab_size(keys: &Keys<'_>) -> Result<usize, ConfigError> {
    if let Some(size) = keys.optional("vocab_size")? {
        return Ok(size);
    }
    let tokens = keys.metadata.required("tokenizer.ggml.tokens", Metadata::strings)?;
    Ok(tokens.len())
}

fn rope_scaling(keys: &Keys<'_>, file: &GgufFile) -> Result<Option<RopeScaling>, ConfigError> {
    if file.contains(FREQUENCY_FACTORS) {
        return Ok(Some(RopeScaling::Factors(file.tensor(FREQUENCY_FACTORS)?.to_f32())));
    }
    // Without a type a factor means linear; a factor of 0 means none, as in old files.
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.float("rope.scale_linear")?,
    };
    let factor = factor.filter(|&factor| factor != 0.0);
    Ok(match keys.metadata.string(&keys.key("rope.scaling.type"))?.unwrap_or("linear") {
        "none" => None,
        "linear" => factor.map(|factor| RopeScaling::Linear { factor }),
        "yarn" => Some(yarn(keys, factor.ok_or_else(|| keys.missing("rope.scaling.factor"))?)?),
        other => {
            return Err(ConfigError::Unsupported {
                field: keys.key("rope.scaling.type"),
                value: other.to_owned(),
                supported: "none, linear, yarn",
            });
        }
    })
}

fn yarn(keys: &Keys<'_>, factor: f32) -> Result<RopeScaling, ConfigError> {
    let or = |value: Option<f32>, default| value.unwrap_or(default);
    Ok(RopeScaling::Yarn {
        factor,
        original_context: match keys.optional("rope.scaling.original_context_length")? {
            Some(length) => length,
            None => keys.required("context_length")?,
        },
        beta_fast: or(keys.float("rope.scaling.yarn_beta_fast")?, RopeScaling::YARN_BETA_FAST),
        beta_slow: or(keys.float("rope.scaling.yarn_beta_slow")?, RopeScaling::YARN_BETA_SLOW),
        // Here the key multiplies what YaRN recommends; in a config.json it replaces it.
        attention_factor: keys
            .float("rope.scaling.attn_factor")?
            .map(|multiplier| multiplier * RopeScaling::yarn_attention_factor(factor)),
    })
}

/// The keys of one architecture: `llama.block_count` and so on.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture.short_name())
    }

    fn optional(&self, suffix: &str) -> Result<Option<usize>, ConfigError> {
        // A number that does not fit is out of every range that validation allows.
        let value = self.metadata.unsigned(&self.key(suffix))?;
        Ok(value.map(|value| usize::try_from(value).unwrap_or(usize::MAX)))
    }

    fn required(&self, suffix: &str) -> Result<usize, ConfigError> {
        self.optional(suffix)?.ok_or_else(|| self.missing(suffix))
    }

    fn float(&self, suffix: &str) -> Result<Option<f32>, ConfigError> {
        Ok(self.metadata.float(&self.key(suffix))?.map(|value| value as f32))
    }

    fn required_float(&self, suffix: &str) -> Result<f32, ConfigError> {
        self.float(suffix)?.ok_or_else(|| self.missing(suffix))
    }

    fn missing(&self, suffix: &str) -> ConfigError {
        GgufError::MissingKey { key: self.key(suffix) }.into()
    }

    /// A number of heads: one for all layers, or a list with the same one for each.
    fn heads(&self, suffix: &str) -> Result<Option<usize>, ConfigError> {
        let key = self.key(suffix);
        let Some(Value::Array(_)) = self.metadata.get(&key) else { return self.optional(suffix) };
        let counts = self.metadata.integers(&key)?.unwrap_or_default();
        match counts.first().and_then(|&first| usize::try_from(first).ok()) {
            Some(first) if counts.iter().all(|&count| count == first as i128) => Ok(Some(first)),
            _ => Err(ConfigError::Unsupported {
                field: key,
                value: "a list of different numbers".into(),
                supported: "the same number of heads in every layer",
            }),
        }
    }

    /// Refuses any value but `supported`; absent is fine.
    fn only(&self, suffix: &str, supported: usize) -> Result<(), ConfigError> {
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
