//! The tiny model of each family on one device and on two, against transformers.

use engine_core::backend::Backend;
use engine_core::model::open_model;

use crate::comparison::check_model;
use crate::fixtures::{self, Expected};
use crate::support::{open, xla};

const FAMILIES: [&str; 15] = [
    "llama-tied",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3-wrapped",
    "glm4",
    "granite",
    "ministral3",
    "mistral",
    "mistral-small-3",
    "olmo2",
    "olmo3",
    "phi3",
    "phi4-mini",
    "smollm3",
];

#[test]
fn each_family_equals_transformers_on_1_and_2_devices() {
    let backends: Vec<Box<dyn Backend>> = [1, 2].map(|devices| open(&xla(devices))).into();
    for name in FAMILIES {
        check(&backends, name);
    }
}

/// With mixtures of experts, and Gemma 4 without one.
const MIXTURES: [&str; 6] =
    ["gemma4", "gemma4-moe", "gpt-oss", "mixtral", "qwen2-moe", "qwen3-moe"];

#[test]
fn mixtures_of_experts_equal_transformers_on_1_and_2_devices() {
    let backends: Vec<Box<dyn Backend>> = [1, 2].map(|devices| open(&xla(devices))).into();
    for name in MIXTURES {
        check(&backends, name);
    }
}

#[test]
fn qwen2_with_three_heads_equals_transformers_on_1_device() {
    check(&[open(&xla(1))], "qwen2");
}

fn check(backends: &[Box<dyn Backend>], name: &str) {
    let model = open_model(&fixtures::path(&format!("tiny/{name}"))).unwrap();
    let mut expected: Expected = fixtures::read(&format!("tiny/{name}/expected.json"));
    // The longest prompt, beyond the windows: each shape takes seconds to compile.
    expected.prompts.retain(|prompt| prompt.name == "ninety");
    assert_eq!(expected.prompts.len(), 1, "{name}");
    check_model(backends, name, &model, &expected);
}
