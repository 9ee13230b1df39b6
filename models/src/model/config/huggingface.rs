//! Reads a Hugging Face `config.json`.

use super::{
    Architecture, ConfigError, ModelConfig, RopeScaling, SlidingWindow,
    json::{Fields, missing},
};

const DEFAULT_ROPE_THETA: f32 = 10_000.0;
const DEFAULT_RMS_NORM_EPS: f32 = 1e-6;

/// The configuration as the file has it, not validated. Absent fields mean what they mean to
/// the classes of transformers.
pub(super) fn read(json: &Fields) -> Result<ModelConfig, ConfigError> {
    let architecture = architecture(json)?;
    if let Some(quantization) = json.object("quantization_config")? {
        return Err(ConfigError::Unsupported {
            field: "quantization_config".into(),
            value: quantization.string("quant_method")?.unwrap_or("present").to_owned(),
            supported: "absent; quantized weights are read from GGUF files",
        });
    }
    let activation = json.string("hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        return Err(ConfigError::Unsupported {
            field: "hidden_act".into(),
            value: activation.to_owned(),
            supported: "silu",
        });
    }
    let hidden_size = json.required_usize("hidden_size")?;
    let heads = json.required_usize("num_attention_heads")?;
    let layers = json.required_usize("num_hidden_layers")?;
    let head_dim = match (json.usize("head_dim")?, architecture) {
        (Some(head_dim), _) => head_dim,
        (None, Architecture::Qwen3) => 128,
        // Zero heads are found out in validation.
        (None, _) => hidden_size.checked_div(heads).unwrap_or(0),
    };
    let attention_bias = json.bool("attention_bias")?.unwrap_or(false);
    let (rope_theta, rope_scaling) = rope(json)?;
    Ok(ModelConfig {
        architecture,
        vocab_size: json.required_usize("vocab_size")?,
        hidden_size,
        intermediate_size: json.required_usize("intermediate_size")?,
        layers,
        heads,
        kv_heads: json.usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: json.f32("rms_norm_eps")?.unwrap_or(DEFAULT_RMS_NORM_EPS),
        rope_theta,
        rope_scaling,
        context_length: json.required_usize("max_position_embeddings")?,
        tie_word_embeddings: json.bool("tie_word_embeddings")?.unwrap_or(false),
        // Qwen2 has no switch: always on queries, keys and values, never on the output.
        qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
        attention_output_bias: architecture != Architecture::Qwen2 && attention_bias,
        mlp_bias: architecture == Architecture::Llama && json.bool("mlp_bias")?.unwrap_or(false),
        sliding_window: sliding_window(json, architecture, layers)?,
    })
}

fn architecture(json: &Fields) -> Result<Architecture, ConfigError> {
    if let Some(names) = json.strings("architectures")?
        && let Some(name) = names.first()
    {
        return Architecture::from_name(name);
    }
    match json.string("model_type")? {
        Some(name) => Architecture::from_name(name),
        None => Err(missing("architectures")),
    }
}

/// Theta and scaling, in either spelling: `rope_theta` beside `rope_scaling`, or both within
/// `rope_parameters`.
fn rope(json: &Fields) -> Result<(f32, Option<RopeScaling>), ConfigError> {
    let top_theta = json.f32("rope_theta")?;
    let (spelling, parameters) = match json.object("rope_parameters")? {
        Some(parameters) => ("rope_parameters", Some(parameters)),
        None => ("rope_scaling", json.object("rope_scaling")?),
    };
    let Some(parameters) = parameters else {
        full_rotation(json)?;
        return Ok((top_theta.unwrap_or(DEFAULT_ROPE_THETA), None));
    };
    if parameters.values().any(|value| value.is_object()) {
        return Err(ConfigError::Unsupported {
            field: spelling.to_owned(),
            value: "one set per kind of layer".into(),
            supported: "one for all layers",
        });
    }
    full_rotation(json)?;
    full_rotation(&parameters)?;
    let theta = parameters.f32("rope_theta")?.or(top_theta).unwrap_or(DEFAULT_ROPE_THETA);
    Ok((theta, scaling(json, &parameters)?))
}

