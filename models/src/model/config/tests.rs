//! Configurations as they occur, and as they should not.

use serde_json::{Value as Json, json};

use super::*;
use crate::weights::{Format, GgufError, GgufWriter, Shape, Tensor, Value, gguf::Array};

/// A small Llama with `changes` made; `null` removes a field.
fn config(changes: Json) -> Result<ModelConfig, ConfigError> {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
    });
    for (field, value) in changes.as_object().expect("changes are an object") {
        config[field] = value.clone();
    }
    ModelConfig::from_huggingface(&config.to_string())
}

fn valid(changes: Json) -> ModelConfig {
    config(changes).expect("a valid configuration")
}

/// The same model as GGUF metadata, with `changes` made; `None` removes a key.
fn gguf(changes: &[(&str, Option<Value>)], tensors: &[&str]) -> GgufFile {
    let mut pairs = vec![
        ("general.architecture", Value::String("llama".into())),
        ("llama.vocab_size", Value::U32(128)),
        ("llama.embedding_length", Value::U32(64)),
        ("llama.feed_forward_length", Value::U32(96)),
        ("llama.block_count", Value::U32(2)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.context_length", Value::U32(256)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ];
    for (key, value) in changes {
        pairs.retain(|(known, _)| known != key);
        pairs.extend(value.clone().map(|value| (*key, value)));
    }
    let writer = pairs
        .into_iter()
        .fold(GgufWriter::new(), |writer, (key, value)| writer.metadata(key, value));
    let tensor = Tensor::from_f32(Format::F32, Shape::Vector(8), &[2.0; 8]).expect("valid");
    let writer = tensors.iter().fold(writer, |writer, name| writer.tensor(name, &tensor));
    GgufFile::from_bytes(writer.finish()).expect("well-formed")
}

/// The rotary embedding of the first layer.
fn rope(config: &ModelConfig) -> &Rope {
    config.layers[0].rope.as_ref().expect("a layer that rotates")
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

fn read_gguf(changes: &[(&str, Option<Value>)]) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_gguf(&gguf(changes, &["output.weight"]))
}

#[test]
fn both_readers_agree_on_the_same_model() {
    assert_eq!(valid(json!({})), read_gguf(&[]).expect("valid"));
}

#[test]
fn absent_fields_mean_what_they_mean_to_transformers() {
    let llama = valid(json!({"num_key_value_heads": null, "rms_norm_eps": null}));
    assert_eq!((llama.kv_heads, llama.head_dim), (4, 16));
    assert_eq!((llama.rms_norm_eps, rope(&llama).theta), (1e-6, 10_000.0));
    assert_eq!(rope(&llama).scaling, None);
    assert!(!llama.tie_word_embeddings && !llama.qkv_bias && !llama.mlp_bias);

    let qwen3 = valid(json!({"architectures": ["Qwen3ForCausalLM"]}));
    assert_eq!((qwen3.architecture.name(), qwen3.head_dim), ("qwen3", 128));
    let by_type = valid(json!({"architectures": null, "model_type": "qwen3"}));
    assert_eq!(by_type.architecture, qwen3.architecture);
}

#[test]
fn biases_are_where_each_family_has_them() {
    let biases =
        |config: &ModelConfig| (config.qkv_bias, config.attention_output_bias, config.mlp_bias);
    let qwen2 = valid(json!({"architectures": ["Qwen2ForCausalLM"]}));
    assert_eq!(biases(&qwen2), (true, false, false));
    let llama = valid(json!({"attention_bias": true, "mlp_bias": true}));
    assert_eq!(biases(&llama), (true, true, true));
    let file = gguf(&[], &["blk.0.attn_q.bias", "blk.0.ffn_up.bias"]);
    let config = ModelConfig::from_gguf(&file).expect("valid");
    assert_eq!(biases(&config), (true, false, true));
}

#[test]
fn an_unknown_architecture_is_answered_with_the_supported_ones() {
    let error = config(json!({"architectures": ["BloomForCausalLM"]})).expect_err("unknown");
    assert_eq!(
        error.to_string(),
        "architecture `BloomForCausalLM` is not supported (supported: llama, mistral, \
         ministral3, qwen2, qwen3, gemma2, gemma3, gemma4, phi3, granite, granite4, smollm3, olmo2, olmo3, \
         glm4, mixtral, qwen2moe, qwen3moe, gpt-oss)"
    );
    let name = Some(Value::String("bloom".into()));
    let error = read_gguf(&[("general.architecture", name)]).expect_err("unknown");
    assert!(matches!(error, ConfigError::UnknownArchitecture { found } if found == "bloom"));
}

#[test]
fn missing_and_mistyped_fields_are_named() {
    for field in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ] {
        let error = config(json!({field: null})).expect_err(field);
        assert!(matches!(error, ConfigError::MissingField { field: f } if f == field));
        for wrong in [json!("64"), json!(-1), json!(1.5), json!([64]), json!(1e30)] {
            let error = config(json!({field: wrong})).expect_err(field);
            assert!(matches!(error, ConfigError::WrongType { field: f, .. } if f == field));
        }
    }
    let error = config(json!({"rms_norm_eps": "tiny"})).expect_err("mistyped");
    assert_eq!(error.to_string(), "`rms_norm_eps` is \"tiny\", not a number of 32 bits");

    for key in ["block_count", "embedding_length", "attention.head_count", "context_length"] {
        let key = format!("llama.{key}");
        let error = read_gguf(&[(&key, None)]).expect_err("missing");
        let ConfigError::Gguf { source } = error else { panic!("{error}") };
        assert_eq!(source, GgufError::MissingKey { key });
    }
    let error = read_gguf(&[("llama.vocab_size", None)]).expect_err("no vocabulary either");
    assert!(matches!(error, ConfigError::Gguf { source: GgufError::MissingKey { .. } }));
}

#[test]
fn zero_and_absurd_sizes_are_refused() {
    let fields = [
        ("vocab_size", "vocab_size"),
        ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("num_hidden_layers", "layers"),
        ("num_attention_heads", "heads"),
        ("num_key_value_heads", "kv_heads"),
        ("head_dim", "head_dim"),
        ("max_position_embeddings", "context_length"),
    ];
    for (spelling, name) in fields {
        for absurd in [json!(0), json!(1u64 << 40), json!(u64::MAX)] {
            let error = config(json!({spelling: absurd})).expect_err(spelling);
            assert!(
                matches!(error, ConfigError::OutOfRange { field, .. } if field == name),
                "{spelling}: {error}"
            );
        }
    }
    let layers = ("llama.block_count", Some(Value::U64(u64::MAX)));
    let window = ("llama.attention.sliding_window", Some(Value::U32(8)));
    assert!(matches!(
        read_gguf(&[layers, window]),
        Err(ConfigError::OutOfRange { field: "layers", .. })
    ));
    for (field, value) in [("rms_norm_eps", 0.0), ("rope_theta", 1.0)] {
        let error = config(json!({field: value})).expect_err(field);
        assert!(matches!(error, ConfigError::OutOfRange { field: f, .. } if f == field));
    }
}

#[test]
fn heads_must_divide_evenly() {
    let error = config(json!({"num_key_value_heads": 3})).expect_err("4 heads over 3");
    assert_eq!(error.to_string(), "`heads` is 4, not a multiple of kv_heads (3)");
    let error = config(json!({"head_dim": 15})).expect_err("odd");
    assert!(matches!(error, ConfigError::NotDivisible { field: "head_dim", value: 15, .. }));
}

#[test]
fn both_spellings_of_rope_say_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 128});
    let old = valid(json!({"rope_theta": 500000.0, "rope_scaling": scaling}));
    let mut parameters = scaling;
    parameters["rope_theta"] = json!(500000.0);
    let new = valid(json!({"rope_parameters": parameters}));
    assert_eq!(old, new);
    assert_eq!(rope(&old).theta, 500_000.0);
    assert_eq!(
        rope(&old).scaling,
        Some(RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 128
        })
    );
    let oldest = valid(json!({"rope_scaling": {"type": "linear", "factor": 2}}));
    assert_eq!(rope(&oldest).scaling, Some(RopeScaling::Linear { factor: 2.0 }));
    let default = valid(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}));
    assert_eq!((rope(&default).theta, &rope(&default).scaling), (70_000.0, &None));
}

