//! The engine on the embedded backend and a tiny model: the tokens are transformers', whatever
//! the engine is set up like.

use std::fs;

use engine_core::Token;
use engine_core::backend::PoolKind;
use engine_core::engine::EngineOptions;
use engine_core::request::EmbedRequest;
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

#[test]
fn a_prompt_is_scored_as_its_tokens_were_when_they_were_generated() {
    let choice = BackendChoice::Cpu { threads: Some(2) };
    let backend = choice.open(&FetchOptions::default(), &mut ()).unwrap();
    for chunk in [16, 512] {
        let mut options = small();
        options.chunked_prefill_size = Some(chunk);
        let engine = start(backend.as_ref(), options);
        for (prompt, _) in references() {
            let mut generated = request(&prompt, 20);
            generated.sampling.logprobs = Some(2);
            let generated = engine.generate(generated).unwrap().remove(0);
            let mut whole = prompt.clone();
            whole.extend(&generated.tokens);
            let mut scored = request(&whole, 0);
            scored.sampling.prompt_logprobs = Some(2);
            let scored = engine.generate(scored).unwrap().remove(0).prompt_logprobs;
            assert_eq!(scored.len(), whole.len() - 1);
            for (scored, generated) in scored[prompt.len() - 1..].iter().zip(&generated.logprobs) {
                assert!((scored.logprob - generated.logprob).abs() < 1e-4);
                let tokens = |top: &[(Token, f32)]| top.iter().map(|t| t.0).collect::<Vec<_>>();
                assert_eq!(tokens(&scored.top), tokens(&generated.top));
            }
        }
    }
}

#[test]
fn vectors_depend_neither_on_chunks_nor_on_the_cache() {
    let choice = BackendChoice::Cpu { threads: Some(2) };
    let backend = choice.open(&FetchOptions::default(), &mut ()).unwrap();
    let vectors = [16, 512].map(|chunk| {
        let mut options = small();
        options.chunked_prefill_size = Some(chunk);
        let engine = start(backend.as_ref(), options);
        let texts = references().into_iter().flat_map(|(prompt, _)| {
            [prompt.clone(), prompt.iter().copied().cycle().take(90).collect()]
        });
        let vectors: Vec<Vec<f32>> = texts
            .flat_map(|tokens| {
                [PoolKind::Last, PoolKind::Mean, PoolKind::Last].map(|pooling| {
                    let request = EmbedRequest::new(tokens.clone()).pooling(pooling);
                    engine.embed(request).unwrap().vector
                })
            })
            .collect();
        // Computed, and then taken from the cache but for the last token.
        assert!(vectors.chunks(3).all(|pooled| pooled[0] == pooled[2]));
        assert!(vectors.chunks(3).any(|pooled| pooled[0] != pooled[1]));
        vectors
    });
    for (chunked, whole) in vectors[0].iter().zip(&vectors[1]) {
        let length: f32 = whole.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-4);
        assert!(chunked.iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
