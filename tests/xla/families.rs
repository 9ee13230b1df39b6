//! The tiny model of each family on one device and on two, against transformers.

use engine_core::backend::{Backend, Compute};
use engine_core::model::open_model;
use engine_core::weights::Format;

use crate::comparison::check_model;
use crate::fixtures::{self, Expected};
use crate::support::{open, xla};

const FAMILIES: [&str; 16] = [
    "llama-tied",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3-wrapped",
    "glm4",
    "granite",
    "granite4-dense",
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
fn each_family_equals_transformers_on_1_device() {
    check_all(1);
}

#[test]
fn each_family_equals_transformers_on_2_devices() {
    check_all(2);
}

/// With mixtures of experts, and Gemma 4 without one.
const MIXTURES: [&str; 7] =
    ["gemma4", "gemma4-moe", "gpt-oss", "gpt-oss-mxfp4", "mixtral", "qwen2-moe", "qwen3-moe"];

#[test]
fn mixtures_of_experts_equal_transformers_on_1_and_2_devices() {
    let backends: Vec<Box<dyn Backend>> = [1, 2].map(|devices| open(&xla(devices))).into();
    for name in MIXTURES {
        check(&backends, name);
    }
}

/// Of their formats Q4_0, Q4_1 and Q8_0 stay quantized on the devices; BF16 and MXFP4 don't.
const GGUF_FILES: [&str; 6] =
    ["llama-quantized", "qwen3-mixed", "phi3", "gpt-oss", "gemma4", "gemma4-moe"];

#[test]
fn gguf_files_equal_transformers_on_1_and_2_devices() {
    let backends: Vec<Box<dyn Backend>> = [1, 2].map(|devices| open(&xla(devices))).into();
    for name in GGUF_FILES {
        let file = format!("tiny-gguf/{name}");
        check_file(&backends, &format!("{file}.gguf"), &format!("{file}.expected.json"));
    }
}

#[test]
fn matrices_of_a_gguf_file_lie_on_1_and_2_devices_as_bytes_with_scales() {
    let model = open_model(&fixtures::path("tiny-gguf/llama-quantized.gguf")).unwrap();
    let program = model.program().unwrap();
    let (mut matrices, mut plain, mut kept) = (0, 0, 0);
    for weight in program.weights() {
        let (format, shape) = model.weights.describe(&weight.name).unwrap();
        let elements: usize = shape.dims().iter().product();
        let is_vocabulary = weight.name == "model.embed_tokens.weight";
        // Groups of 32 have a scale of 32 bits, and in Q4_1 a minimum; what is not kept is f32.
        match format {
            Format::F32 => plain += 4 * elements,
            Format::Q8_0 if is_vocabulary => matrices += 4 * elements,
            Format::Q4_0 | Format::Q8_0 => matrices += elements + elements / 8,
            Format::Q4_1 => matrices += elements + elements / 4,
            other => panic!("{other} is not in the file"),
        }
        kept += usize::from(format != Format::F32 && !is_vocabulary);
    }
    assert_eq!(kept, 14);
    for devices in [1, 2] {
        let backend = open(&xla(devices));
        let bytes = backend.weight_bytes(&program, model.weights.as_ref(), Compute::Exact).unwrap();
        // Matrices are divided, and each device has all norms.
        assert_eq!(bytes, (matrices + devices * plain) as u64, "{devices}");
    }
}

#[test]
fn qwen2_with_three_heads_equals_transformers_on_1_device() {
    check(&[open(&xla(1))], "qwen2");
}

fn check_all(devices: usize) {
    let backends = [open(&xla(devices))];
    for name in FAMILIES {
        check(&backends, name);
    }
}

fn check(backends: &[Box<dyn Backend>], name: &str) {
    let directory = format!("tiny/{name}");
    check_file(backends, &directory, &format!("{directory}/expected.json"));
}

fn check_file(backends: &[Box<dyn Backend>], name: &str, expected: &str) {
    let model = open_model(&fixtures::path(name)).unwrap();
    let mut expected: Expected = fixtures::read(expected);
    // The longest prompt, beyond the windows: each shape takes seconds to compile.
    expected.prompts.retain(|prompt| prompt.name == "ninety");
    assert_eq!(expected.prompts.len(), 1, "{name}");
    check_model(backends, name, &model, &expected);
}