#[test]
fn rope_that_cannot_be_computed_is_refused() {
    let unsupported = |changes: Json, name: &str| {
        let error = config(changes).expect_err(name);
        assert!(
            matches!(&error, ConfigError::Unsupported { field, .. } if field == name),
            "{error}"
        );
    };
    unsupported(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "rope_type");
    unsupported(json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor");
    unsupported(
        json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
        "partial_rotary_factor",
    );
    unsupported(json!({"rope_parameters": {"linear_attention": {}}}), "rope_parameters");
    unsupported(json!({"hidden_act": "gelu"}), "hidden_act");

    unsupported(json!({"quantization_config": {"quant_method": "hqq"}}), "quantization_config");

    let missing = config(json!({"rope_scaling": {"type": "linear"}})).expect_err("no factor");
    assert!(matches!(missing, ConfigError::MissingField { field } if field == "factor"));
    for factor in [0.0, -1.0, 0.5] {
        let error = config(json!({"rope_scaling": {"type": "linear", "factor": factor}}));
        assert!(matches!(error, Err(ConfigError::OutOfRange { field: "factor", .. })));
    }
    let swapped = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
        "high_freq_factor": 1.0});
    let error = config(json!({"rope_scaling": swapped})).expect_err("swapped");
    assert!(matches!(error, ConfigError::OutOfRange { field: "high_freq_factor", .. }));
}

