//! Reads the metadata of a GGUF file, by spelling them as a `config.json`.
//!
//! Keys that all families share are translated here; a family's own keys are in its table. Absent
//! keys mean what they mean to llama.cpp.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::{
    Architecture, ConfigError, MAX_LAYERS, ModelConfig, Rope, RopeScaling, gguf_keys::Keys,
    huggingface, json::Fields, out_of_range, rope,
};
use crate::weights::{
    GgufError, GgufFile,
    gguf::{Array, Metadata, Value},
};

/// Per-frequency divisors of Llama 3.
pub(crate) const FREQUENCY_FACTORS: &str = "rope_freqs.weight";
/// Per-frequency divisors of LongRoPE, for contexts up to the original and beyond.
const LONG_ROPE_FACTORS: [(&str, &str); 2] =
    [("short_factor", "rope_factors_short.weight"), ("long_factor", "rope_factors_long.weight")];
pub(crate) const DEFAULT_ROPE_THETA: f32 = 10_000.0;

/// The configuration as the file has it, not validated.
pub(super) fn read(file: &GgufFile) -> Result<ModelConfig, ConfigError> {
    let metadata = file.metadata();
    let name = metadata.required("general.architecture", Metadata::string)?;
    let mut architecture = Architecture::from_gguf_name(name)?;
    if name == "llama" && metadata.unsigned("llama.expert_count")?.is_some_and(|count| count > 0) {
        architecture = Architecture::from_name("mixtral")?;
    }
    let keys = Keys { metadata, architecture: name };
    let json = translate(&keys, file, architecture)?;
    let window = json.usize("sliding_window")?;
    let mut config = huggingface::read(json, architecture)?;
    // A window in a family whose class knows none holds everywhere: Mistral as `llama`.
    if config.windowed_layers().next().is_none() {
        config.set_windows(window, |_| true);
    }
    // Converters add the offset to the weights.
    config.norm_weight_offset = 0.0;
    let has_bias =
        |parts: &[&str]| parts.iter().any(|part| file.contains(&format!("blk.0.{part}.bias")));
    config.qkv_bias = has_bias(&["attn_q", "attn_qkv"]);
    config.attention_output_bias = has_bias(&["attn_output"]);
    config.mlp_bias = has_bias(&["ffn_up"]);
    for (index, layer) in config.layers.iter_mut().enumerate() {
        layer.has_experts = file.contains(&format!("blk.{index}.ffn_gate_inp.weight"));
    }
    if file.contains(FREQUENCY_FACTORS) {
        set_factors(&mut config, file)?;
    }
    Ok(config)
}

/// Scales the frequencies of the model's main rotary embedding: that of layers without a window, where
/// there are any.
fn set_factors(config: &mut ModelConfig, file: &GgufFile) -> Result<(), ConfigError> {
    let full = config.layers.iter().filter(|layer| layer.window.is_none());
    let Some(main) = full.chain(&config.layers).find_map(|layer| layer.rope.clone()) else {
        return Ok(());
    };
    let factors = divisors(file, (FREQUENCY_FACTORS, "rope_freqs"), main.dim / 2)?;
    let scaled = Rope { scaling: Some(RopeScaling::Factors(factors)), ..(*main).clone() };
    let scaled = Arc::new(scaled);
    for rope in config.layers.iter_mut().filter_map(|layer| layer.rope.as_mut()) {
        if Arc::ptr_eq(rope, &main) {
            *rope = Arc::clone(&scaled);
        }
    }
    Ok(())
}

