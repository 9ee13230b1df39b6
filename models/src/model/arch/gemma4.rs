//! Gemma 4 (Google DeepMind, 2026): as Gemma 3, with wider heads, fewer KV heads and a quarter of
//! the frequencies in full layers, norms without an offset, a norm of values, a learned factor
//! of each layer, and, by the model: KV of earlier layers in the last ones and an input that each
//! layer has of its own (E2B, E4B), or values that are keys and a mixture of experts beside the MLP
//! (26B-A4B).

use serde_json::json;

use super::{Decoder, Family, decoder::ExpertParts};
use crate::model::config::{
    ConfigError, ExpertsConfig, ModelConfig,
    gguf::{DEFAULT_ROPE_THETA, FREQUENCY_FACTORS, number},
    gguf_keys::Keys,
    json::Fields,
    read_windows,
};
use crate::weights::GgufFile;
use backend_api::program::ValueId;

pub(super) static FAMILY: Family = Family {
    name: "gemma4",
    classes: &["Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"],
    model_types: &["gemma4_text", "gemma4"],
    gguf_names: &["gemma4"],
    defaults: || {
        json!({
            "vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216,
            "num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 256, "global_head_dim": 512, "max_position_embeddings": 131072,
            "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 512, "vocab_size_per_layer_input": 262144,
            "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 0,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {
                    "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6,
                },
            },
        })
    },
    configure,
    layer,
    gguf_keys: &[("final_logit_softcapping", "final_logit_softcapping")],
    gguf_layers_differ: true,
    gguf_configure,
    gguf_parts: &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
        ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
        ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
        ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
        ("inp_gate", "per_layer_input_gate"),
        ("proj", "per_layer_projection"),
        ("post_norm", "post_per_layer_input_norm"),
        ("layer_output_scale.weight", "layer_scalar"),
        ("ffn_gate_inp", "router.proj"),
        ("ffn_gate_inp.scale", "router.scale"),
        ("ffn_gate_up_exps.weight", "experts.gate_up_proj"),
        ("ffn_gate_exps", "experts.gate_proj"),
        ("ffn_up_exps", "experts.up_proj"),
        ("ffn_down_exps", "experts.down_proj"),
        ("ffn_down_exps.scale", "router.per_expert_scale"),
    ],
    ..Family::PLAIN
};

const PARTS: ExpertParts = ExpertParts {
    router: "router.proj",
    gate: "experts.gate_proj",
    up: "experts.up_proj",
    down: "experts.down_proj",
};

fn configure(json: &Fields, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let is_on = |field| Ok::<_, ConfigError>(json.bool(field)?.unwrap_or(false));
    config.mlp_bias = false;
    config.multipliers.embedding = (config.hidden_size as f32).sqrt();
    config.multipliers.attention = 1.0;
    config.logits_soft_cap = json.f32("final_logit_softcapping")?;
    if json.string("use_bidirectional_attention")? == Some("all") {
        return Err(ConfigError::Unsupported {
            field: "use_bidirectional_attention".into(),
            value: "all".into(),
            supported: "absent, vision",
        });
    }
    // The last layer is a full one, whatever the list says.
    let last = config.layers.len().saturating_sub(1);
    read_windows(json, config, |layer| (layer + 1) % 6 != 0)?;
    if let Some(layer) = config.layers.get_mut(last) {
        layer.window = None;
    }
    heads(json, config, is_on("attention_k_eq_v")?)?;
    share_kv(json, config, is_on("use_double_wide_mlp")?)?;
    config.per_layer_width = json.required_usize("hidden_size_per_layer_input")?;
    let table = json.required_usize("vocab_size_per_layer_input")?;
    if config.per_layer_width > 0 && table != config.vocab_size {
        return Err(ConfigError::Unsupported {
            field: "vocab_size_per_layer_input".into(),
            value: table.to_string(),
            supported: "vocab_size",
        });
    }
    if is_on("enable_moe_block")? {
        let mut experts = ExpertsConfig::new(
            json.required_usize("num_experts")?,
            json.required_usize("top_k_experts")?,
            json.required_usize("moe_intermediate_size")?,
        );
        experts.normalize = true;
        config.experts = Some(experts);
    }
    Ok(())
}

/// GGUF files give the sizes of full layers the names that others have for all, and tell what else is
/// particular by the tensors that are there.
fn gguf_configure(keys: &Keys<'_>, file: &GgufFile, json: &mut Fields) -> Result<(), ConfigError> {
    let windowed = keys.required("attention.key_length_swa")?;
    keys.only("attention.value_length_swa", windowed)?;
    keys.only("rope.dimension_count_swa", windowed)?;
    json.set("global_head_dim", keys.required("attention.key_length")?);
    json.set("head_dim", windowed);
    // Which dimensions of a full head are rotated.
    file.tensor(FREQUENCY_FACTORS)?;
    let base = |key| Ok::<_, ConfigError>(number(keys.float(key)?.unwrap_or(DEFAULT_ROPE_THETA)));
    let (full, windowed) = (base("rope.freq_base")?, base("rope.freq_base_swa")?);
    json.set(
        "rope_parameters",
        json!({"full_attention": {"rope_theta": full}, "sliding_attention": {"rope_theta": windowed}}),
    );
    json.set("num_kv_shared_layers", keys.optional("attention.shared_kv_layers")?.unwrap_or(0));
    let width = keys.optional("embedding_length_per_layer_input")?.unwrap_or(0);
    json.set("hidden_size_per_layer_input", width);
    if let Some(size) = json.usize("vocab_size")? {
        json.set("vocab_size_per_layer_input", size);
    }
    let has = |layer, part| file.contains(&format!("blk.{layer}.{part}.weight"));
    let mut layers = 0..json.required_usize("num_hidden_layers")?;
    let value_is_key = layers.clone().any(|it| has(it, "attn_k") && !has(it, "attn_v"));
    json.set("attention_k_eq_v", value_is_key);
    json.set("enable_moe_block", layers.any(|layer| has(layer, "ffn_gate_inp")));
    if let Some(chosen) = json.usize("num_experts_per_tok")? {
        json.set("top_k_experts", chosen);
    }
    Ok(())
}