#[test]
fn gguf_frequency_factors_come_with_the_weights() {
    let file = gguf(&[], &["rope_freqs.weight"]);
    let config = ModelConfig::from_gguf(&file).expect("valid");
    assert_eq!(rope(&config).scaling, Some(RopeScaling::Factors(vec![2.0; 8])));
    assert!(config.tie_word_embeddings, "no output layer");
    let plain = rope(&valid(json!({}))).rotary(256).inverse_frequencies;
    let halved: Vec<f32> = plain.iter().map(|frequency| frequency / 2.0).collect();
    assert_eq!(*rope(&config).rotary(256).inverse_frequencies, halved);

    let wide = ("llama.embedding_length", Some(Value::U32(128)));
    let error = ModelConfig::from_gguf(&gguf(&[wide], &["rope_freqs.weight"])).expect_err("short");
    assert!(matches!(error, ConfigError::WrongLength { expected: 16, actual: 8, .. }));
}

#[test]
fn gguf_lists_of_other_lengths_are_refused_before_they_are_expanded() {
    let list = |length| Some(Value::Array(Array::Bool(vec![true; length])));
    let pattern = "llama.attention.sliding_window_pattern";
    for length in [1, 3, 1 << 20] {
        let error = read_gguf(&[(pattern, list(length))]).expect_err("not two layers");
        assert!(
            matches!(error, ConfigError::WrongLength { expected: 2, actual, .. } if actual == length)
        );
    }
    read_gguf(&[(pattern, list(2))]).expect("one for each layer");
    let heads = Some(Value::Array(Array::U8(vec![4; 1 << 20])));
    let error = read_gguf(&[("llama.attention.head_count", heads)]).expect_err("not two layers");
    assert!(matches!(error, ConfigError::WrongLength { expected: 2, .. }), "{error}");

    let phi = [
        ("general.architecture", Some(Value::String("phi3".into()))),
        ("phi3.vocab_size", Some(Value::U32(128))),
        ("phi3.embedding_length", Some(Value::U32(64))),
        ("phi3.feed_forward_length", Some(Value::U32(96))),
        ("phi3.block_count", Some(Value::U32(2))),
        ("phi3.attention.head_count", Some(Value::U32(4))),
        ("phi3.context_length", Some(Value::U32(256))),
        ("phi3.attention.layer_norm_rms_epsilon", Some(Value::F32(1e-5))),
        ("phi3.rope.scaling.original_context_length", Some(Value::U32(128))),
    ];
    let factors = ["rope_factors_short.weight", "rope_factors_long.weight"];
    ModelConfig::from_gguf(&gguf(&phi, &factors)).expect("8 for heads of 16");
    let narrow = [&phi[..], &[("phi3.attention.key_length", Some(Value::U32(8)))]].concat();
    let error = ModelConfig::from_gguf(&gguf(&narrow, &factors)).expect_err("8 for heads of 8");
    assert!(matches!(
        error,
        ConfigError::WrongLength { field: "short_factor", expected: 4, actual: 8 }
    ));
}

