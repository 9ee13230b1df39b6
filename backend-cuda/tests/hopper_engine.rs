//! An engine on a stand-in of compute capability 9.0, where `prefill_hopper` takes the place of `attention_append`.

mod stand_in;

use std::process::Command;

use backend_cpu::CpuBackend;
use backend_cuda::CudaOptions;
use engine_core::backend::Backend;
use engine_core::engine::Engine;
use engine_core::model::{AttentionOptions, Program, ProgramBuilder};
use engine_core::request::Output;
use engine_core::weights::{Format, MapWeights, Shape, Tensor};
use stand_in::{options, requests};

const VOCABULARY: u32 = 384;
const WIDTH: usize = 128;

/// Two layers of attention: heads of 64, one of them with a window, in a page group of its own.
fn program() -> Program {
    let mut b = ProgramBuilder::new("test", VOCABULARY);
    let mut x = b.embed("embed", WIDTH, 1.0);
    for window in [None, Some(20)] {
        let group = b.page_group(2, 64, window);
        let mut options = AttentionOptions::full(64);
        options.group = group;
        options.window = window;
        let seen = b.attention(x, x, x, &options);
        x = b.add(x, seen);
    }
    let selected = b.select_outputs(x);
    b.finish_with_logits(selected, "embed", None).expect("well formed")
}

fn answers(backend: &dyn Backend) -> Vec<Output> {
    let values: Vec<f32> = (0..VOCABULARY * WIDTH as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 65536.0 - 0.5)
        .collect();
    let mut weights = MapWeights::new();
    let shape = Shape::matrix(VOCABULARY as usize, WIDTH);
    weights.insert("embed", Tensor::from_f32(Format::F32, shape, &values).expect("consistent"));
    let builder = Engine::builder().options(options()).model_context(128);
    let engine = builder.build(program(), &weights, backend, &mut ()).expect("an engine");
    let submitted: Vec<_> =
        requests().into_iter().map(|request| engine.submit(request).expect("taken")).collect();
    submitted.into_iter().map(|one| one.wait().expect("an answer").remove(0)).collect()
}

/// The stand-in reads its settings from the environment: the test runs in a process of its own.
#[test]
fn an_engine_on_hopper_generates_the_tokens_of_the_cpu() {
    if std::env::var_os("CUDA_EMULATOR_ARCH").is_none() {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .env("CUDA_EMULATOR_ARCH", "sm_90")
            .env("CUDA_EMULATOR_STRICT", "1")
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    // `attention_append` is not loaded here: a launch of it would be an error.
    let expected = answers(&CpuBackend::new());
    let found = answers(&stand_in::backend(CudaOptions::new().half(true)));
    let mut compared = 0;
    for (expected, found) in expected.iter().zip(&found) {
        let places = expected.tokens.iter().zip(&expected.logprobs);
        let found = found.tokens.iter().zip(&found.logprobs);
        for ((token, logprobs), (other, other_logprobs)) in places.zip(found) {
            let near = logprobs.top[0].1 - logprobs.top[1].1 < 0.04;
            assert!(token == other || near, "{token} {logprobs:?}, {other} {other_logprobs:?}");
            if token != other {
                break;
            }
            assert!((logprobs.logprob - other_logprobs.logprob).abs() < 0.02);
            compared += 1;
        }
    }
    assert!(compared >= 12, "{compared} tokens before near ties");
}