/// A tensor with a number for each pair of rotated dimensions. Its length is checked before it is
/// expanded.
fn divisors(
    file: &GgufFile,
    (tensor, field): (&str, &'static str),
    pairs: usize,
) -> Result<Vec<f32>, ConfigError> {
    let tensor = file.tensor(tensor)?;
    match tensor.shape().rows().saturating_mul(tensor.shape().cols()) {
        actual if actual == pairs => Ok(tensor.to_f32()),
        actual => Err(ConfigError::WrongLength { field, expected: pairs, actual }),
    }
}

/// The metadata as fields of a `config.json`.
fn translate(
    keys: &Keys<'_>,
    file: &GgufFile,
    architecture: Architecture,
) -> Result<Fields, ConfigError> {
    let mut json = Fields::default();
    experts(keys, file, architecture, &mut json)?;
    for (key, field) in [
        ("embedding_length", "hidden_size"),
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
    ] {
        json.set(field, keys.required(key)?);
    }
    let (hidden_size, layers) = (keys.required("embedding_length")?, keys.required("block_count")?);
    if layers > MAX_LAYERS {
        return Err(out_of_range("layers", layers, format!("1..={MAX_LAYERS}")));
    }
    // Layers left out would be a model that answers, and wrongly.
    if let Some(name) = file.tensor_names().find(|name| layer_of(name) >= Some(layers)) {
        let (name, key) = (name.to_owned(), keys.key("block_count"));
        return Err(GgufError::LayerOutOfRange { name, key, layers }.into());
    }
    let heads = keys.one_for_all("attention.head_count")?;
    let head_dim = match keys.optional("attention.key_length")? {
        Some(head_dim) => head_dim,
        // Zero heads are found out in validation.
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    keys.only("attention.value_length", head_dim)?;
    let rotated = keys.optional("rope.dimension_count")?;
    match rotated {
        Some(rotated) if rotated != head_dim && !architecture.family().rotates_partially => {
            keys.only("rope.dimension_count", head_dim)?;
        }
        Some(rotated) => json.set("partial_rotary_factor", rotated as f64 / head_dim.max(1) as f64),
        None => json.set("partial_rotary_factor", 1.0),
    }
    json.set("num_attention_heads", heads);
    json.set("num_key_value_heads", heads);
    numbers_of_layers(keys, layers, architecture, &mut json)?;
    json.set("head_dim", head_dim);
    json.set("vocab_size", vocab_size(keys, file)?);
    json.set("rms_norm_eps", number(keys.required_float("attention.layer_norm_rms_epsilon")?));
    json.set("rope_theta", number(keys.float("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA)));
    json.set("tie_word_embeddings", !file.contains("output.weight"));
    let pairs = rotated.unwrap_or(head_dim) / 2;
    json.set("rope_scaling", rope_scaling(keys, file, architecture, pairs)?);
    window(keys, layers, &mut json)?;
    for (key, field) in architecture.family().gguf_keys {
        if let Some(value) = keys.float(key)? {
            json.set(field, number(value));
        }
    }
    (architecture.family().gguf_configure)(keys, file, &mut json)?;
    Ok(json)
}

/// Numbers that layers may have of their own, in families where they may.
fn numbers_of_layers(
    keys: &Keys<'_>,
    layers: usize,
    architecture: Architecture,
    json: &mut Fields,
) -> Result<(), ConfigError> {
    let mut single: Vec<Map<String, Json>> = vec![Map::new(); layers];
    for (key, field) in [
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count_kv", "num_key_value_heads"),
    ] {
        if !architecture.family().gguf_layers_differ || !keys.is_list(key) {
            match keys.metadata.get(&keys.key(key)) {
                None if field == "num_key_value_heads" => {}
                _ => json.set(field, keys.one_for_all(key)?),
            }
            continue;
        }
        let numbers = keys.listed(key, layers)?;
        if let Some(&first) = numbers.first() {
            json.set(field, first);
        }
        for (layer, number) in single.iter_mut().zip(numbers) {
            layer.insert(field.to_owned(), number.into());
        }
    }
    if single.iter().any(|layer| !layer.is_empty()) {
        let named = |(index, layer): (usize, _)| (index.to_string(), Json::Object(layer));
        json.set("per_layer_config", single.into_iter().enumerate().map(named).collect::<Json>());
    }
    Ok(())
}

/// The sizes of a mixture of experts; none where the family or the file has none.
fn experts(
    keys: &Keys<'_>,
    file: &GgufFile,
    architecture: Architecture,
    json: &mut Fields,
) -> Result<(), ConfigError> {
    let parts = architecture.family().gguf_parts;
    if parts.iter().all(|(part, _)| *part != "ffn_gate_inp") {
        return keys.only("expert_count", 0);
    }
    json.set_defaults((architecture.family().gguf_fields)());
    let has_routers = || file.tensor_names().any(|name| name.ends_with(".ffn_gate_inp.weight"));
    if keys.optional("expert_count")?.unwrap_or(0) == 0 && !has_routers() {
        return Ok(());
    }
    json.set("num_experts", keys.required("expert_count")?);
    json.set("num_local_experts", keys.required("expert_count")?);
    json.set("num_experts_per_tok", keys.required("expert_used_count")?);
    for (key, field) in [
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ] {
        if let Some(size) = keys.optional(key)? {
            json.set(field, size);
        }
    }
    Ok(())
}

/// JSON has no word for infinity and NaN; what is said of the field is then that it is text.
pub(crate) fn number(value: f32) -> Json {
    let number = serde_json::Number::from_f64(f64::from(value));
    number.map_or_else(|| value.to_string().into(), Json::Number)
}

/// The layer that a tensor belongs to, by its name.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// What the embedding has rows for; the key, or the vocabulary, where the file has no embedding that
/// this crate reads.
fn vocab_size(keys: &Keys<'_>, file: &GgufFile) -> Result<usize, ConfigError> {
    if let Ok(embedding) = file.tensor("token_embd.weight") {
        return Ok(embedding.shape().rows());
    }
    if let Some(size) = keys.optional("vocab_size")? {
        return Ok(size);
    }
    let tokens = keys.metadata.required("tokenizer.ggml.tokens", Metadata::strings)?;
    Ok(tokens.len())
}

/// The size of the window and, where the file says so, which layers have one: a list, or a number
/// `n` of which every `n`-th layer has none.
fn window(keys: &Keys<'_>, layers: usize, json: &mut Fields) -> Result<(), ConfigError> {
    if let Some(size) = keys.optional("attention.sliding_window")? {
        json.set("sliding_window", Some(size).filter(|&size| size > 0));
        json.set("use_sliding_window", size > 0);
    }
    let pattern = keys.key("attention.sliding_window_pattern");
    match keys.metadata.get(&pattern) {
        Some(Value::Array(listed)) => {
            if listed.len() != layers {
                return Err(ConfigError::WrongLength {
                    field: "attention.sliding_window_pattern",
                    expected: layers,
                    actual: listed.len(),
                });
            }
            let windowed: Vec<bool> = match listed {
                Array::Bool(listed) => listed.clone(),
                _ => keys
                    .metadata
                    .integers(&pattern)?
                    .unwrap_or_default()
                    .iter()
                    .map(|&it| it != 0)
                    .collect(),
            };
            let name = |is| if is { "sliding_attention" } else { "full_attention" };
            json.set("layer_types", windowed.into_iter().map(name).collect::<Json>());
        }
        _ => {
            if let Some(every) = keys.optional("attention.sliding_window_pattern")? {
                json.set("sliding_window_pattern", every);
            }
        }
    }
    Ok(())
}

fn rope_scaling(
    keys: &Keys<'_>,
    file: &GgufFile,
    architecture: Architecture,
    pairs: usize,
) -> Result<Json, ConfigError> {
    let mut scaling = Map::new();
    let mut set = |field: &str, value: Option<f32>| {
        if let Some(value) = value {
            scaling.insert(field.to_owned(), number(value));
        }
    };
    // Without a type a factor means linear; a factor of 0 means none, as in old files.
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.float("rope.scale_linear")?,
    };
    let factor = factor.filter(|&factor| factor != 0.0);
    let attention_factor = keys.float("rope.scaling.attn_factor")?;
    let kind = keys.metadata.string(&keys.key("rope.scaling.type"))?;
    let kind = match kind.unwrap_or("linear") {
        _ if file.contains(LONG_ROPE_FACTORS[0].1) => {
            // Absent means 1, where a config.json would have it computed.
            set("attention_factor", Some(attention_factor.unwrap_or(1.0)));
            "longrope"
        }
        "none" => "default",
        "linear" if factor.is_none() => "default",
        "linear" => "linear",
        "yarn" => {
            let factor = factor.ok_or_else(|| keys.missing("rope.scaling.factor"))?;
            // In a config.json the key replaces what YaRN recommends.
            let recommended = match keys.float("rope.scaling.yarn_log_multiplier")? {
                _ if architecture.family().gguf_attention_factor_is_whole => 1.0,
                Some(scale) if scale != 0.0 => rope::yarn_attention(factor, 1.0, scale),
                _ => rope::yarn_attention(factor, 1.0, 0.0),
            };
            match attention_factor {
                None if architecture.family().gguf_attention_factor_is_whole => {}
                given => set("attention_factor", Some(given.unwrap_or(1.0) * recommended)),
            }
            set("beta_fast", keys.float("rope.scaling.yarn_beta_fast")?);
            set("beta_slow", keys.float("rope.scaling.yarn_beta_slow")?);
            "yarn"
        }
        other => {
            return Err(ConfigError::Unsupported {
                field: keys.key("rope.scaling.type"),
                value: other.to_owned(),
                supported: "none, linear, yarn, longrope",
            });
        }
    };
    set("factor", factor);
    scaling.insert("rope_type".into(), kind.into());
    if let Some(length) = keys.optional("rope.scaling.original_context_length")? {
        scaling.insert("original_max_position_embeddings".into(), length.into());
    }
    if kind == "longrope" {
        for (field, tensor) in LONG_ROPE_FACTORS {
            let factors = divisors(file, (tensor, field), pairs)?;
            scaling.insert(field.into(), factors.into_iter().map(number).collect());
        }
    }
    Ok(Json::Object(scaling))
}