#[test]
fn gguf_numbers_of_layers_are_read_where_a_family_has_them() {
    let list = |numbers: &[u32]| Some(Value::Array(Array::U32(numbers.to_vec())));
    let keys = |heads: &[u32], widths: &[u32]| {
        [
            ("general.architecture", Some(Value::String("gemma4".into()))),
            ("gemma4.vocab_size", Some(Value::U32(128))),
            ("gemma4.embedding_length", Some(Value::U32(64))),
            ("gemma4.feed_forward_length", list(widths)),
            ("gemma4.block_count", Some(Value::U32(2))),
            ("gemma4.attention.head_count", Some(Value::U32(4))),
            ("gemma4.attention.head_count_kv", list(heads)),
            ("gemma4.attention.key_length", Some(Value::U32(16))),
            ("gemma4.attention.key_length_swa", Some(Value::U32(8))),
            ("gemma4.attention.sliding_window", Some(Value::U32(32))),
            ("gemma4.context_length", Some(Value::U32(256))),
            ("gemma4.attention.layer_norm_rms_epsilon", Some(Value::F32(1e-5))),
        ]
    };
    let read = |keys: &[(&str, Option<Value>)]| {
        ModelConfig::from_gguf(&gguf(keys, &["rope_freqs.weight"]))
    };
    let config = read(&keys(&[4, 1], &[96, 192])).expect("valid");
    let sizes: Vec<_> = config
        .layers
        .iter()
        .map(|it| (it.window, it.head_dim, it.kv_heads, it.intermediate_size))
        .collect();
    assert_eq!(sizes, [(Some(32), 8, 4, 96), (None, 16, 1, 192)]);
    let factors = |layer: usize| config.layers[layer].rope.as_ref().map(|it| it.scaling.is_some());
    assert_eq!([factors(0), factors(1)], [Some(false), Some(true)]);

    for (heads, widths) in [(&[4, 1][..], &[96][..]), (&[4; 3], &[96; 2]), (&[], &[96; 2])] {
        let error = read(&keys(heads, widths)).expect_err("not two layers");
        assert!(matches!(error, ConfigError::WrongLength { expected: 2, .. }), "{error}");
    }
    let error = read(&keys(&[4, 3], &[96; 2])).expect_err("no divisor of the heads");
    assert!(matches!(error, ConfigError::NotDivisible { .. }), "{error}");
    let without = ModelConfig::from_gguf(&gguf(&keys(&[4, 1], &[96, 192]), &[]));
    let error = without.expect_err("nothing says what is rotated");
    let reason = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(reason.contains("rope_freqs.weight"), "{reason}");
}

