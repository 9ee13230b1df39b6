//! One file a family: its names, its fields of the configuration, its layers. To add a family,
//! write its file and add a line to [`FAMILIES`].

mod decoder;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod gpt_oss;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen_moe;
mod smollm3;

use std::{fmt, hash};

use self::decoder::Decoder;
use super::config::{ConfigError, ModelConfig, gguf_keys::Keys, json::Fields};
use crate::weights::GgufFile;
use backend_api::program::{Program, ProgramError, RopePairs, ValueId};

/// The supported families. Where two have a name in common, the first one is meant.
static FAMILIES: [&Family; 19] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &mistral::MINISTRAL3,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gemma4::FAMILY,
    &phi3::FAMILY,
    &granite::FAMILY,
    &granite::GRANITE4,
    &smollm3::FAMILY,
    &olmo2::FAMILY,
    &olmo2::OLMO3,
    &glm4::FAMILY,
    &mixtral::FAMILY,
    &qwen_moe::QWEN2,
    &qwen_moe::QWEN3,
    &gpt_oss::FAMILY,
];

/// Families that are told from unknown ones, and what they are missing: the beginnings of their
/// names in `config.json` and in GGUF files.
const MISSING: [(&[&str], &str); 3] = [
    (
        &[
            "DeepseekV",
            "KimiK2",
            "Glm4MoeLite",
            "MiniCPM3",
            "deepseek_v",
            "deepseek2",
            "kimi_k2",
            "glm4_moe_lite",
            "minicpm3",
        ],
        "multi-head latent attention",
    ),
    (
        &[
            "Qwen3Next",
            "Qwen3_5",
            "Mamba",
            "FalconMamba",
            "FalconH1",
            "Jamba",
            "Bamba",
            "Lfm2",
            "NemotronH",
            "RecurrentGemma",
            "Rwkv",
            "qwen3_next",
            "qwen3next",
            "qwen3_5",
            "qwen35",
            "granitehybrid",
            "mamba",
            "falcon_mamba",
            "falcon_h1",
            "falcon-h1",
            "jamba",
            "bamba",
            "lfm2",
            "nemotron_h",
            "recurrent_gemma",
            "rwkv",
        ],
        "recurrent layers",
    ),
    (&["Gemma3n", "gemma3n"], "AltUp, LAuReL and the per-layer embeddings of Gemma 3n"),
];

/// Name of the output layer's weight, in checkpoints that have one.
pub const OUTPUT_WEIGHT: &str = "lm_head.weight";

