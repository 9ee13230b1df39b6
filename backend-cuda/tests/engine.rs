//! Engines served by the stand-in driver: an engine compiles on one thread and launches on another.

mod stand_in;

use std::time::Duration;

use backend_cpu::CpuBackend;
use backend_cuda::CudaOptions;
use engine_core::backend::{Backend, BackendError, CompileOptions, KvFormat, Limits};
use engine_core::engine::{Engine, EngineOptions};
use engine_core::error::GenerationError;
use engine_core::model::{AttentionOptions, Program, ProgramBuilder};
use engine_core::request::Output;
use engine_core::weights::{Format, MapWeights, Shape, Tensor};
use stand_in::{ANSWER, engine, options, requests};

/// How far log probabilities in f16 may be from those in f32: 0.003 was measured.
const NOISE: f32 = 0.02;
fn answers(engine: &Engine) -> Vec<Output> {
    let submitted: Vec<_> =
        requests().into_iter().map(|request| engine.submit(request).expect("taken")).collect();
    let wait = |generation: engine_core::engine::Generation| {
        generation.wait().expect("an answer").remove(0)
    };
    submitted.into_iter().map(wait).collect()
}

#[test]
fn an_engine_generates_the_tokens_of_the_cpu() {
    let backend = stand_in::backend(CudaOptions::new().half(true));
    let expected = answers(&engine(&CpuBackend::new(), options()));
    for overlap in [true, false] {
        let found = answers(&engine(&backend, options().overlap(overlap)));
        let mut compared = 0;
        for (expected, found) in expected.iter().zip(&found) {
            let places = expected.tokens.iter().zip(&expected.logprobs);
            let found = found.tokens.iter().zip(&found.logprobs);
            for ((token, logprobs), (other, other_logprobs)) in places.zip(found) {
                let near = logprobs.top[0].1 - logprobs.top[1].1 < 2.0 * NOISE;
                assert!(token == other || near, "{token} {logprobs:?}, {other} {other_logprobs:?}");
                if token != other {
                    // From here on the texts differ.
                    break;
                }
                let off = (logprobs.logprob - other_logprobs.logprob).abs();
                assert!(off < NOISE, "{logprobs:?}, {other_logprobs:?}");
                compared += 1;
            }
        }
        assert!(compared >= 2 * ANSWER, "{compared} tokens before near ties");
    }
}

#[test]
fn machine_code_that_the_driver_refuses_gives_way_to_ptx_which_is_kept_on_disk() {
    let folder = std::env::temp_dir().join(format!("understory-cuda-{}", std::process::id()));
    let answer = || {
        // The stand-in runs no machine code.
        let options = CudaOptions::new().half(true).machine_code(true).cache(folder.clone());
        answers(&engine(&stand_in::backend_as_given(options), options_of_one()))
    };
    let tokens = |outputs: Vec<Output>| outputs.into_iter().map(|it| it.tokens).collect::<Vec<_>>();
    let first = tokens(answer());
    let kept = || {
        let files = std::fs::read_dir(&folder).expect("a folder");
        files.filter_map(|file| file.ok().map(|file| file.path())).collect::<Vec<_>>()
    };
    let of_kind = |kind: &str| {
        kept().iter().filter(|path| path.extension().is_some_and(|it| it == kind)).count()
    };
    assert_eq!(of_kind("cubin"), 1, "the first was refused");
    let compiled = of_kind("ptx");
    assert!(compiled > 5, "{:?}", kept());
    // Damaged files are compiled anew.
    for path in kept() {
        let bytes = std::fs::read(&path).expect("a file");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("it can be written");
    }
    assert_eq!(tokens(answer()), first);
    assert_eq!(of_kind("ptx"), compiled);
    std::fs::remove_dir_all(&folder).expect("it is there");
}

fn options_of_one() -> EngineOptions {
    options().max_running_requests(1)
}

/// Whether an engine dies, and says that a deadline passed.
fn assert_late(engine: &Engine) {
    for request in requests() {
        // An engine that is dead already refuses.
        let Ok(generation) = engine.submit(request) else { break };
        let Err(GenerationError::Dead(dead)) = generation.wait() else { panic!("it lives") };
        assert!(dead.reason().contains("was not done by its deadline"), "{dead}");
    }
    let dead = engine.dead().expect("it is dead");
    assert!(dead.reason().contains("was not done by its deadline"), "{dead}");
}

#[test]
fn a_step_that_misses_the_deadline_of_its_wait_ends_the_engine() {
    let backend = stand_in::backend(CudaOptions::new().half(true));
    let late = Duration::from_nanos(1);
    assert_late(&engine(&backend, options().overlap(false).step_deadline(late)));
}

#[test]
fn a_launch_waits_for_the_step_before_within_its_limit() {
    let late = Duration::from_nanos(1);
    let backend = stand_in::backend(CudaOptions::new().half(true).longest_step(late));
    assert_late(&engine(&backend, options().step_deadline(None)));
}

/// A program whose embedding has `vocabulary` rows.
fn program(vocabulary: u32) -> Program {
    let mut b = ProgramBuilder::new("test", vocabulary);
    let x = b.embed("embed", 8, 1.0);
    let attention =
        AttentionOptions { group: b.page_group(1, 8, None), ..AttentionOptions::full(8) };
    let x = b.attention(x, x, x, &attention);
    let selected = b.select_outputs(x);
    b.finish_with_logits(selected, "embed", None).expect("well formed")
}

#[test]
fn a_weight_of_two_programs_has_the_shape_of_both() {
    let mut weights = MapWeights::new();
    let embed = Tensor::from_f32(Format::F32, Shape::matrix(16, 8), &[0.5; 128]);
    weights.insert("embed", embed.expect("consistent"));
    let limits = Limits { rows: 1, tokens: 4, outputs: 1, slots: 1, pages: vec![4, 4] };
    let mut options = CompileOptions::new(limits, 16, 64);
    options.kv_format = KvFormat::F16;
    let backend = stand_in::backend(CudaOptions::new().half(true));
    let compile =
        |second| backend.compile(&[program(16), program(second)], &weights, &options).map(|_| ());
    assert!(compile(16).is_ok());
    let error = compile(24).expect_err("another shape");
    let BackendError::Shape { name, expected, found } = error else { panic!("{error}") };
    assert_eq!((name.as_str(), expected, found), ("embed", vec![24, 8], vec![16, 8]));
}
