//! Gemma 3 270M in Q4_K_M, through the engine.

use backend_cpu::CpuBackend;
use engine_core::backend::Compute;
use engine_core::engine::{Engine, EngineOptions, KvMemory};
use engine_core::model::open_model;
use understory::source::{FetchOptions, ModelSource};

use crate::fixtures::read;
use crate::recorded::{Greedy, generate, logits_error};

/// How far a logit may be from transformers' once the best one is subtracted from both.
const TOLERANCE: f32 = 5e-4;

#[test]
fn gemma3_takes_what_was_estimated_and_its_weights_as_in_the_file() {
    let path = ModelSource::Gemma3.resolve(&FetchOptions::default(), &mut ()).unwrap();
    let model = open_model(&path).unwrap();
    let backend = CpuBackend::new();
    for (compute, bytes_each) in [(Compute::Exact, 4), (Compute::Auto, 2)] {
        let mut options = EngineOptions::default().compute(compute);
        options.context_length = Some(4096);
        options.kv_memory = KvMemory::Bytes(64 << 20);
        let builder = || Engine::builder().options(options.clone());
        let estimate = builder().estimate(&model, &backend).unwrap();
        let engine = builder().load_model(&model, &backend, &mut ()).unwrap();
        assert_eq!(Some(estimate.footprint), engine.footprint());
        assert_eq!(estimate.limits, *engine.limits());
        assert!(estimate.fits());
        // Whole panels, and norms in f32: not a byte more than the file has.
        assert_eq!(estimate.footprint.weights, engine.model().weight_bytes);
        assert!(estimate.footprint.weights < std::fs::metadata(&path).unwrap().len());
        let windows: Vec<_> =
            estimate.groups.iter().map(|group| (group.layers, group.window)).collect();
        assert_eq!(windows.len(), 2, "{windows:?}");
        assert!(windows.contains(&(15, Some(512))) && windows.contains(&(3, None)), "{windows:?}");
        // Keys and values of one head of 256.
        let bytes_a_token = |layers: u32| u64::from(layers) * 2 * 256 * bytes_each;
        assert!(estimate.groups.iter().all(|it| it.bytes_a_token == bytes_a_token(it.layers)));
        let printed = estimate.to_string();
        assert!(printed.contains("15 layers over 512 tokens"), "{printed}");
    }
}

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
