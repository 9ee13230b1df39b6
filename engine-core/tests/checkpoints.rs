//! Opens the tiny checkpoints that the repository carries, through the public interface.

use std::{collections::BTreeSet, path::PathBuf};

use engine_core::{
    model::{Architecture, ConfigError, ModelConfig, OpenError, RopeScaling, open_model},
    weights::{Format, Shape},
};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(name)
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
    for layer in 0..config.layers {
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
        if config.architecture == Architecture::Qwen3 {
            add(name("self_attn.q_norm.weight"), Shape::Vector(config.head_dim));
            add(name("self_attn.k_norm.weight"), Shape::Vector(config.head_dim));
        }
    }
    tensors
}

#[test]
fn configuration_and_weights_of_each_family_fit_together() {
    for (name, architecture) in [
        ("llama-tied", Architecture::Llama),
        ("llama3-rope-untied", Architecture::Llama),
        ("qwen2", Architecture::Qwen2),
        ("qwen3", Architecture::Qwen3),
    ] {
        let model = open_model(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(model.config.architecture, architecture, "{name}");
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
    assert!(matches!(model.config.rope_scaling, Some(RopeScaling::Llama3 { factor: 8.0, .. })));
    assert_eq!(model.generation.eos_tokens, [1, 2]);
}

#[test]
fn a_family_without_a_program_is_refused_by_name() {
    let error = open_model(&fixture("gemma2")).expect_err("not supported");
    assert!(
        matches!(
            &error,
            OpenError::Config { source: ConfigError::UnknownArchitecture { found }, .. }
                if found == "Gemma2ForCausalLM"
        ),
        "{error}"
    );
}
