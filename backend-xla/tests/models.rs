//! Small models with known logits, on XLA's CPU plugin, over 1, 2 and 4 devices.

mod common;

use std::path::{Path, PathBuf};

use backend_xla::{XlaBackend, XlaOptions};
use common::driver::{Generated, Prompt, generate};
use engine_core::{
    backend::{Backend, CompileOptions, Executor, Limits, SlotSampling},
    model::open_model,
};
use serde_json::Value;

/// With the numbers of devices: each way that heads and vocabulary can divide is here once.
const MODELS: [(&str, &[usize]); 4] = [
    ("llama-tied", &[1]),
    // One KV head, and a vocabulary that nothing divides.
    ("llama3-rope-untied", &[2]),
    // Three heads on one KV head, with biases.
    ("qwen2", &[1, 4]),
    ("qwen3", &[1, 2, 4]),
];
const PAGE_SIZE: u32 = 8;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny")
}

fn limits() -> Limits {
    Limits { rows: 4, tokens: 64, outputs: 4, slots: 4, pages: vec![64] }
}

fn options(devices: usize) -> XlaOptions {
    let mut options = XlaOptions::cpu(common::plugin().path(), devices);
    // Most of these tests' time is compilation; the results don't depend on it.
    options.compiler_flags = vec![("xla_backend_optimization_level".into(), "0".into())];
    options
}

fn executor(model: &str, options: XlaOptions) -> Box<dyn Executor> {
    let kv_format = options.compute;
    let model = open_model(&fixtures().join(model)).expect("the fixture opens");
    let program = model.program().expect("a program");
    let backend = XlaBackend::new(options).expect("a backend");
    let mut compile = CompileOptions::new(limits(), PAGE_SIZE, 256);
    compile.kv_format = kv_format;
    backend.compile(&[program], &*model.weights, &compile).expect("the program compiles")
}

/// The reference's prompts with their logits at the end and their greedy answers.
struct Expected {
    prompts: Vec<Prompt>,
    last_logits: Vec<Vec<f32>>,
    greedy: Vec<Vec<u32>>,
    margins: Vec<Vec<f32>>,
}

fn expected(model: &str) -> Expected {
    let text = std::fs::read_to_string(fixtures().join(model).join("expected.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let numbers = |value: &Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let prompts = json["prompts"].as_array().unwrap();
    let mut sampling = SlotSampling::greedy();
    sampling.logprobs = Some(20);
    Expected {
        prompts: prompts
            .iter()
            .map(|p| Prompt { tokens: ids(&p["token_ids"]), sampling: sampling.clone() })
            .collect(),
        last_logits: prompts.iter().map(|p| numbers(&p["last_logits"])).collect(),
        greedy: prompts.iter().map(|p| ids(&p["greedy"]["token_ids"])).collect(),
        margins: prompts.iter().map(|p| numbers(&p["greedy"]["margins"])).collect(),
    }
}

/// Log probabilities at the end of each prompt differ from the reference by at most `tolerance`,
/// and tokens are equal up to the first near-tie.
fn check(expected: &Expected, found: &[Generated], tolerance: f32, what: &str) {
    for (index, found) in found.iter().enumerate() {
        let logits = &expected.last_logits[index];
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        let normalizer = largest + sum.ln();
        assert_eq!(found.top[0].len(), 20);
        for &(token, logprob) in &found.top[0] {
            let expected = logits[token as usize] - normalizer;
            let difference = (logprob - expected).abs();
            assert!(difference <= tolerance, "{what}, prompt {index}, token {token}: {difference}");
        }
        let margins = &expected.margins[index];
        let sure = margins.iter().position(|&margin| margin < 2.0 * tolerance);
        let sure = sure.unwrap_or(margins.len());
        assert_eq!(found.tokens[..sure], expected.greedy[index][..sure], "{what}, prompt {index}");
    }
}

#[test]
fn tiny_models_agree_with_the_reference_on_one_and_on_many_devices() {
    for (model, devices) in MODELS {
        let expected = expected(model);
        for &devices in devices {
            let mut executor = executor(model, options(devices));
            let what = format!("{model} on {devices} devices");
            let found = generate(&mut *executor, &expected.prompts, 64, PAGE_SIZE as usize, 16);
            check(&expected, &found, 2e-4, &what);
        }
    }
}