/// Full layers have heads of another width, and perhaps another number of KV heads.
fn heads(json: &Fields, config: &mut ModelConfig, value_is_key: bool) -> Result<(), ConfigError> {
    let head_dim = json.required_usize("global_head_dim")?;
    let kv_heads = json.usize("num_global_key_value_heads")?.filter(|_| value_is_key);
    // Transformers 5 writes what is particular about single layers instead.
    let single = json.object("per_layer_config")?;
    for (index, layer) in config.layers.iter_mut().enumerate() {
        if layer.window.is_none() {
            layer.head_dim = head_dim;
            layer.kv_heads = kv_heads.unwrap_or(layer.kv_heads);
            layer.value_is_key = value_is_key;
        }
        let Some(own) = single.as_ref().map(|all| all.object(&index.to_string())).transpose()?
        else {
            continue;
        };
        let own = own.unwrap_or_default();
        layer.head_dim = own.usize("head_dim")?.unwrap_or(layer.head_dim);
        layer.kv_heads = own.usize("num_key_value_heads")?.unwrap_or(layer.kv_heads);
        layer.intermediate_size =
            own.usize("intermediate_size")?.unwrap_or(layer.intermediate_size);
    }
    Ok(())
}

/// The last layers read the KV of the last layer of their kind before them.
fn share_kv(json: &Fields, config: &mut ModelConfig, is_wide: bool) -> Result<(), ConfigError> {
    let shared = json.required_usize("num_kv_shared_layers")?;
    let Some(own) = config.layers.len().checked_sub(shared) else {
        return Err(ConfigError::OutOfRange {
            field: "num_kv_shared_layers",
            value: shared.to_string(),
            allowed: format!("0..={}", config.layers.len()),
        });
    };
    let (before, after) = config.layers.split_at_mut(own);
    for layer in after {
        let of = before.iter().rposition(|it| it.window.is_some() == layer.window.is_some());
        let Some(of) = of else {
            return Err(ConfigError::Unsupported {
                field: "num_kv_shared_layers".into(),
                value: shared.to_string(),
                supported: "fewer, so that a layer of each kind has KV of its own",
            });
        };
        layer.kv_of = Some(of);
        if is_wide {
            layer.intermediate_size = layer.intermediate_size.saturating_mul(2);
        }
    }
    Ok(())
}

fn layer(m: &mut Decoder<'_>, x: ValueId) -> ValueId {
    let (config, this) = m.config();
    let h = m.norm(x, "input_layernorm");
    let q = m.query(h);
    let q = m.head_norm(q, "self_attn.q_norm");
    let h = match this.kv_of {
        Some(earlier) => m.attend_to(q, earlier),
        None => {
            let k = m.key_or_value(h, "self_attn.k_proj");
            let v = match this.value_is_key {
                true => k,
                false => m.key_or_value(h, "self_attn.v_proj"),
            };
            let k = m.head_norm(k, "self_attn.k_norm");
            let v = m.unit_head_norm(v);
            m.attend([q, k, v])
        }
    };
    let h = m.norm(h, "post_attention_layernorm");
    let x = m.add(x, h);

    let h = m.norm(x, "pre_feedforward_layernorm");
    let h = m.mlp(h);
    let h = if m.has_experts() { beside_experts(m, x, h) } else { h };
    let h = m.norm(h, "post_feedforward_layernorm");
    let x = m.add(x, h);

    let x = if config.per_layer_width > 0 {
        let h = m.gated_layer_input(x, "per_layer_input_gate", "per_layer_projection");
        let h = m.norm(h, "post_per_layer_input_norm");
        m.add(x, h)
    } else {
        x
    };
    m.scaled_by(x, "layer_scalar")
}

/// The sum of what the MLP computed, `h`, and of experts of the same residual, `x`.
fn beside_experts(m: &mut Decoder<'_>, x: ValueId, h: ValueId) -> ValueId {
    let dense = m.norm(h, "post_feedforward_layernorm_1");
    let scores = m.scaled_router(x, "router.scale", "router.proj");
    let h = m.norm(x, "pre_feedforward_layernorm_2");
    let h = m.routed_experts(h, scores, &PARTS, Some("router.per_expert_scale"));
    let routed = m.norm(h, "post_feedforward_layernorm_2");
    m.sum(dense, routed)
}
