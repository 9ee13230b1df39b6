//! The stand-in driver for tests, and a small model served by it.
#![allow(dead_code)] // Each test crate uses a part.

// Linked so that the library is built before the tests.
use cuda_emulator_driver as _;

use std::path::PathBuf;

use backend_cuda::{CudaBackend, CudaOptions};
use cuda_emulator::nvrtc::Nvrtc;
use cuda_emulator::stand_in;
use engine_core::backend::{Backend, Compute};
use engine_core::engine::{Engine, EngineOptions, KvMemory};
use engine_core::error::EngineError;
use engine_core::model::open_model;
use engine_core::request::{Request, SamplingParams};

/// Tokens of an answer.
pub(crate) const ANSWER: u32 = 12;

/// A backend on the stand-in, which runs PTX only.
pub(crate) fn backend(options: CudaOptions) -> CudaBackend {
    backend_as_given(options.machine_code(false))
}

pub(crate) fn backend_as_given(options: CudaOptions) -> CudaBackend {
    let driver = stand_in::find().expect("the stand-in is built");
    let nvrtc = Nvrtc::locate().expect("NVRTC can be fetched");
    CudaBackend::new(&options.driver(driver.clone()).cublaslt(driver).nvrtc(nvrtc))
        .expect("the stand-in has a device")
}

pub(crate) fn options() -> EngineOptions {
    EngineOptions::default()
        .compute(Compute::Exact)
        .page_size(8)
        .kv_memory(KvMemory::Tokens(512))
        .max_running_requests(4)
        .chunked_prefill_size(32)
        .context_length(128)
}

pub(crate) fn engine(backend: &dyn Backend, options: EngineOptions) -> Engine {
    engine_of("llama-tied", backend, options)
}

/// An engine with one of the tiny models.
pub(crate) fn engine_of(model: &str, backend: &dyn Backend, options: EngineOptions) -> Engine {
    try_engine(model, backend, options).expect("an engine")
}

pub(crate) fn try_engine(
    name: &str,
    backend: &dyn Backend,
    options: EngineOptions,
) -> Result<Engine, EngineError> {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let model = open_model(&models.join(name))?;
    // Tokens alone: most of these models have no tokenizer.
    let program =
        model.program_for(options.context_length.unwrap_or(model.config.context_length))?;
    let builder = Engine::builder().options(options).model_context(model.config.context_length);
    builder.build(program, model.weights.as_ref(), backend, &mut ())
}

/// Greedy, with the two likeliest tokens at each place. Of three prompts two begin alike.
pub(crate) fn requests() -> Vec<Request> {
    let prompt = |first: u32, len: u32| -> Vec<u32> {
        (0..len).map(|n| if n < 20 { 7 * n + 3 } else { first + 31 * n } % 384).collect()
    };
    let sampling = SamplingParams::greedy(ANSWER).logprobs(2).ignore_eos(true);
    let prompts = [prompt(0, 45), prompt(100, 37), vec![5, 300, 17]];
    prompts.map(|prompt| Request::new(prompt).sampling(sampling.clone())).into()
}
