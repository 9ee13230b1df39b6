//! The engine on the embedded backend and a tiny model: the tokens are transformers', whatever
//! the engine is set up like.

use std::fs;

use engine_core::Token;
use engine_core::backend::{Backend, Compute, KvFormat, PoolKind};
use engine_core::engine::{Engine, EngineOptions};
use engine_core::model::open_model;
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

/// Ways to set up an engine, none of which changes a token.
const CHANGES: [fn(&mut EngineOptions); 8] = [
    |_| {},
    |options| options.overlap = false,
    |options| options.cache = false,
    |options| options.chunked_prefill_size = Some(16),
    |options| options.chunked_prefill_size = Some(512),
    |options| options.page_size = Some(1),
    |options| options.page_size = Some(128),
    |options| options.retract_every = Some(3),
];

/// Runs each prompt several times, so that batches are mixed and prefixes are found again, and
/// returns what they are continued with.
fn continued(backend: &dyn Backend, options: EngineOptions) -> Vec<Vec<Token>> {
    let engine = start(backend, options);
    let generations: Vec<_> = references()
        .into_iter()
        .cycle()
        .take(9)
        .map(|(prompt, expected)| engine.submit(request(&prompt, expected.len() as u32)).unwrap())
        .collect();
    generations.into_iter().map(|it| it.wait().unwrap().remove(0).tokens).collect()
}

#[test]
fn greedy_tokens_are_those_of_the_reference_however_the_engine_is_set_up() {
    let choice = BackendChoice::Cpu { threads: Some(2) };
    let backend = choice.open(&FetchOptions::default(), &mut ()).unwrap();
    let expected: Vec<_> = references().into_iter().cycle().take(9).map(|it| it.1).collect();
    for (number, change) in CHANGES.into_iter().enumerate() {
        let mut options = small();
        change(&mut options);
        assert_eq!(continued(backend.as_ref(), options), expected, "change {number}");
    }
}

#[test]
fn greedy_tokens_of_a_precision_are_the_same_however_the_engine_is_set_up() {
    let choice = BackendChoice::Cpu { threads: Some(2) };
    let backend = choice.open(&FetchOptions::default(), &mut ()).unwrap();
    for (compute, kv_format) in [
        (Compute::Int8, Some(KvFormat::F32)),
        (Compute::Int8, None),
        (Compute::Bf16, None),
        (Compute::Exact, Some(KvFormat::Int8)),
        (Compute::Exact, Some(KvFormat::F16)),
    ] {
        let mut plain = small().compute(compute).kv_format(kv_format);
        plain.max_running_requests = Some(1);
        let expected = continued(backend.as_ref(), plain);
        for (number, change) in CHANGES.into_iter().enumerate() {
            let mut options = small().compute(compute).kv_format(kv_format);
            change(&mut options);
            let tokens = continued(backend.as_ref(), options);
            assert_eq!(tokens, expected, "{compute} {kv_format:?}, change {number}");
        }
    }
}

#[test]
fn kv_is_bf16_where_products_are_not_exact_unless_told_otherwise() {
    let choice = BackendChoice::Cpu { threads: Some(1) };
    let backend = choice.open(&FetchOptions::default(), &mut ()).unwrap();
    let format = |compute, kv_format: Option<KvFormat>| {
        let options = small().compute(compute).kv_format(kv_format);
        start(backend.as_ref(), options).limits().kv_format
    };
    assert_eq!(format(Compute::Exact, None), KvFormat::F32);
    assert_eq!(format(Compute::Int8, None), KvFormat::Bf16);
    assert_eq!(format(Compute::Int8, Some(KvFormat::F32)), KvFormat::F32);
}

#[test]
fn kv_is_f32_where_most_weights_have_no_kernel_in_the_precision() {
    let choice = BackendChoice::Cpu { threads: Some(1) };
    let backend = choice.open(&FetchOptions::default(), &mut ()).unwrap();
    let format = |file: &str| {
        let model = open_model(&model().with_file_name("../tiny-gguf").join(file)).unwrap();
        let builder = Engine::builder().options(small().compute(Compute::Int8));
        builder.estimate(&model, backend.as_ref()).unwrap().limits.kv_format
    };
    // Nearly all in MXFP4, and all in formats of int8.
    assert_eq!(format("gpt-oss.gguf"), KvFormat::F32);
    assert_eq!(format("llama-quantized.gguf"), KvFormat::Bf16);
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
