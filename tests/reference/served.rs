//! Windowed families through the engine: chunked prefill, prefix cache, retraction, and pages that
//! windows let go of change no token.

use backend_cpu::CpuBackend;
use engine_core::backend::Compute;
use engine_core::engine::{Engine, EngineOptions, KvMemory};
use engine_core::model::open_model;
use engine_core::request::{Prompt, Request, SamplingParams};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::fixtures::{self, Expected, ExpectedPrompt};

#[test]
fn windowed_families_are_served_as_transformers_generates() {
    for name in ["mistral", "gemma2", "gemma3", "olmo3", "phi3"] {
        let model = open_model(&fixtures::path(&format!("tiny/{name}"))).unwrap();
        let expected: Expected = fixtures::read(&format!("tiny/{name}/expected.json"));
        let mut options = EngineOptions::default().compute(Compute::Exact);
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
            check(&engine, &expected.prompts, &format!("{name}, {round}"));
        }
        let snapshot = engine.snapshot().scheduler;
        assert!(snapshot.cached_tokens > 0 && snapshot.retractions > 0, "{name}: {snapshot:?}");
    }
}

#[test]
fn the_context_that_is_served_decides_on_the_frequencies_of_long_rope() {
    let checkpoint = with_tokenizer("phi4-mini");
    let expected: Expected = fixtures::read("tiny/phi4-mini/expected.json");
    // The original context is 64, and transformers goes by the length of each sequence.
    let (short, long): (Vec<_>, Vec<_>) =
        expected.prompts.into_iter().partition(|prompt| prompt.token_ids.len() < 48);
    assert!(!short.is_empty() && !long.is_empty());
    for (context_length, prompts) in [(Some(64), short), (None, long)] {
        let mut options = EngineOptions::default().compute(Compute::Exact);
        options.context_length = context_length;
        options.kv_memory = KvMemory::Tokens(1024);
        let builder = Engine::builder().options(options);
        let engine = builder.load(checkpoint.path(), &CpuBackend::new(), &mut ()).unwrap();
        check(&engine, &prompts, &format!("{context_length:?}"));
    }
}

/// Submits all prompts at once; the answers are those of transformers.
fn check(engine: &Engine, prompts: &[ExpectedPrompt], what: &str) {
    let submit = |prompt: &ExpectedPrompt| {
        let sampling = SamplingParams::greedy(16).ignore_eos(true);
        let prompt = Prompt::Tokens(prompt.token_ids.clone());
        engine.submit(Request::new(prompt).sampling(sampling)).unwrap()
    };
    let running: Vec<_> = prompts.iter().map(submit).collect();
    for (prompt, generation) in prompts.iter().zip(running) {
        let output = generation.wait().unwrap().remove(0);
        let greedy = prompt.greedy.as_ref().unwrap();
        assert_eq!(output.tokens, greedy.token_ids, "{what}, {}", prompt.name);
    }
}

/// A tiny model, with a tokenizer for which each token is a character.
fn with_tokenizer(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        let stored = fixtures::path(&format!("tiny/{name}/{file}"));
        std::fs::copy(stored, folder.path().join(file)).unwrap();
    }
    let characters = ('!'..='~').chain(['\u{120}', '\u{10a}']);
    let vocabulary: Map<String, Value> =
        characters.zip(0..).map(|(text, id): (char, u32)| (text.into(), id.into())).collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}
