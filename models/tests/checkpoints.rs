//! Opens the tiny checkpoints that the repository carries, through the public interface.

use std::{collections::BTreeSet, path::PathBuf};

use models::{
    model::{ConfigError, LoadedModel, ModelConfig, OpenError, Rope, RopeScaling, open_model},
    weights::{Format, GgufWriter, Shape, Tensor, Value},
};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(name)
}

/// The rotary embedding of the first layer.
fn rope(config: &ModelConfig) -> &Rope {
    config.layers[0].rope.as_ref().expect("a layer that rotates")
}

/// The names and shapes of every tensor that a model of this configuration has.
fn expected_tensors(config: &ModelConfig) -> BTreeSet<(String, Shape)> {
    let hidden = config.hidden_size;
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut tensors = BTreeSet::new();
    let mut add = |name: String, shape| tensors.insert((name, shape));
    add("model.embed_tokens.weight".into(), Shape::matrix(config.vocab_size, hidden));
    add("model.norm.weight".into(), Shape::Vector(hidden));
    if !config.tie_word_embeddings {
        add("lm_head.weight".into(), Shape::matrix(config.vocab_size, hidden));
    }
    for layer in 0..config.layers.len() {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        add(name("input_layernorm.weight"), Shape::Vector(hidden));
        add(name("post_attention_layernorm.weight"), Shape::Vector(hidden));
        for (part, rows, cols, bias) in [
            ("self_attn.q_proj", queries, hidden, config.qkv_bias),
            ("self_attn.k_proj", keys, hidden, config.qkv_bias),
            ("self_attn.v_proj", keys, hidden, config.qkv_bias),
            ("self_attn.o_proj", hidden, queries, config.attention_output_bias),
            ("mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias),
            ("mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias),
            ("mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias),
        ] {
            add(name(&format!("{part}.weight")), Shape::matrix(rows, cols));
            if bias {
                add(name(&format!("{part}.bias")), Shape::Vector(rows));
            }
        }
        if config.architecture.name() == "qwen3" {
            add(name("self_attn.q_norm.weight"), Shape::Vector(config.head_dim));
            add(name("self_attn.k_norm.weight"), Shape::Vector(config.head_dim));
        }
    }
    tensors
}

#[test]
fn configuration_and_weights_of_each_family_fit_together() {
    for (name, architecture) in [
        ("llama-tied", "llama"),
        ("llama3-rope-untied", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
    ] {
        let model = open_model(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(model.config.architecture.name(), architecture, "{name}");
        assert!(!model.generation.eos_tokens.is_empty(), "{name}");
        let found: BTreeSet<(String, Shape)> = model
            .weights
            .names()
            .map(|tensor| {
                let read = model.weights.tensor(tensor).expect("a readable tensor");
                assert!(read.to_f32().iter().all(|value| value.is_finite()), "{name}: {tensor}");
                (tensor.to_owned(), read.shape())
            })
            .collect();
        assert_eq!(found, expected_tensors(&model.config), "{name}");
    }
}

#[test]
fn a_sharded_checkpoint_opens_with_its_rope_scaling() {
    let model = open_model(&fixture("llama3-rope-untied")).expect("well-formed");
    let embedding = model.weights.tensor("model.embed_tokens.weight").expect("present");
    assert_eq!(embedding.format(), Format::BF16);
    assert!(matches!(rope(&model.config).scaling, Some(RopeScaling::Llama3 { factor: 8.0, .. })));
    assert_eq!(model.generation.eos_tokens, [1, 2]);
}

#[test]
fn a_family_without_a_program_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let config = r#"{"architectures": ["BloomForCausalLM"]}"#;
    std::fs::write(directory.path().join("config.json"), config).expect("writable");
    let error = open_model(directory.path()).expect_err("not supported");
    assert!(
        matches!(
            &error,
            OpenError::Config { source: ConfigError::UnknownArchitecture { found }, .. }
                if found == "BloomForCausalLM"
        ),
        "{error}"
    );
}

/// GGUF's name for a tensor of Hugging Face.
fn gguf_name(name: &str) -> String {
    [
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("model.layers.", "blk."),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("self_attn.o_proj.", "attn_output."),
        ("_proj.", "."),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (theirs, gguf)| name.replace(theirs, gguf))
}

/// Rows in the order of llama files: within a head, the halves interleaved.
fn interleaved(tensor: &Tensor<'_>, heads: usize) -> Tensor<'static> {
    let half = tensor.shape().rows() / heads / 2;
    let mut data = Vec::new();
    for head in 0..heads {
        for pair in 0..half {
            for side in 0..2 {
                let row = (head * 2 + side) * half + pair;
                data.extend_from_slice(tensor.row(row).expect("a row of the head"));
            }
        }
    }
    Tensor::new(tensor.format(), tensor.shape(), data).expect("the same size")
}

/// What the usual converter makes of a checkpoint.
fn converted(model: &LoadedModel) -> Vec<u8> {
    let config = &model.config;
    let family = config.architecture.name();
    let mut writer = GgufWriter::new()
        .metadata("general.architecture", Value::String(family.into()))
        .metadata(&format!("{family}.rope.freq_base"), Value::F32(rope(config).theta))
        .metadata(
            &format!("{family}.attention.layer_norm_rms_epsilon"),
            Value::F32(config.rms_norm_eps),
        );
    for (key, value) in [
        ("vocab_size", config.vocab_size),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("block_count", config.layers.len()),
        ("context_length", config.context_length),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
    ] {
        writer = writer.metadata(&format!("{family}.{key}"), Value::U32(value as u32));
    }
    for name in model.weights.names() {
        let tensor = model.weights.tensor(name).expect("readable");
        let reordered = config.architecture.name() == "llama";
        let tensor = if reordered && name.contains("q_proj") {
            interleaved(&tensor, config.heads)
        } else if reordered && name.contains("k_proj") {
            interleaved(&tensor, config.kv_heads)
        } else {
            tensor
        };
        writer = writer.tensor(&gguf_name(name), &tensor);
    }
    if rope(config).scaling.is_some() {
        let mut unscaled = rope(config).clone();
        unscaled.scaling = None;
        let (plain, scaled) = (unscaled.rotary(512), rope(config).rotary(512));
        let pairs = plain.inverse_frequencies.iter().zip(&*scaled.inverse_frequencies);
        let factors: Vec<f32> = pairs.map(|(plain, scaled)| plain / scaled).collect();
        let factors = Tensor::from_f32(Format::F32, Shape::Vector(factors.len()), &factors);
        writer = writer.tensor("rope_freqs.weight", &factors.expect("one row"));
    }
    writer.finish()
}

#[test]
fn a_checkpoint_converted_to_gguf_is_the_same_model() {
    for name in ["llama-tied", "llama3-rope-untied", "qwen2", "qwen3"] {
        let original = open_model(&fixture(name)).expect("well-formed");
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), converted(&original)).expect("writable");
        let mut gguf = open_model(file.path()).unwrap_or_else(|error| panic!("{name}: {error}"));

        for tensor in original.weights.names() {
            assert_eq!(
                gguf.weights.tensor(tensor).expect("converted"),
                original.weights.tensor(tensor).expect("readable"),
                "{name}: {tensor}"
            );
        }
        let angles = rope(&original.config).rotary(512);
        let gguf_angles = rope(&gguf.config).rotary(512);
        for (theirs, ours) in
            gguf_angles.inverse_frequencies.iter().zip(&*angles.inverse_frequencies)
        {
            assert!((theirs / ours - 1.0).abs() < 1e-6, "{name}: {theirs}, {ours}");
        }
        // Scaling is spelled differently, and means the same, as just seen.
        for (layer, original) in gguf.config.layers.iter_mut().zip(&original.config.layers) {
            layer.rope.clone_from(&original.rope);
        }
        assert_eq!(gguf.config, original.config, "{name}");
    }
}
