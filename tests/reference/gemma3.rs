//! Gemma 3 270M in Q4_K_M, through the engine.

use backend_cpu::CpuBackend;
use engine_core::backend::Compute;
use engine_core::engine::{Engine, EngineOptions, KvMemory};
use understory::source::{FetchOptions, ModelSource};

use crate::fixtures::read;
use crate::recorded::{Greedy, generate, logits_error};

/// How far a logit may be from transformers' once the best one is subtracted from both.
const TOLERANCE: f32 = 5e-4;

#[test]
fn gemma3_greedy_tokens_equal_transformers() {
    let path = ModelSource::Gemma3.resolve(&FetchOptions::default(), &mut ()).unwrap();
    let expected: Greedy = read("gemma3/greedy.json");
    let mut options = EngineOptions::default();
    options.compute = Compute::Exact;
    options.kv_memory = KvMemory::Tokens(8192);
    let engine = Engine::builder().options(options).load(path, &CpuBackend::new(), &mut ());
    let engine = engine.unwrap();
    let outputs = generate(&engine, &expected.prompts, 64);
    let mut worst = 0f32;
    for (prompt, output) in expected.prompts.iter().zip(&outputs) {
        assert_eq!(output.tokens, prompt.output_ids, "{}", prompt.name);
        worst = worst.max(logits_error(prompt, output));
    }
    println!("{} x 64 tokens equal; logits within {worst:.1e} of transformers", outputs.len());
    assert!(worst <= TOLERANCE, "{worst:e}");
}
