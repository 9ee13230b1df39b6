//! What the families read from configurations as they occur, and what the documentation says of
//! them.

use std::collections::BTreeSet;

use models::model::{
    Activation, Architecture, ConfigError, LayerConfig, ModelConfig, Rope, RopePairs, RopeScaling,
};
use serde_json::{Value, json};

fn read(config: Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_huggingface(&config.to_string())
}

/// A model of `class` with small sizes, and with `changes` made.
fn small(class: &str, changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut config = json!({
        "architectures": [class], "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    });
    for (field, value) in changes.as_object().expect("changes are an object") {
        config[field] = value.clone();
    }
    read(config)
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

fn rope(layer: &LayerConfig) -> &Rope {
    layer.rope.as_ref().expect("a layer that rotates")
}

#[test]
fn the_text_model_of_gemma_3_4b_leaves_out_what_its_class_knows() {
    let config = read(json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
    }))
    .expect("valid");
    assert_eq!(config.architecture.name(), "gemma3");
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (8, 4, 256));
    assert_eq!((config.vocab_size, config.context_length), (262_208, 131_072));
    assert_eq!((config.activation, config.norm_weight_offset), (Activation::GeluTanh, 1.0));
    assert_eq!(config.multipliers.attention, 1.0 / 16.0);
    assert!(config.tie_word_embeddings);
    for (index, layer) in config.layers.iter().enumerate() {
        let (window, theta, scaling) = match (index + 1) % 6 {
            0 => (None, 1e6, Some(RopeScaling::Linear { factor: 8.0 })),
            _ => (Some(1024), 1e4, None),
        };
        assert_eq!(layer.window, window, "layer {index}");
        assert_eq!((rope(layer).theta, &rope(layer).scaling), (theta, &scaling), "layer {index}");
    }
}

