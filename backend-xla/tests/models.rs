//! Small models with known logits, on XLA's CPU plugin, over 1, 2, 4 and 8 devices.

mod common;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use backend_xla::{XlaBackend, XlaError, XlaOptions, pjrt::PjrtError};
use common::driver::{Generated, Prompt, generate};
use engine_core::{
    backend::{
        Backend, BackendError, CompileOptions, Executor, KvFormat, Limits, Progress, SlotSampling,
    },
    model::open_model,
    weights::Format,
};
use serde_json::Value;

/// With the numbers of devices: each way that heads and vocabulary can divide is here once.
const MODELS: [(&str, &[usize]); 4] = [
    ("llama-tied", &[1]),
    // One KV head, and a vocabulary that nothing divides.
    ("llama3-rope-untied", &[2]),
    // Three heads on one KV head, with biases.
    ("qwen2", &[1, 4]),
    // On 8 devices, more of them than heads.
    ("qwen3", &[1, 2, 4, 8]),
];
const PAGE_SIZE: u32 = 8;

/// How far log probabilities may be from the reference's: 1.2e-5 was measured.
const F32_NOISE: f32 = 5e-5;

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
    let kv_format = match options.compute {
        Format::BF16 => KvFormat::Bf16,
        _ => KvFormat::F32,
    };
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
/// and tokens are equal up to the first near-tie. Returns the largest difference, how many tokens
/// were compared, and how many there are.
fn check(
    expected: &Expected,
    found: &[Generated],
    tolerance: f32,
    what: &str,
) -> (f32, usize, usize) {
    let (mut largest_difference, mut compared, mut all) = (0f32, 0, 0);
    for (index, found) in found.iter().enumerate() {
        let logits = &expected.last_logits[index];
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        let normalizer = largest + sum.ln();
        assert_eq!(found.top[0].len(), 20);
        for &(token, logprob) in &found.top[0] {
            let expected = logits[token as usize] - normalizer;
            let difference = (logprob - expected).abs();
            largest_difference = largest_difference.max(difference);
            assert!(difference <= tolerance, "{what}, prompt {index}, token {token}: {difference}");
        }
        let margins = &expected.margins[index];
        let sure = margins.iter().position(|&margin| margin < 2.0 * tolerance);
        let sure = sure.unwrap_or(margins.len());
        assert_eq!(found.tokens[..sure], expected.greedy[index][..sure], "{what}, prompt {index}");
        compared += sure;
        all += margins.len();
    }
    (largest_difference, compared, all)
}

#[test]
fn tiny_models_agree_with_the_reference_on_one_and_on_many_devices() {
    for (model, devices) in MODELS {
        let expected = expected(model);
        for &devices in devices {
            let mut executor = executor(model, options(devices));
            let what = format!("{model} on {devices} devices");
            let found = generate(&mut *executor, &expected.prompts, 64, PAGE_SIZE as usize, 16);
            let (difference, compared, all) = check(&expected, &found, F32_NOISE, &what);
            println!("{what}: {compared} of {all} tokens compared, within {difference:e}");
            assert!(10 * compared >= 9 * all, "{what}: near-ties leave {compared} of {all} tokens");
        }
    }
}

#[test]
fn warm_up_tells_how_far_it_has_come() {
    let mut executor = executor("qwen3", options(1));
    let mut reports = Vec::new();
    struct Reports<'a>(&'a mut Vec<(u64, u64)>);
    impl Progress for Reports<'_> {
        fn update(&mut self, _what: &str, done: u64, total: u64) {
            self.0.push((done, total));
        }
    }
    executor.warm_up(&mut Reports(&mut reports)).expect("it warms up");
    let total = reports.len() as u64 - 1;
    assert_eq!(reports, (0..=total).map(|done| (done, total)).collect::<Vec<_>>());
}

#[test]
fn without_warm_up_results_are_the_same_and_compilations_are_not_counted_as_traffic() {
    let expected = expected("qwen3");
    let mut executor = executor("qwen3", options(1));
    let prompts = &expected.prompts[..2];
    // Chunks that end inside pages and blocks.
    let found = generate(&mut *executor, prompts, 5, PAGE_SIZE as usize, 16);
    check(&expected, &found, F32_NOISE, "chunks of five");
    assert_eq!(executor.compiles_in_traffic(), 0);
}

