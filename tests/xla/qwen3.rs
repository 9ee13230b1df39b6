//! A small Qwen3 with random weights, on any number of devices.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::random::Random;

use crate::agreement::compare;
use crate::support::{answer, assert_eventful, cpu, eventful, start, xla};

/// Of the tokenizer that the model borrows.
pub(crate) const VOCABULARY: usize = 384;
const HIDDEN: usize = 128;
const LAYERS: usize = 4;
const HEADS: usize = 8;
/// On four devices each is there twice.
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const INTERMEDIATE: usize = 256;

/// How far log probabilities may be apart: 1.9e-5 was measured.
pub(crate) const NOISE: f32 = 5e-5;

/// A checkpoint in a folder that lasts as long as this does.
pub(crate) struct Checkpoint(TempDir);

impl Checkpoint {
    /// Random weights from a seed.
    pub(crate) fn random(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama-tied");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(tiny.join(file), folder.path().join(file)).unwrap();
        }
        let config = json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
            "vocab_size": VOCABULARY, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "hidden_act": "silu", "tie_word_embeddings": false,
            "attention_bias": false, "eos_token_id": 1, "bos_token_id": 0,
            "torch_dtype": "float32",
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("model.safetensors"), weights(seed)).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

/// A safetensors file: the header's length, the header, the data.
fn weights(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let (mut header, mut data) = (Map::new(), Vec::new());
    let mut insert = |name: String, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let start = data.len();
        // Norms are near 1; products keep the size of what goes in, and a little more.
        let (center, deviation) = match shape {
            [_, columns] => (0.0, 1.7 / (*columns as f32).sqrt()),
            _ => (1.0, 0.2),
        };
        for _ in 0..count {
            let value = center + deviation * 3f32.sqrt() * random.uniform();
            data.extend(value.to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    };
    insert("model.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN]);
    insert("model.norm.weight".into(), &[HIDDEN]);
    insert("lm_head.weight".into(), &[VOCABULARY, HIDDEN]);
    for layer in 0..LAYERS {
        let tensors: [(&str, &[usize]); 11] = [
            ("input_layernorm", &[HIDDEN]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.q_norm", &[HEAD_DIM]),
            ("self_attn.k_norm", &[HEAD_DIM]),
            ("self_attn.q_proj", &[HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", &[KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", &[KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HEADS * HEAD_DIM]),
            ("mlp.gate_proj", &[INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", &[INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, INTERMEDIATE]),
        ];
        for (name, shape) in tensors {
            insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let header = Value::Object(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// Prompts of all lengths, some with a common beginning.
fn requests(random: &mut Random) -> Vec<Value> {
    let mut tokens =
        |count: usize| -> Vec<usize> { (0..count).map(|_| random.below(VOCABULARY)).collect() };
    let beginning = tokens(100);
    (0..32)
        .map(|index| {
            let own = tokens(1 + 7 * index);
            let prompt = if index % 2 == 0 { [&beginning[..], &own].concat() } else { own };
            json!({"token_ids": prompt, "ignore_eos": true})
        })
        .collect()
}

#[test]
fn a_random_qwen3_gives_the_same_answers_on_1_2_and_4_devices() {
    const SEED: u64 = 3;
    println!("seed {SEED}");
    let checkpoint = Checkpoint::random(SEED);
    let requests = requests(&mut Random::new(SEED + 1));
    let run = |choice| {
        let engine = start(&choice, &checkpoint.path(), eventful());
        let answers = answer(&engine, &requests, 24);
        assert_eventful(&engine);
        answers
    };
    let expected = run(cpu());
    let one = run(xla(1));
    for (what, reference, found) in [
        ("1 device and the CPU backend", &expected, &one),
        ("2 devices and 1", &one, &run(xla(2))),
        ("4 devices and 1", &one, &run(xla(4))),
    ] {
        let agreement = compare(reference, found, NOISE);
        println!("{what}: {agreement:?}");
        let agreement = agreement.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(agreement.tokens >= requests.len() * 20, "{agreement:?}");
    }
}
