//! Engines and compilers for the tests.

use std::path::PathBuf;

use backend_cpu::CpuBackend;
use engine_core::engine::{Engine, EngineOptions, KvMemory};
use engine_core::request::{FinishReason, Output, Request, SamplingParams};
use grammar::{GrammarCompiler, GrammarError, GrammarOptions, GrammarSpec};

/// A tiny checkpoint with a byte-level vocabulary, a chat template and random weights.
pub(crate) fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama-tied")
}

pub(crate) fn options() -> EngineOptions {
    let mut options = EngineOptions::default();
    options.kv_memory = KvMemory::Tokens(32 << 10);
    options.max_running_requests = Some(16);
    options.context_length = Some(1024);
    options
}

pub(crate) fn engine(options: EngineOptions) -> Engine {
    Engine::builder().options(options).load(model(), &CpuBackend::new(), &mut ()).unwrap()
}

pub(crate) fn compiler(engine: &Engine) -> GrammarCompiler {
    GrammarCompiler::new(engine.tokenizer().unwrap(), GrammarOptions::default()).unwrap()
}

pub(crate) fn sampling(seed: u64) -> SamplingParams {
    let mut sampling = SamplingParams::default();
    sampling.temperature = 1.0;
    sampling.seed = Some(seed);
    sampling.max_tokens = Some(900);
    sampling
}

/// An answer under a grammar, which must be complete.
pub(crate) fn answer(
    engine: &Engine,
    spec: &GrammarSpec,
    seed: u64,
) -> Result<String, GrammarError> {
    let constraint = compiler(engine).compile(spec)?.constraint();
    let request = Request::new("x").sampling(sampling(seed)).constraint(Box::new(constraint));
    Ok(text(engine.generate(request).unwrap().remove(0)))
}

pub(crate) fn text(output: Output) -> String {
    assert_eq!(output.reason, FinishReason::Stop, "{:?}", output.text);
    output.text
}
