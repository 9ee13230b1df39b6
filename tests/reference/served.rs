//! Windowed families through the engine: chunked prefill, prefix cache, retraction, and pages that
//! windows let go of change no token.

use backend_cpu::CpuBackend;
use engine_core::engine::{Engine, EngineOptions, KvMemory};
use engine_core::model::open_model;
use engine_core::request::{Prompt, Request, SamplingParams};

use crate::fixtures::{self, Expected};

#[test]
fn windowed_families_are_served_as_transformers_generates() {
    for name in ["mistral", "gemma2", "gemma3", "olmo3", "phi3"] {
        let model = open_model(&fixtures::path(&format!("tiny/{name}"))).unwrap();
        let expected: Expected = fixtures::read(&format!("tiny/{name}/expected.json"));
        let mut options = EngineOptions::default();
        options.page_size = Some(4);
        options.context_length = Some(128);
        options.chunked_prefill_size = Some(16);
        options.retract_every = Some(7);
        options.kv_memory = KvMemory::Tokens(1024);
        let engine = Engine::builder()
            .options(options)
            .build(model.program().unwrap(), model.weights.as_ref(), &CpuBackend::new(), &mut ())
            .unwrap();
        for round in ["computed", "cached"] {
            let submit = |prompt: &fixtures::ExpectedPrompt| {
                let sampling = SamplingParams::greedy(16).ignore_eos(true);
                let prompt = Prompt::Tokens(prompt.token_ids.clone());
                engine.submit(Request::new(prompt).sampling(sampling)).unwrap()
            };
            let running: Vec<_> = expected.prompts.iter().map(submit).collect();
            for (prompt, generation) in expected.prompts.iter().zip(running) {
                let output = generation.wait().unwrap().remove(0);
                let greedy = prompt.greedy.as_ref().unwrap();
                assert_eq!(output.tokens, greedy.token_ids, "{name}, {}, {round}", prompt.name);
            }
        }
        let snapshot = engine.snapshot().scheduler;
        assert!(snapshot.cached_tokens > 0 && snapshot.retractions > 0, "{name}: {snapshot:?}");
    }
}