#[test]
fn gguf_rope_scaling_means_what_it_means_to_llama_cpp() {
    let scaling = |changes: &[(&str, Value)]| {
        let changes: Vec<(&str, Option<Value>)> =
            changes.iter().map(|(key, value)| (*key, Some(value.clone()))).collect();
        read_gguf(&changes).map(|config| rope(&config).scaling.clone())
    };
    let kind = |name: &str| ("llama.rope.scaling.type", Value::String(name.into()));
    let factor = ("llama.rope.scaling.factor", Value::F32(4.0));
    let linear = Some(RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaling(&[kind("linear"), factor.clone()]).expect("valid"), linear);
    assert_eq!(scaling(std::slice::from_ref(&factor)).expect("valid"), linear);
    assert_eq!(scaling(&[("llama.rope.scale_linear", Value::F32(4.0))]).expect("valid"), linear);
    assert_eq!(scaling(&[kind("none"), factor.clone()]).expect("valid"), None);
    assert_eq!(scaling(&[("llama.rope.scaling.factor", Value::F32(0.0))]).expect("valid"), None);

    let attention = ("llama.rope.scaling.attn_factor", Value::F32(0.5));
    let yarn = scaling(&[kind("yarn"), factor, attention]).expect("valid");
    assert_eq!(
        yarn,
        Some(RopeScaling::Yarn {
            factor: 4.0,
            original_context: 256,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 0.5 * (0.1 * 4.0f32.ln() + 1.0),
            truncate: true,
        })
    );
    let error = scaling(&[kind("yarn")]).expect_err("no factor");
    assert!(matches!(error, ConfigError::Gguf { source: GgufError::MissingKey { .. } }));
}

#[test]
fn gguf_features_without_a_program_are_refused() {
    let string = |text: &str| Some(Value::String(text.into()));
    for (key, value) in [
        ("llama.rope.dimension_count", Some(Value::U32(8))),
        ("llama.attention.value_length", Some(Value::U32(8))),
        ("llama.rope.scaling.type", string("dynamic")),
        ("llama.attention.head_count", Some(Value::Array(Array::I32(vec![4, 2])))),
        ("llama.attention.head_count", Some(Value::Array(Array::I32(vec![-4])))),
        ("llama.attention.head_count", Some(Value::Array(Array::U32(vec![])))),
    ] {
        let error = read_gguf(&[(key, value)]).expect_err(key);
        assert!(
            matches!(&error, ConfigError::Unsupported { field, .. } if field == key),
            "{error}"
        );
    }
    let same = Some(Value::Array(Array::I32(vec![4, 4])));
    let config = read_gguf(&[("llama.attention.head_count", same)]).expect("uniform heads");
    assert_eq!(config.heads, 4);
}

#[test]
fn a_window_that_is_switched_off_is_none() {
    let qwen = |changes: Json| {
        let mut all = json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32});
        for (field, value) in changes.as_object().expect("changes are an object") {
            all[field] = value.clone();
        }
        config(all)
    };
    let off = qwen(json!({"use_sliding_window": false})).expect("valid");
    assert_eq!(windows(&off), [None, None]);
    assert_eq!(windows(&qwen(json!({})).expect("valid")), [None, None]);

    let upper = qwen(json!({"use_sliding_window": true, "max_window_layers": 1})).expect("valid");
    assert_eq!(windows(&upper), [None, Some(32)]);
    let listed = json!({"use_sliding_window": true,
        "layer_types": ["sliding_attention", "full_attention"]});
    let listed = qwen(listed).expect("valid");
    assert_eq!(windows(&listed), [Some(32), None]);

    let short = qwen(json!({"use_sliding_window": true, "layer_types": ["full_attention"]}));
    assert!(matches!(short, Err(ConfigError::WrongLength { expected: 2, actual: 1, .. })));
    let unknown = json!({"use_sliding_window": true, "layer_types": ["linear_attention", "x"]});
    assert!(matches!(qwen(unknown), Err(ConfigError::Unsupported { .. })));
    let zero = qwen(json!({"use_sliding_window": true, "sliding_window": 0}));
    assert!(matches!(zero, Err(ConfigError::OutOfRange { field: "sliding_window", .. })));
}