#[test]
fn gemma_that_looks_ahead_is_refused() {
    let ahead = json!({"use_bidirectional_attention": true});
    let error = small("Gemma3ForCausalLM", ahead).expect_err("not causal");
    let expected = "`use_bidirectional_attention` = true is not supported (supported: false)";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn mistral_has_a_window_unless_it_says_none() {
    let of = |changes| windows(&small("MistralForCausalLM", changes).expect("valid"));
    assert_eq!(of(json!({})), [Some(4096); 4]);
    assert_eq!(of(json!({"sliding_window": 8})), [Some(8); 4]);
    assert_eq!(of(json!({"sliding_window": null})), [None; 4]);
}

#[test]
fn the_model_type_of_the_text_decides_within_one_class() {
    let of = |model_type: &str| {
        let class = "Mistral3ForConditionalGeneration";
        read(json!({"architectures": [class], "text_config": {"model_type": model_type}}))
    };
    assert_eq!(of("mistral").expect("all by default").architecture.name(), "mistral");
    assert_eq!(of("mistral").expect("all by default").layers.len(), 32);
    let error = of("deepseek_v3").expect_err("another text model");
    assert!(matches!(error, ConfigError::MissingPart { found, .. } if found == "deepseek_v3"));
}

#[test]
fn ministral_3_scales_queries_by_what_its_rope_says() {
    let of = |changes| small("Ministral3ForCausalLM", changes).expect("valid");
    let scaling = |config: &ModelConfig| {
        config.query_scaling.map(|scaling| (scaling.beta, scaling.original_context))
    };
    let default = of(json!({}));
    assert_eq!(scaling(&default), Some((0.1, 16_384)));
    assert_eq!((default.head_dim, rope(&default.layers[0]).theta), (128, 1e6));
    assert_eq!(rope(&default.layers[0]).rotary(256).attention_factor, 1.0);
    let parameters = json!({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4,
        "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.5});
    assert_eq!(scaling(&of(json!({"rope_parameters": parameters}))), Some((0.5, 64)));
    let plain = json!({"rope_type": "default", "rope_theta": 1e4});
    assert_eq!(scaling(&of(json!({"rope_parameters": plain}))), None);
}

#[test]
fn layers_without_positions_are_listed_or_counted() {
    let rotates = |changes| -> Vec<bool> {
        let config = small("SmolLM3ForCausalLM", changes).expect("valid");
        config.layers.iter().map(|layer| layer.rope.is_some()).collect()
    };
    assert_eq!(rotates(json!({})), [true, true, true, false]);
    assert_eq!(rotates(json!({"no_rope_layer_interval": 2})), [true, false, true, false]);
    assert_eq!(rotates(json!({"no_rope_layer_interval": 0})), [true; 4]);
    assert_eq!(rotates(json!({"no_rope_layers": [0, 1, 1, 0]})), [false, true, true, false]);
    let error = small("SmolLM3ForCausalLM", json!({"no_rope_layers": [1]})).expect_err("short");
    assert_eq!(error.to_string(), "`no_rope_layers` has 1 entries, it must have 4");
}

#[test]
fn long_rope_goes_by_the_context_that_the_model_is_used_for() {
    let scaling = json!({"type": "su", "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0]});
    let changes = json!({"head_dim": 4, "max_position_embeddings": 256, "rope_scaling": scaling,
        "original_max_position_embeddings": 16});
    let config = small("Phi3ForCausalLM", changes).expect("valid");
    let rope = rope(&config.layers[0]);
    let frequencies = |context| rope.rotary(context).inverse_frequencies.to_vec();
    assert_eq!(frequencies(16), [1.0, 1.0 / (2.0 * 100.0)]);
    assert_eq!(frequencies(17), [0.25, 1.0 / (8.0 * 100.0)]);
    // A sixteenth of the context in the original: sqrt(1 + ln 16 / ln 16).
    assert_eq!(rope.rotary(16).attention_factor, 2f32.sqrt());
    assert_eq!(rope.rotary(256).attention_factor, 2f32.sqrt());

    for (field, list) in [("short_factor", json!([1.0])), ("long_factor", json!([1.0, 0.0]))] {
        let mut scaling = scaling_of_two();
        scaling[field] = list;
        let changes = json!({"head_dim": 4, "rope_scaling": scaling});
        let error = small("Phi3ForCausalLM", changes).expect_err(field).to_string();
        assert!(error.contains(field), "{error}");
    }
}

fn scaling_of_two() -> Value {
    json!({"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0]})
}

#[test]
fn glm_rotates_neighbours_in_half_a_head() {
    let config = small("Glm4ForCausalLM", json!({"head_dim": 16})).expect("valid");
    let rope = rope(&config.layers[0]);
    assert_eq!((rope.dim, rope.pairs), (8, RopePairs::Adjacent));
    assert!(config.qkv_bias && !config.attention_output_bias);
    for factor in [0.0, -1.0, 0.45, 1.5] {
        let changes = json!({"head_dim": 16, "partial_rotary_factor": factor});
        let error = small("Glm4ForCausalLM", changes).expect_err("not a part of a head in pairs");
        assert!(matches!(error, ConfigError::OutOfRange { .. }), "{factor}: {error}");
    }
}

#[test]
fn multipliers_that_no_model_has_are_refused() {
    for field in ["embedding_multiplier", "attention_multiplier", "residual_multiplier"] {
        let error = small("GraniteForCausalLM", json!({field: 0.0})).expect_err(field);
        assert!(matches!(error, ConfigError::OutOfRange { .. }), "{error}");
    }
    let error = small("GraniteForCausalLM", json!({"logits_scaling": 0.0})).expect_err("infinite");
    assert!(matches!(error, ConfigError::OutOfRange { .. }), "{error}");
}

#[test]
fn granite_4_is_read_if_all_layers_attend_and_none_has_experts() {
    let granite = |changes: [Value; 3]| {
        let [layers, experts, positions] = changes;
        let fields = json!({"layer_types": layers, "num_local_experts": experts,
            "position_embedding_type": positions, "shared_intermediate_size": 48});
        small("GraniteMoeHybridForCausalLM", fields)
    };
    let kinds = || json!(["attention", "full_attention", "attention", "attention"]);
    let rotates = |config: &ModelConfig| config.layers.iter().all(|layer| layer.rope.is_some());
    let config = granite([kinds(), json!(0), json!("rope")]).expect("dense");
    assert!(rotates(&config) && config.layers.iter().all(|layer| layer.intermediate_size == 48));
    let config = granite([kinds(), json!(0), json!("nope")]).expect("dense");
    assert!(config.layers.iter().all(|layer| layer.rope.is_none()));
    for (changes, missing) in [
        ([json!(["attention", "mamba"]), json!(0), json!("rope")], "recurrent layers"),
        ([Value::Null, json!(0), json!("rope")], "recurrent layers"),
        ([json!(["attention"]), json!(0), json!("rope")], "layer_types"),
        ([kinds(), json!(4), json!("rope")], "experts"),
        ([kinds(), Value::Null, json!("rope")], "missing"),
    ] {
        let error = granite(changes).expect_err(missing).to_string();
        assert!(error.contains(missing), "{error}");
    }
}

#[test]
fn a_family_that_is_known_and_missing_says_what_it_needs() {
    for (name, missing) in [
        ("DeepseekV3ForCausalLM", "multi-head latent attention"),
        ("Qwen3_5ForConditionalGeneration", "recurrent layers"),
        ("GraniteMoeHybridForCausalLM", "recurrent layers"),
        ("Gemma3nForConditionalGeneration", "AltUp"),
    ] {
        let error = small(name, json!({})).expect_err(name).to_string();
        assert!(error.starts_with(&format!("architecture `{name}` needs {missing}")), "{error}");
        assert!(error.contains("(supported: llama, ") && !error.contains('\n'), "{error}");
    }
    for (name, missing) in
        [("deepseek2", "latent"), ("qwen35", "recurrent"), ("mamba2", "recurrent")]
    {
        let error = Architecture::from_gguf_name(name).expect_err(name).to_string();
        assert!(error.contains(missing), "{error}");
    }
}

#[test]
fn names_stand_for_one_family_each() {
    let mut names = BTreeSet::new();
    for family in Architecture::all() {
        assert!(names.insert(family.name()), "{family} occurs twice");
        // A class of text and images may hold one family or another.
        let class = family.huggingface_names().first().expect("a class");
        assert_eq!(Architecture::from_name(class).expect("known"), family);
        for name in family.gguf_names() {
            Architecture::from_gguf_name(name).expect("known");
        }
    }
}

/// The rows of the table that begins with `head`, as cells without the space around them.
fn table(text: &str, head: &str) -> Vec<Vec<String>> {
    let lines = text.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|it| it.trim().into()).collect();
    rows.map(cells).collect()
}

#[test]
fn the_documentation_lists_the_families_that_there_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/model-files.md");
    let text = std::fs::read_to_string(path).expect("readable");
    let code = |names: &[&str]| match names {
        [] => "none".to_owned(),
        _ => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    };
    let expected: Vec<[String; 3]> = Architecture::all()
        .map(|it| [it.name().into(), code(it.huggingface_names()), code(it.gguf_names())])
        .collect();
    let found: Vec<[String; 3]> = table(&text, "| family | Hugging Face | GGUF |")
        .into_iter()
        .map(|row| [0, 1, 2].map(|cell| row.get(cell).cloned().unwrap_or_default()))
        .collect();
    assert_eq!(found, expected);
}
