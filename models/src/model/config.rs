//! What a checkpoint says about itself, read from `config.json` or from GGUF metadata.
//!
//! A [`ModelConfig`] that exists has been validated: no size is zero or absurd, heads divide
//! evenly, every number is finite. What this crate can't compute (an activation, a kind of
//! RoPE scaling, a mixture of experts where none is expected) is refused here and by name,
//! rather than computed wrongly.

mod error;
mod generation;
mod gguf;
mod huggingface;
pub(crate) mod json;
mod rope;

use std::{fmt, path::Path};

pub use error::ConfigError;
pub use generation::GenerationDefaults;
pub use rope::RopeScaling;

use super::Rotary;
use crate::weights::GgufFile;

/// The families of models that this crate can build programs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM, and whatever else is saved as `LlamaForCausalLM`.
    Llama,
    /// Qwen2 and Qwen2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen3: norms on queries and keys.
    Qwen3,
}

impl Architecture {
    /// Every supported family.
    pub const ALL: [Architecture; 3] =
        [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

    /// The class name in `architectures` of a Hugging Face `config.json`.
    pub const fn huggingface_name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// `model_type` in a `config.json`, and `general.architecture` in a GGUF file.
    pub const fn short_name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }

    /// The family that either of the names stands for.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnknownArchitecture`], which lists the supported ones.
    pub fn from_name(name: &str) -> Result<Self, ConfigError> {
        Self::ALL
            .into_iter()
            .find(|known| name == known.huggingface_name() || name == known.short_name())
            .ok_or_else(|| ConfigError::UnknownArchitecture { found: name.to_owned() })
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

/// The dimensions and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding; token ids are below this.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the gated MLP.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; even. `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Added to the mean square under the root of every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How the rotary frequencies were stretched for a longer context.
    pub rope_scaling: Option<RopeScaling>,
    /// Positions that the model was made for.
    pub context_length: usize,
    /// Whether the output layer is the embedding. A checkpoint may say so and carry an output
    /// layer all the same, or the reverse: what the weights hold decides.
    pub tie_word_embeddings: bool,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub attention_output_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Layers that see only the latest positions.
    pub sliding_window: Option<SlidingWindow>,
}

/// Attention that is limited to a window, in some or all of the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Positions that a token sees, itself included.
    pub size: usize,
    /// For each layer, whether the window applies.
    pub layers: Vec<bool>,
}

impl ModelConfig {
    /// Reads the text of a Hugging Face `config.json`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the field that is missing, of a wrong type, out of range or
    /// not supported.
    pub fn from_huggingface(json: &str) -> Result<Self, ConfigError> {
        huggingface::read(&json::Fields::parse(json)?)?.validated()
    }

    /// Reads the metadata of a GGUF file. Whether projections have biases, and the frequency
    /// factors of Llama 3, are read off the file's tensors.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], as [`from_huggingface`](Self::from_huggingface).
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ConfigError> {
        gguf::read(file)?.validated()
    }

    /// The window of layer `layer`: how many positions a token sees, itself included.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let window = self.sliding_window.as_ref()?;
        window.layers.get(layer).copied().unwrap_or(false).then_some(window.size)
    }

    /// The rotary embedding of this model: theta and scaling put together. The pairs are
    /// Hugging Face's, as the order of rows in [`Weights`](crate::weights::Weights) is.
    pub fn rotary(&self) -> Rotary {
        rope::rotary(self.head_dim, self.rope_theta, self.rope_scaling.as_ref())
    }

    /// Checks what both readers must ensure.
    fn validated(self) -> Result<Self, ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("layers", self.layers, MAX_LAYERS),
            ("heads", self.heads, MAX_HEADS),
            ("kv_heads", self.kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("context_length", self.context_length, MAX_CONTEXT),
        ];
        for (field, value, max) in sizes {
            if !(1..=max).contains(&value) {
                return Err(out_of_range(field, value, format!("1..={max}")));
            }
        }
        for (field, value, divisor_name, divisor) in [
            ("heads", self.heads, "kv_heads", self.kv_heads),
            ("head_dim", self.head_dim, "2, as rotary embedding pairs dimensions", 2),
        ] {
            if !value.is_multiple_of(divisor) {
                return Err(ConfigError::NotDivisible { field, value, divisor_name, divisor });
            }
        }
        // A base of 1 would turn all dimensions alike, and has no logarithm to divide by.
        for (field, value, above) in
            [("rms_norm_eps", self.rms_norm_eps, 0.0), ("rope_theta", self.rope_theta, 1.0)]
        {
            if !value.is_finite() || value <= above {
                return Err(out_of_range(field, value, format!("finite and above {above}")));
            }
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.validate(self.head_dim)?;
        }
        if let Some(window) = &self.sliding_window {
            if window.size == 0 {
                return Err(out_of_range("sliding_window", window.size, "at least 1".into()));
            }
            if window.layers.len() != self.layers {
                return Err(ConfigError::WrongLength {
                    field: "layer_types",
                    expected: self.layers,
                    actual: window.layers.len(),
                });
            }
        }
        Ok(self)
    }
}

// Far above any model, and low enough that products of two sizes fit 64 bits and a table per
// layer or per dimension fits memory.
const MAX_VOCABULARY: usize = 1 << 26;
const MAX_WIDTH: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 14;
const MAX_HEADS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1 << 16;
const MAX_CONTEXT: usize = 1 << 30;

fn out_of_range(field: &'static str, value: impl ToString, allowed: String) -> ConfigError {
    ConfigError::OutOfRange { field, value: value.to_string(), allowed }
}

/// Reads `path`, a text file of the model.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    crate::files::read_text(path)
        .map_err(|source| ConfigError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