#[test]
fn generation_defaults_take_one_eos_or_several() {
    let read = |config: Json, generation: Option<Json>| {
        let generation = generation.map(|json| json.to_string());
        GenerationDefaults::from_huggingface(&config.to_string(), generation.as_deref())
    };
    let both = read(
        json!({"eos_token_id": 1, "bos_token_id": 7}),
        Some(json!({"eos_token_id": [2, 3], "temperature": 0.6, "top_k": 20, "top_p": 0.95,
            "do_sample": true, "repetition_penalty": 1.1, "min_p": 0})),
    )
    .expect("valid");
    let expected = GenerationDefaults {
        bos_token: Some(7),
        eos_tokens: vec![2, 3],
        do_sample: Some(true),
        temperature: Some(0.6),
        top_k: Some(20),
        top_p: Some(0.95),
        min_p: Some(0.0),
        repetition_penalty: Some(1.1),
    };
    assert_eq!(both, expected);
    let config_only = read(json!({"eos_token_id": [4, 5]}), None).expect("valid");
    assert_eq!(config_only.eos_tokens, [4, 5]);
    assert_eq!(read(json!({}), Some(json!({}))).expect("valid"), GenerationDefaults::default());

    assert!(matches!(read(json!({}), Some(json!([]))), Err(ConfigError::Json { .. })));
}

#[test]
fn no_more_than_1024_tokens_end_a_generation() {
    let ids: Vec<u32> = (0..5_000).collect();
    let json = json!({"eos_token_id": ids}).to_string();
    let defaults = GenerationDefaults::from_huggingface("{}", Some(&json)).expect("read");
    assert_eq!(defaults.eos_tokens, ids[..1_024]);
    let key = |name| format!("tokenizer.ggml.{name}_token_id");
    let keys = [key("eos"), key("eot")];
    let value = |ids: &[u32]| Some(Value::Array(Array::U32(ids.to_vec())));
    let changes = [(keys[0].as_str(), value(&ids)), (keys[1].as_str(), value(&ids[1_000..]))];
    let defaults = GenerationDefaults::from_gguf(&gguf(&changes, &[]));
    assert_eq!(defaults.eos_tokens, ids[..1_024]);
}

#[test]
fn generation_defaults_are_in_gguf_metadata_too() {
    let file = gguf(
        &[
            ("tokenizer.ggml.bos_token_id", Some(Value::U32(1))),
            ("tokenizer.ggml.eos_token_id", Some(Value::U32(2))),
            ("tokenizer.ggml.eot_token_id", Some(Value::U32(2))),
            ("tokenizer.ggml.eom_token_id", Some(Value::U32(9))),
            ("general.sampling.temp", Some(Value::F32(0.5))),
            ("general.sampling.top_k", Some(Value::I32(-1))),
        ],
        &[],
    );
    let defaults = GenerationDefaults::from_gguf(&file);
    assert_eq!((defaults.bos_token, defaults.eos_tokens), (Some(1), vec![2, 9]));
    assert_eq!((defaults.temperature, defaults.top_k), (Some(0.5), Some(0)));
}

