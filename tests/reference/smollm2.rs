//! SmolLM2-135M-Instruct in Q4_1, through the engine.

use backend_cpu::CpuBackend;
use engine_core::backend::Compute;
use engine_core::engine::{Engine, EngineOptions, KvMemory};
use understory::source::{FetchOptions, ModelSource};

use crate::fixtures::read;
use crate::recorded::{Greedy, generate, logits_error};

/// How far a logit may be from transformers' once the best one is subtracted from both. Float32 is
/// within 4.6e-5 of float64 on these prompts, and the closest decision is won by 5.3e-3. We are
/// within 6.5e-5.
const TOLERANCE: f32 = 3e-4;

fn engine(options: EngineOptions) -> Engine {
    // The reference computes in f32.
    let options = options.compute(Compute::Exact);
    let path = ModelSource::Default.resolve(&FetchOptions::default(), &mut ()).unwrap();
    Engine::builder().options(options).load(path, &CpuBackend::new(), &mut ()).unwrap()
}

#[test]
fn smollm2_greedy_tokens_equal_transformers() {
    let expected: Greedy = read("smollm2/greedy.json");
    let mut options = EngineOptions::default();
    options.kv_memory = KvMemory::Tokens(8192);
    let outputs = generate(&engine(options), &expected.prompts, 64);
    let mut worst = 0f32;
    for (prompt, output) in expected.prompts.iter().zip(&outputs) {
        assert_eq!(output.tokens, prompt.output_ids, "{}", prompt.name);
        worst = worst.max(logits_error(prompt, output));
    }
    println!("{} x 64 tokens equal; logits within {worst:.1e} of transformers", outputs.len());
    assert!(worst <= TOLERANCE, "{worst:e}");
}

#[test]
fn smollm2_tokens_do_not_depend_on_how_the_engine_is_set_up() {
    let expected: Greedy = read("smollm2/greedy.json");
    let few: Vec<_> =
        expected.prompts.into_iter().filter(|prompt| prompt.token_ids.len() <= 64).collect();
    let mut tiny_pages = EngineOptions::default();
    tiny_pages.page_size = Some(1);
    tiny_pages.cache = false;
    tiny_pages.overlap = false;
    let mut retracting = EngineOptions::default();
    retracting.page_size = Some(128);
    retracting.retract_every = Some(7);
    let mut crowded = EngineOptions::default();
    crowded.chunked_prefill_size = Some(16);
    crowded.max_running_requests = Some(3);
    for mut options in [tiny_pages, retracting, crowded] {
        options.kv_memory = KvMemory::Tokens(2048);
        let outputs = generate(&engine(options.clone()), &few, 12);
        for (prompt, output) in few.iter().zip(&outputs) {
            assert_eq!(output.tokens, prompt.output_ids[..12], "{} {options:?}", prompt.name);
        }
    }
}
