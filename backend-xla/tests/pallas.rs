//! The ragged paged attention kernel in Pallas' interpreter, run on XLA's CPU plugin: what the
//! executor gives the real kernel on a TPU (which was compiled for them, and not run).

mod common;

use std::path::{Path, PathBuf};

use backend_xla::{
    AttentionChoice, XlaBackend, XlaOptions,
    pallas::{KernelError, KernelSource},
};
use common::driver::{Prompt, generate};
use engine_core::{
    backend::{Backend, BackendError, CompileOptions, Executor, Limits, SlotSampling},
    model::{AttentionOptions, Program, ProgramBuilder, Split},
    weights::{Format, MapWeights, Shape, Tensor},
};

const VOCAB: usize = 96;
const WIDTH: usize = 32;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// The kernel takes no other.
const HEAD_DIM: usize = 128;
const PAGE_SIZE: u32 = 16;

/// Two layers of attention: to everything, and to a window with a soft cap.
fn program() -> Program {
    let mut b = ProgramBuilder::new("two kinds of attention", VOCAB as u32);
    b.page_group(KV_HEADS as u32, HEAD_DIM as u32, None);
    let mut x = b.embed("embed", WIDTH, 1.0);
    for (layer, window, soft_cap) in [(0, None, None), (1, Some(24), Some(2.0))] {
        let name = |what: &str| format!("{layer}.{what}");
        let h = b.rms_norm(x, &name("norm"), 1e-5);
        let q = b.linear(h, &name("q"), HEADS * HEAD_DIM, Split::Columns);
        let k = b.linear(h, &name("k"), KV_HEADS * HEAD_DIM, Split::Columns);
        let v = b.linear(h, &name("v"), KV_HEADS * HEAD_DIM, Split::Columns);
        let mut options = AttentionOptions::full(HEAD_DIM as u32);
        (options.window, options.soft_cap) = (window, soft_cap);
        let attended = b.attention(q, k, v, &options);
        let out = b.linear(attended, &name("o"), WIDTH, Split::Rows);
        x = b.add(x, out);
    }
    let x = b.select_outputs(x);
    b.finish_with_logits(x, "logits", None).expect("a program")
}

/// Numbers between -1 and 1 that look random; the same every time.
fn weights(program: &Program) -> MapWeights {
    let mut state = 11u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut weights = MapWeights::new();
    for weight in program.weights() {
        let shape = match weight.shape[..] {
            [rows, cols] => Shape::matrix(rows, cols),
            _ => Shape::Vector(weight.shape.iter().product()),
        };
        let scale = 2.0 / (shape.cols() as f32).sqrt();
        let values: Vec<f32> = (0..shape.rows() * shape.cols()).map(|_| scale * next()).collect();
        let tensor = Tensor::from_f32(Format::F32, shape, &values).expect("as many as the shape");
        weights.insert(weight.name.clone(), tensor);
    }
    weights
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ragged_paged_attention.py")
}

/// Kernels in the interpreter, and `jax`, kept between runs.
fn interpreted() -> KernelSource {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("jax");
    let source = KernelSource::script("python3", script(), cache);
    source.expect("Python 3.11 or 3.12 runs the script").interpreted()
}

fn executor(attention: AttentionChoice, devices: usize) -> Result<Box<dyn Executor>, BackendError> {
    let program = program();
    let mut options = XlaOptions::cpu(common::plugin().path(), devices).attention(attention);
    // Most of these tests' time is compilation; the results don't depend on it.
    options.compiler_flags = vec![("xla_backend_optimization_level".into(), "0".into())];
    let backend = XlaBackend::new(options).expect("a backend");
    let limits = Limits { rows: 4, tokens: 64, outputs: 4, slots: 4, pages: vec![48] };
    let compile = CompileOptions::new(limits, PAGE_SIZE, 128);
    backend.compile(std::slice::from_ref(&program), &weights(&program), &compile)
}

fn prompts() -> Vec<Prompt> {
    let mut sampling = SlotSampling::greedy();
    sampling.logprobs = Some(5);
    [1usize, 17, 64, 90]
        .iter()
        .map(|&length| Prompt {
            tokens: (0..length).map(|i| ((i * i + 3 * length) % VOCAB) as u32).collect(),
            sampling: sampling.clone(),
        })
        .collect()
}

#[test]
fn the_interpreted_kernel_gives_what_the_portable_attention_gives() {
    let prompts = prompts();
    let mut portable = executor(AttentionChoice::Portable, 1).expect("it compiles");
    let expected = generate(&mut *portable, &prompts, 50, PAGE_SIZE as usize, 8);
    for devices in [1, 2] {
        let attention = AttentionChoice::PallasOnly(interpreted());
        let mut executor = executor(attention, devices).expect("the kernels are there");
        let found = generate(&mut *executor, &prompts, 50, PAGE_SIZE as usize, 8);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let what = format!("prompt {index}, {devices} devices");
            assert_eq!(found.tokens, expected.tokens, "{what}");
            for (found, expected) in found.logprobs.iter().zip(&expected.logprobs) {
                assert!((found - expected).abs() < 1e-4, "{what}: {found} and {expected}");
            }
        }
    }
}

#[test]
fn without_the_kernel_the_portable_attention_serves_unless_only_the_kernel_will_do() {
    let empty = tempfile::tempdir().expect("a folder");
    let source = KernelSource::folder(empty.path());
    let portable = AttentionChoice::Pallas(source.clone());
    let mut portable = executor(portable, 1).expect("the portable attention serves");
    let prompts = [prompts().swap_remove(1)];
    let found = generate(&mut *portable, &prompts, 50, PAGE_SIZE as usize, 2);
    assert_eq!(found[0].tokens.len(), 2);
    // The device is no TPU.
    let error =
        executor(AttentionChoice::PallasOnly(source.clone()), 1).map(drop).expect_err("no kernel");
    let device = KernelError::Device { device: "cpu".to_owned() };
    assert!(error.to_string().contains(&device.to_string()), "{error}");
    // The folder is empty.
    let only = AttentionChoice::PallasOnly(source.interpreted());
    let error = executor(only, 1).map(drop).expect_err("no kernel");
    assert!(matches!(error, BackendError::Unsupported { .. }), "{error}");
}
