//! Reads a Hugging Face `config.json`, in which GGUF metadata are spelled as well (see `gguf`).
//!
//! What all families share is read here; what is particular, by the family's `configure`.

use super::{
    Architecture, ConfigError, LayerConfig, MAX_LAYERS, ModelConfig, Multipliers,
    json::{Fields, missing},
    out_of_range, rope,
};
use crate::weights::Scheme;
use backend_api::program::Activation;

const DEFAULT_RMS_NORM_EPS: f32 = 1e-6;

/// The configuration as the file has it, not validated.
pub(super) fn read_file(json: &Fields) -> Result<ModelConfig, ConfigError> {
    let text = json.object("text_config")?;
    let architecture = architecture(json, text.as_ref())?;
    Scheme::read(json)?;
    // A model of text and images nests what describes the text.
    read(text.unwrap_or_else(|| json.clone()), architecture)
}

/// The family: of the text model where there is one within, by its `model_type`.
fn architecture(json: &Fields, text: Option<&Fields>) -> Result<Architecture, ConfigError> {
    let model_type = |fields: &Fields| match fields.string("model_type")? {
        Some(name) => Architecture::from_name(name).map(Some),
        None => Ok(None),
    };
    let class = match json.strings("architectures")?.as_deref() {
        Some([name, ..]) => Some(Architecture::from_name(name)?),
        _ => None,
    };
    if let Some(text) = text
        && let Some(found) = model_type(text)?
    {
        return Ok(found);
    }
    match class {
        Some(found) => Ok(found),
        None => model_type(json)?.ok_or_else(|| missing("architectures")),
    }
}

/// Reads `json`, in which absent fields mean what they mean to the family's class of transformers.
pub(super) fn read(
    mut json: Fields,
    architecture: Architecture,
) -> Result<ModelConfig, ConfigError> {
    let family = architecture.family();
    json.set_defaults((family.defaults)());
    let json = &json;
    let layers = json.required_usize("num_hidden_layers")?;
    if layers > MAX_LAYERS {
        return Err(out_of_range("layers", layers, format!("1..={MAX_LAYERS}")));
    }
    let hidden_size = json.required_usize("hidden_size")?;
    let heads = json.required_usize("num_attention_heads")?;
    // Zero heads are found out in validation.
    let head_dim =
        json.usize("head_dim")?.unwrap_or_else(|| hidden_size.checked_div(heads).unwrap_or(0));
    let attention_bias = json.bool("attention_bias")?.unwrap_or(false);
    let (rope, windowed_rope) = rope::read(json, head_dim, family)?;
    let intermediate_size = json.required_usize("intermediate_size")?;
    let kv_heads = json.usize("num_key_value_heads")?.unwrap_or(heads);
    let layer = LayerConfig {
        window: None,
        rope: Some(rope),
        kv_heads,
        head_dim,
        intermediate_size,
        kv_of: None,
        value_is_key: false,
        has_experts: true,
    };
    let mut config = ModelConfig {
        architecture,
        vocab_size: json.required_usize("vocab_size")?,
        hidden_size,
        intermediate_size,
        heads,
        kv_heads,
        head_dim,
        layers: vec![layer; layers],
        activation: activation(json)?,
        rms_norm_eps: json.f32("rms_norm_eps")?.unwrap_or(DEFAULT_RMS_NORM_EPS),
        norm_weight_offset: 0.0,
        context_length: json.required_usize("max_position_embeddings")?,
        tie_word_embeddings: json.bool("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: attention_bias,
        attention_output_bias: attention_bias,
        mlp_bias: json.bool("mlp_bias")?.unwrap_or(false),
        multipliers: Multipliers {
            embedding: 1.0,
            attention: 1.0 / (head_dim.max(1) as f32).sqrt(),
            residual: 1.0,
            logits: 1.0,
        },
        query_scaling: None,
        experts: None,
        attention_sinks: false,
        per_layer_width: 0,
        attention_soft_cap: None,
        logits_soft_cap: None,
    };
    (family.configure)(json, &mut config)?;
    if let Some(rope) = windowed_rope {
        config.windowed_layers().for_each(|layer| layer.rope = Some(rope.clone()));
    }
    Ok(config)
}

/// Gemma's field goes first: files of Gemma 2 have both.
fn activation(json: &Fields) -> Result<Activation, ConfigError> {
    let field = ["hidden_activation", "hidden_act"].into_iter().find(|it| json.get(it).is_some());
    let Some(field) = field else { return Ok(Activation::Silu) };
    match json.string(field)?.unwrap_or_default() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        other => Err(ConfigError::Unsupported {
            field: field.to_owned(),
            value: other.to_owned(),
            supported: "silu, gelu_pytorch_tanh",
        }),
    }
}

/// Gives layers the window `sliding_window`, if there is one: those that `layer_types` lists as
/// windowed, or else those for which `is_windowed` says so.
pub(crate) fn read_windows(
    json: &Fields,
    config: &mut ModelConfig,
    is_windowed: impl Fn(usize) -> bool,
) -> Result<(), ConfigError> {
    let size = json.usize("sliding_window")?;
    let Some(types) = json.strings("layer_types")? else {
        config.set_windows(size, is_windowed);
        return Ok(());
    };
    let windowed: Vec<bool> =
        types.iter().map(|&kind| is_sliding(kind)).collect::<Result<_, _>>()?;
    if windowed.len() != config.layers.len() {
        return Err(ConfigError::WrongLength {
            field: "layer_types",
            expected: config.layers.len(),
            actual: windowed.len(),
        });
    }
    config.set_windows(size, |layer| windowed.get(layer).copied().unwrap_or(false));
    Ok(())
}

fn is_sliding(kind: &str) -> Result<bool, ConfigError> {
    match kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(ConfigError::Unsupported {
            field: "layer_types".into(),
            value: other.to_owned(),
            supported: "full_attention, sliding_attention",
        }),
    }
}