#[test]
fn recommendations_that_make_no_sense_are_dropped_and_the_others_kept() {
    let json = |text: &str| GenerationDefaults::from_huggingface("{}", Some(text)).expect("read");
    let kept = GenerationDefaults { min_p: Some(0.5), ..GenerationDefaults::default() };
    for wrong in [
        r#""eos_token_id": -1"#,
        r#""eos_token_id": "2""#,
        r#""bos_token_id": 1.5"#,
        r#""temperature": -0.1"#,
        r#""temperature": NaN"#,
        r#""temperature": 1e39"#,
        r#""top_p": 1.1"#,
        r#""top_p": "high""#,
        r#""top_p": -Infinity"#,
        r#""top_k": 0.5"#,
        r#""top_k": [1]"#,
        r#""repetition_penalty": 0"#,
        r#""repetition_penalty": 1e-60"#,
        r#""do_sample": 1"#,
    ] {
        assert_eq!(json(&format!(r#"{{"min_p": 0.5, {wrong}}}"#)), kept, "{wrong}");
    }
    assert_eq!(json(r#"{"eos_token_id": [1, -1, 4294967296, 2]}"#).eos_tokens, [1, 2]);

    let stored =
        |key: &str, value: Value| GenerationDefaults::from_gguf(&gguf(&[(key, Some(value))], &[]));
    let nothing = GenerationDefaults::default();
    for (key, value) in [
        ("tokenizer.ggml.eos_token_id", Value::U64(1 << 32)),
        ("tokenizer.ggml.bos_token_id", Value::I32(-1)),
        ("tokenizer.ggml.eot_token_id", Value::String("end".into())),
        ("general.sampling.temp", Value::F32(f32::NAN)),
        ("general.sampling.top_p", Value::F64(2.0)),
        ("general.sampling.penalty_repeat", Value::F32(-1.0)),
    ] {
        assert_eq!(stored(key, value), nothing, "{key}");
    }
}

#[test]
fn top_k_and_top_p_are_read_alike_from_either_kind_of_file() {
    let json = |text: &str| GenerationDefaults::from_huggingface("{}", Some(text)).expect("read");
    let stored =
        |key: &str, value: Value| GenerationDefaults::from_gguf(&gguf(&[(key, Some(value))], &[]));
    for (written, top_k) in [(-1, 0), (0, 0), (40, 40)] {
        assert_eq!(json(&format!(r#"{{"top_k": {written}}}"#)).top_k, Some(top_k));
        assert_eq!(json(&format!(r#"{{"top_k": {written}.0}}"#)).top_k, Some(top_k));
        let value = Value::I32(written);
        assert_eq!(stored("general.sampling.top_k", value).top_k, Some(top_k));
    }
    assert_eq!(json(r#"{"top_p": 0}"#).top_p, Some(0.0));
    assert_eq!(stored("general.sampling.top_p", Value::F32(0.0)).top_p, Some(0.0));
}

#[test]
fn numbers_that_json_has_no_words_for_are_read_as_python_writes_them() {
    let text = |field: &str| valid_text().replacen('{', &format!("{{{field}, "), 1);
    for harmless in [
        r#""time_step_limit": [0.0, Infinity]"#,
        r#""notes": "a \" NaN, -Infinity", "x": {"y": -Infinity, "z": [NaN]}"#,
    ] {
        let config = ModelConfig::from_huggingface(&text(harmless)).expect("read");
        assert_eq!(config, ModelConfig::from_huggingface(&valid_text()).expect("valid"));
    }
    let error = ModelConfig::from_huggingface(&text(r#""rms_norm_eps": NaN"#)).expect_err("NaN");
    assert_eq!(error.to_string(), r#"`rms_norm_eps` is "NaN", not a number of 32 bits"#);
    let error = ModelConfig::from_huggingface(&text(r#""rope_theta": 1e39"#)).expect_err("large");
    assert_eq!(error.to_string(), "`rope_theta` is 1e+39, not a number of 32 bits");
    for broken in [r#""x": NaNs"#, r#""x": -"#, r#""x": Infinit"#] {
        let error = ModelConfig::from_huggingface(&text(broken)).expect_err("not JSON");
        assert!(matches!(error, ConfigError::Json { .. }), "{broken}: {error}");
    }
}

#[test]
fn gguf_layers_beyond_the_number_of_layers_are_refused_by_name() {
    let file = gguf(&[("llama.block_count", Some(Value::U32(1)))], &["blk.1.attn_q.weight"]);
    let error = ModelConfig::from_gguf(&file).expect_err("a layer too many");
    let ConfigError::Gguf { source } = &error else { panic!("{error}") };
    let expected = "`blk.1.attn_q.weight` belongs to none of the 1 layers of `llama.block_count`";
    assert_eq!(source.to_string(), expected);
}

#[test]
fn truncated_json_is_a_typed_error() {
    let text = valid_text();
    for length in 0..text.len() {
        let error = ModelConfig::from_huggingface(&text[..length]).expect_err("truncated");
        assert!(matches!(error, ConfigError::Json { .. }), "{length} bytes: {error}");
    }
    assert!(ModelConfig::from_huggingface(&text).is_ok());
}

fn valid_text() -> String {
    json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16})
    .to_string()
}