/// Refuses models that rotate only a part of each head.
fn full_rotation(json: &Fields) -> Result<(), ConfigError> {
    match json.f32("partial_rotary_factor")? {
        None | Some(1.0) => Ok(()),
        Some(_) => Err(ConfigError::Unsupported {
            field: "partial_rotary_factor".into(),
            value: json.get("partial_rotary_factor").map(ToString::to_string).unwrap_or_default(),
            supported: "1",
        }),
    }
}

fn scaling(json: &Fields, parameters: &Fields) -> Result<Option<RopeScaling>, ConfigError> {
    let kind = match parameters.string("rope_type")? {
        Some(kind) => kind,
        None => parameters.string("type")?.unwrap_or("default"),
    };
    // Kept apart from `max_position_embeddings`, which some checkpoints raise to the
    // stretched length and others leave alone.
    let original_context = || match parameters.usize("original_max_position_embeddings")? {
        Some(length) => Ok(length),
        None => json.required_usize("max_position_embeddings"),
    };
    Ok(match kind {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: parameters.required_f32("factor")? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: parameters.required_f32("factor")?,
            low_freq_factor: parameters.required_f32("low_freq_factor")?,
            high_freq_factor: parameters.required_f32("high_freq_factor")?,
            original_context: original_context()?,
        }),
        "yarn" => {
            for field in ["mscale", "mscale_all_dim"] {
                if parameters.get(field).is_some() {
                    return Err(ConfigError::Unsupported {
                        field: field.into(),
                        value: "present".into(),
                        supported: "absent",
                    });
                }
            }
            if parameters.bool("truncate")? == Some(false) {
                return Err(ConfigError::Unsupported {
                    field: "truncate".into(),
                    value: "false".into(),
                    supported: "true",
                });
            }
            Some(RopeScaling::Yarn {
                factor: parameters.required_f32("factor")?,
                original_context: original_context()?,
                beta_fast: parameters.f32("beta_fast")?.unwrap_or(RopeScaling::YARN_BETA_FAST),
                beta_slow: parameters.f32("beta_slow")?.unwrap_or(RopeScaling::YARN_BETA_SLOW),
                attention_factor: parameters.f32("attention_factor")?,
            })
        }
        other => {
            return Err(ConfigError::Unsupported {
                field: "rope_type".into(),
                value: other.to_owned(),
                supported: "default, linear, llama3, yarn",
            });
        }
    })
}

/// Qwen checkpoints carry a window that is switched off; `use_sliding_window` decides. Where
/// it is on, `layer_types` says in which layers, or `max_window_layers` the first of them.
fn sliding_window(
    json: &Fields,
    architecture: Architecture,
    layers: usize,
) -> Result<Option<SlidingWindow>, ConfigError> {
    let switched_on = match architecture {
        Architecture::Llama => false,
        Architecture::Qwen2 | Architecture::Qwen3 => {
            json.bool("use_sliding_window")?.unwrap_or(false)
        }
    };
    let Some(size) = json.usize("sliding_window")?.filter(|_| switched_on) else {
        return Ok(None);
    };
    let windowed = match json.strings("layer_types")? {
        Some(types) => types.iter().map(|&kind| is_windowed(kind)).collect::<Result<_, _>>()?,
        None => {
            // A bound as in validation, which comes too late for this list.
            let layers = layers.min(super::MAX_LAYERS);
            let first = json.usize("max_window_layers")?.unwrap_or(0);
            (0..layers).map(|layer| layer >= first).collect()
        }
    };
    Ok(Some(SlidingWindow { size, layers: windowed }))
}

fn is_windowed(kind: &str) -> Result<bool, ConfigError> {
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
