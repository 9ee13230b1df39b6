//! What a checkpoint says about itself, read from `config.json` or from GGUF metadata.
//!
//! A [`ModelConfig`] that exists has been validated: no size is zero or absurd, heads divide
//! evenly, every number is finite. What this crate can't compute (an activation, a kind of
//! RoPE scaling, a mixture of experts where none is expected) is refused here and by name,
//! rather than computed wrongly.

mod error;
mod generation;
pub(crate) mod gguf;
pub(crate) mod gguf_keys;
mod huggingface;
pub(crate) mod json;
mod rope;

use std::{path::Path, sync::Arc};

pub use error::ConfigError;
pub use generation::GenerationDefaults;
pub(crate) use generation::MAX_END_TOKENS;
pub(crate) use huggingface::read_windows;
pub use rope::{Rope, RopeScaling};

pub use super::arch::Architecture;
use crate::weights::GgufFile;
use backend_api::program::Activation;

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
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; even. `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// The transformer blocks, from the embedding up.
    pub layers: Vec<LayerConfig>,
    /// Nonlinearity of the gated MLP.
    pub activation: Activation,
    /// Added to the mean square under the root of every norm.
    pub rms_norm_eps: f32,
    /// Added to the weight of every norm: 1 where the files hold the difference from one.
    pub norm_weight_offset: f32,
    /// Positions that the model is used for. Opening a model sets what the model was made for; a
    /// program with LongRoPE rotates differently for a context within the original one.
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
    /// Constants between the parts.
    pub multipliers: Multipliers,
    /// How queries grow with their position, beside rotary embedding.
    pub query_scaling: Option<QueryScaling>,
    /// The mixture of experts that stands where other layers have an MLP.
    pub experts: Option<ExpertsConfig>,
    /// Whether each query head has a learned logit that takes part in the softmax and has no value.
    pub attention_sinks: bool,
    /// Width of an input that each layer has of its own (Gemma 4); 0 is none.
    pub per_layer_width: usize,
    /// Bound of the attention scores, `cap * tanh(score / cap)`.
    pub attention_soft_cap: Option<f32>,
    /// Bound of the logits.
    pub logits_soft_cap: Option<f32>,
}

/// Where the layers of one model differ.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerConfig {
    /// How many positions a token sees, itself included; `None` is all.
    pub window: Option<usize>,
    /// Position embedding of queries and keys; `None` is a layer without (NoPE).
    pub rope: Option<Arc<Rope>>,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of the gated MLP.
    pub intermediate_size: usize,
    /// The earlier layer whose keys and values it reads, instead of its own.
    pub kv_of: Option<usize>,
    /// Whether values are what keys are before their norm and rotation.
    pub value_is_key: bool,
    /// Whether it has the experts of a model that has some.
    pub has_experts: bool,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ExpertsConfig {
    /// How many there are.
    pub count: usize,
    /// How many a token goes through.
    pub chosen: usize,
    /// Inner width of each.
    pub width: usize,
    /// Whether the weights of the chosen ones are divided by their sum.
    pub normalize: bool,
    /// Whether the router and each layer of an expert has a bias.
    pub has_bias: bool,
    /// Inner width of the expert that all tokens share; 0 is none.
    pub shared_width: usize,
    /// How files that keep gate and up in one tensor do so.
    pub fused: FusedExperts,
}

/// How files keep the gates and ups of experts in one tensor, if they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FusedExperts {
    /// Each expert's gate above its up, `[experts, 2 * width, inputs]`.
    GateFirst,
    /// A row of the gate and a row of the up in turns; `[experts, inputs, 2 * width]` unless in
    /// blocks.
    InTurns,
}

impl ExpertsConfig {
    pub(crate) fn new(count: usize, chosen: usize, width: usize) -> Self {
        let fused = FusedExperts::GateFirst;
        Self { count, chosen, width, normalize: false, has_bias: false, shared_width: 0, fused }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value, max) in [
            ("num_experts", self.count, MAX_EXPERTS),
            ("num_experts_per_tok", self.chosen, self.count),
            ("moe_intermediate_size", self.width, MAX_WIDTH),
        ] {
            if !(1..=max).contains(&value) {
                return Err(out_of_range(field, value, format!("1..={max}")));
            }
        }
        if self.shared_width > MAX_WIDTH {
            let allowed = format!("0..={MAX_WIDTH}");
            return Err(out_of_range(
                "shared_expert_intermediate_size",
                self.shared_width,
                allowed,
            ));
        }
        Ok(())
    }
}

impl LayerConfig {
    fn validate(&self, index: usize, heads: usize) -> Result<(), ConfigError> {
        for (field, value, max) in [
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("kv_heads", self.kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
        ] {
            if !(1..=max).contains(&value) {
                return Err(out_of_range(field, value, format!("1..={max}")));
            }
        }
        for (field, value, divisor_name, divisor) in [
            ("heads", heads, "kv_heads", self.kv_heads),
            ("head_dim", self.head_dim, "2, as rotary embedding pairs dimensions", 2),
        ] {
            if !value.is_multiple_of(divisor) {
                return Err(ConfigError::NotDivisible { field, value, divisor_name, divisor });
            }
        }
        if self.window == Some(0) {
            return Err(out_of_range("sliding_window", 0, "at least 1".into()));
        }
        if let Some(of) = self.kv_of
            && of >= index
        {
            return Err(out_of_range("the layer of shared KV", of, format!("0..{index}")));
        }
        self.rope.as_ref().map_or(Ok(()), |rope| rope.validate(self.head_dim))
    }
}

/// Queries at position `p` are multiplied by `1 + beta * ln(1 + floor(p / original_context))`, so
/// that attention stays sharp in long contexts (Llama 4, Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct QueryScaling {
    /// Strength.
    pub beta: f32,
    /// Positions up to the first step.
    pub original_context: usize,
}

/// Constants that a model multiplies with.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Multipliers {
    /// Of the embedding.
    pub embedding: f32,
    /// Of the attention scores; `1 / sqrt(head_dim)` in most families.
    pub attention: f32,
    /// Of each branch before it joins the residual stream.
    pub residual: f32,
    /// Of the logits.
    pub logits: f32,
}

impl ModelConfig {
    /// Reads the text of a Hugging Face `config.json`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the field that is missing, of a wrong type, out of range or
    /// not supported.
    pub fn from_huggingface(json: &str) -> Result<Self, ConfigError> {
        huggingface::read_file(&json::Fields::parse(json)?)?.validated()
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

    /// Gives each layer the window `size` for which `is_windowed` says so.
    pub(crate) fn set_windows(&mut self, size: Option<usize>, is_windowed: impl Fn(usize) -> bool) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.window = size.filter(|_| is_windowed(index));
        }
    }

    /// The layers that have a window.
    pub(crate) fn windowed_layers(&mut self) -> impl Iterator<Item = &mut LayerConfig> {
        self.layers.iter_mut().filter(|layer| layer.window.is_some())
    }

    /// Checks what both readers must ensure.
    fn validated(self) -> Result<Self, ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("layers", self.layers.len(), MAX_LAYERS),
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
        let Multipliers { embedding, attention, residual, logits } = self.multipliers;
        for (field, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("the multiplier of the embedding", embedding),
            ("the multiplier of attention scores", attention),
            ("the multiplier of residuals", residual),
            ("the multiplier of logits", logits),
            ("the bound of attention scores", self.attention_soft_cap.unwrap_or(1.0)),
            ("the bound of logits", self.logits_soft_cap.unwrap_or(1.0)),
        ] {
            if !value.is_finite() || value <= 0.0 {
                return Err(out_of_range(field, value, "finite and above 0".into()));
            }
        }
        if let Some(QueryScaling { beta, original_context }) = self.query_scaling {
            if !beta.is_finite() || beta < 0.0 {
                return Err(out_of_range("llama_4_scaling_beta", beta, "0 or more".into()));
            }
            if original_context == 0 {
                return Err(out_of_range("original_context", 0, "at least 1".into()));
            }
        }
        if self.per_layer_width > MAX_WIDTH {
            let (field, allowed) = ("hidden_size_per_layer_input", format!("0..={MAX_WIDTH}"));
            return Err(out_of_range(field, self.per_layer_width, allowed));
        }
        self.experts.as_ref().map_or(Ok(()), ExpertsConfig::validate)?;
        for (index, layer) in self.layers.iter().enumerate() {
            layer.validate(index, self.heads)?;
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
const MAX_EXPERTS: usize = 1 << 16;
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
