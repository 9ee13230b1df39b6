//! The engine on the embedded backend and a tiny model: the tokens are transformers', whatever
//! the engine is set up like.

use std::fs;

use engine_core::Token;
use engine_core::engine::EngineOptions;
use understory::BackendChoice;
use understory::source::FetchOptions;

use crate::support::*;

/// Prompts and the greedy tokens that transformers continues them with.
fn references() -> Vec<(Vec<Token>, Vec<Token>)> {
    let text = fs::read_to_string(model().join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tokens = |value: &serde_json::Value| serde_json::from_value(value.clone()).unwrap();
    let prompts = expected["prompts"].as_array().unwrap();
    let reference = |prompt: &serde_json::Value| {
        (tokens(&prompt["token_ids"]), tokens(&prompt["greedy"]["token_ids"]))
    };
    prompts.iter().map(reference).collect()
}

#[test]
fn greedy_tokens_are_those_of_the_reference_however_the_engine_is_set_up() {
    type Change = fn(&mut EngineOptions);
    let changes: [Change; 8] = [
        |_| {},
        |options| options.overlap = false,
        |options| options.cache = false,
        |options| options.chunked_prefill_size = Some(16),
        |options| options.chunked_prefill_size = Some(512),
        |options| options.page_size = Some(1),
        |options| options.page_size = Some(128),
        |options| options.retract_every = Some(3),
    ];
    let choice = BackendChoice::Cpu { threads: Some(2) };
    let backend = choice.open(&FetchOptions::default(), &mut ()).unwrap();
    for (number, change) in changes.into_iter().enumerate() {
        let mut options = small();
        change(&mut options);
        let engine = start(backend.as_ref(), options);
        // Each prompt several times, so that batches are mixed and prefixes are found again.
        let generations: Vec<_> = references()
            .into_iter()
            .cycle()
            .take(9)
            .map(|(prompt, expected)| {
                let max_tokens = expected.len() as u32;
                (expected, engine.submit(request(&prompt, max_tokens)).unwrap())
            })
            .collect();
        for (expected, generation) in generations {
            let output = generation.wait().unwrap().remove(0);
            assert_eq!(output.tokens, expected, "change {number}");
        }
    }
}