#[test]
fn executables_are_kept_on_disk_and_damaged_ones_are_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let expected = expected("llama-tied");
    // A file that is written anew has another inode than the one that it replaces.
    let files = || -> Vec<(PathBuf, u64)> {
        let entries = std::fs::read_dir(folder.path()).expect("the folder is there");
        let mut files: Vec<_> = entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                (entry.path(), entry.metadata().expect("it is there").ino())
            })
            .collect();
        files.sort();
        files
    };
    let run = || {
        let mut executor = executor("llama-tied", options(1).cache(folder.path()));
        let found = generate(&mut *executor, &expected.prompts, 64, PAGE_SIZE as usize, 16);
        check(&expected, &found, F32_NOISE, "with a cache");
    };
    run();
    let first = files();
    assert!(first.len() >= 5, "{first:?}");
    run();
    assert_eq!(files(), first, "everything was found");
    for (path, _) in &first {
        let mut bytes = std::fs::read(path).expect("the file is there");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        std::fs::write(path, bytes).expect("it can be written");
    }
    run();
    let replaced = files();
    assert_eq!(replaced.len(), first.len());
    let is_new = |(after, before): (&(PathBuf, u64), &(PathBuf, u64))| after.1 != before.1;
    assert!(replaced.iter().zip(&first).all(is_new), "each was compiled anew");
    run();
    assert_eq!(files(), replaced, "the replacements were found");
}

#[test]
fn bf16_stays_near_the_reference() {
    // A bf16 has 8 bits: logits with a spread of 2 move by a few hundredths in three layers.
    let expected = expected("qwen3");
    let options = options(2).compute(Format::BF16);
    let mut executor = executor("qwen3", options);
    let found = generate(&mut *executor, &expected.prompts, 64, PAGE_SIZE as usize, 16);
    let (difference, ..) = check(&expected, &found, 0.15, "bf16");
    println!("bf16: within {difference:e}");
}

#[test]
fn what_can_not_be_done_is_refused_with_a_reason() {
    let model = open_model(&fixtures().join("qwen3")).expect("the fixture opens");
    let program = model.program().expect("a program");
    let backend = XlaBackend::new(options(1)).expect("a backend");
    let compile = |backend: &XlaBackend, options: &CompileOptions| {
        backend
            .compile(std::slice::from_ref(&program), &*model.weights, options)
            .map(drop)
            .unwrap_err()
    };
    let good = CompileOptions::new(limits(), PAGE_SIZE, 256);

    let mut odd = good.clone();
    odd.page_size = 7;
    let error = compile(&backend, &odd);
    assert!(matches!(error, BackendError::Option { option: "page_size", .. }), "{error}");
    let mut half = good.clone();
    half.kv_format = KvFormat::F16;
    assert!(matches!(compile(&backend, &half), BackendError::Unsupported { .. }));
    let mut tiered = good.clone();
    tiered.host_pages = vec![1];
    assert!(matches!(compile(&backend, &tiered), BackendError::Unsupported { .. }));

    let mut small = options(1);
    small.memory_bytes = Some(100_000);
    let small = XlaBackend::new(small).expect("a backend");
    let error = compile(&small, &good);
    assert!(matches!(error, BackendError::Memory { available: 100_000, .. }), "{error}");

    // 96 intermediate features.
    let five = XlaBackend::new(options(5)).expect("a backend");
    let error = compile(&five, &good);
    assert!(matches!(error, BackendError::Option { option: "tensor_parallel", .. }), "{error}");

    let mut more = options(2);
    more.client_options = options(1).client_options;
    let error = XlaBackend::new(more).unwrap_err();
    let (requested, available) = (2, 1);
    assert!(
        matches!(error, XlaError::TensorParallel { requested: r, available: a, .. }
            if (r, a) == (requested, available)),
        "{error}"
    );
    let error = XlaBackend::new(options(1).compute(Format::Q4_0)).unwrap_err();
    assert!(matches!(error, XlaError::Compute { format: Format::Q4_0 }), "{error}");
    let error = XlaBackend::new(XlaOptions::new("/no/such/plugin.so")).unwrap_err();
    assert!(matches!(error, XlaError::Pjrt(PjrtError::Unreadable { .. })), "{error}");
}