/// What is particular about a family. [`Family::PLAIN`] has what most have in common.
pub(crate) struct Family {
    /// What people and programs call it.
    pub(crate) name: &'static str,
    /// Names in `architectures` of a `config.json`; the text model's goes first.
    pub(crate) classes: &'static [&'static str],
    /// `model_type` of a `config.json`, or of the `text_config` within.
    pub(crate) model_types: &'static [&'static str],
    /// `general.architecture` of GGUF files; empty where there are none.
    pub(crate) gguf_names: &'static [&'static str],
    /// Values of fields that a `config.json` leaves out, as the class of transformers has them.
    pub(crate) defaults: fn() -> serde_json::Value,
    /// Reads the fields that only this family has.
    pub(crate) configure: fn(&Fields, &mut ModelConfig) -> Result<(), ConfigError>,
    /// Appends one layer.
    pub(crate) layer: fn(&mut Decoder<'_>, ValueId) -> ValueId,
    /// Which dimensions rotary embedding pairs, in the order of rows of a `safetensors` file.
    pub(crate) rope_pairs: RopePairs,
    /// Whether `partial_rotary_factor` counts.
    pub(crate) rotates_partially: bool,
    /// Numbers in GGUF metadata: key and field of `config.json`.
    pub(crate) gguf_keys: &'static [(&'static str, &'static str)],
    /// Values of fields that GGUF files leave out, where they are not those of [`defaults`](Self::defaults).
    pub(crate) gguf_fields: fn() -> serde_json::Value,
    /// Whether GGUF files list numbers of layers that differ.
    pub(crate) gguf_layers_differ: bool,
    /// Sets the fields of `config.json` that GGUF files spell in ways of the family's own.
    pub(crate) gguf_configure: fn(&Keys<'_>, &GgufFile, &mut Fields) -> Result<(), ConfigError>,
    /// Parts of a layer in GGUF files that are not those of Llama: GGUF's name and Hugging Face's. With
    /// a dot, both are names of a parameter, and otherwise of what has a weight and perhaps a bias.
    pub(crate) gguf_parts: &'static [(&'static str, &'static str)],
    /// Whether the converter to GGUF reorders the rows of queries and keys, so that neighbours are
    /// rotated together.
    pub(crate) gguf_reorders_rows: bool,
    /// Whether `rope.scaling.attn_factor` of YaRN is all that multiplies cosine and sine. Elsewhere
    /// it multiplies what YaRN recommends.
    pub(crate) gguf_attention_factor_is_whole: bool,
}

impl Family {
    /// Llama's layer, halves rotated, nothing of its own.
    const PLAIN: Self = Self {
        name: "",
        classes: &[],
        model_types: &[],
        gguf_names: &[],
        defaults: || serde_json::Value::Null,
        configure: |_, _| Ok(()),
        layer: llama::layer,
        rope_pairs: RopePairs::Halves,
        rotates_partially: false,
        gguf_keys: &[],
        gguf_fields: || serde_json::Value::Null,
        gguf_layers_differ: false,
        gguf_configure: |_, _, _| Ok(()),
        gguf_parts: &[],
        gguf_reorders_rows: false,
        gguf_attention_factor_is_whole: false,
    };
}

/// A family of models that this crate can build programs for.
#[derive(Clone, Copy)]
pub struct Architecture(&'static Family);

impl Architecture {
    /// Every supported family.
    pub fn all() -> impl Iterator<Item = Self> {
        FAMILIES.iter().map(|family| Self(family))
    }

    /// What the family is called here: `llama`, `gemma3`.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// Names in `architectures` of a Hugging Face `config.json`.
    pub const fn huggingface_names(self) -> &'static [&'static str] {
        self.0.classes
    }

    /// `general.architecture` of GGUF files. Empty where llama.cpp doesn't have the family.
    pub const fn gguf_names(self) -> &'static [&'static str] {
        self.0.gguf_names
    }

    /// The family that a name in `architectures` or in `model_type` of a `config.json` stands for.
    ///
    /// # Errors
    ///
    /// [`ConfigError::MissingPart`] for a family that is known and can't be computed;
    /// [`ConfigError::UnknownArchitecture`] for any other.
    pub fn from_name(name: &str) -> Result<Self, ConfigError> {
        find(name, |family| family.classes.contains(&name) || family.model_types.contains(&name))
    }

    /// The family that `general.architecture` of a GGUF file stands for.
    ///
    /// # Errors
    ///
    /// As [`from_name`](Self::from_name).
    pub fn from_gguf_name(name: &str) -> Result<Self, ConfigError> {
        find(name, |family| family.gguf_names.contains(&name))
    }

    pub(crate) const fn family(self) -> &'static Family {
        self.0
    }
}

fn find(name: &str, is_meant: impl Fn(&Family) -> bool) -> Result<Architecture, ConfigError> {
    if let Some(family) = FAMILIES.into_iter().find(|family| is_meant(family)) {
        return Ok(Architecture(family));
    }
    let found = name.to_owned();
    let begins = |(names, _): &&(&[&str], &str)| names.iter().any(|known| name.starts_with(known));
    Err(match MISSING.iter().find(begins) {
        Some((_, missing)) => ConfigError::MissingPart { found, missing },
        None => ConfigError::UnknownArchitecture { found },
    })
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Architecture {}

impl hash::Hash for Architecture {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Architecture({})", self.name())
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Builds the program of a model.
///
/// `has_output_weight` says whether the checkpoint holds [`OUTPUT_WEIGHT`]; where it doesn't,
/// the embedding serves as output layer.
///
/// # Errors
///
/// A configuration whose numbers don't fit together.
pub fn build(config: &ModelConfig, has_output_weight: bool) -> Result<Program, ProgramError> {
    let mut m = Decoder::new(config);
    let mut x = m.embed();
    if config.per_layer_width > 0 {
        m.layer_inputs(x);
    }
    for layer in 0..config.layers.len() {
        m.enter(layer);
        x = (config.architecture.family().layer)(&mut m, x);
    }
    m.finish(x, has_output_weight)
}
