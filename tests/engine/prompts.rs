//! What is wanted of prompts: log probabilities of their tokens, and vectors.

use engine_core::Token;
use engine_core::backend::PoolKind;
use engine_core::engine::{EngineOptions, Shutdown};
use engine_core::error::{GenerateError, SubmitError};
use engine_core::request::{EmbedRequest, FinishReason};
use testkit::shadow::model::{Chain, raw_logits};

use crate::submission::block_on;
use crate::support::*;

fn options(overlap: bool, retract_every: Option<u64>) -> EngineOptions {
    let mut options = small();
    (options.overlap, options.retract_every) = (overlap, retract_every);
    // With overlap, more fits into a chunk than is scored in a step.
    options.chunked_prefill_size = Some(if overlap { 200 } else { 32 });
    options
}

/// Overlap, retraction: nothing of that changes an answer.
const SET_UPS: [(bool, Option<u64>); 4] =
    [(true, None), (false, None), (true, Some(3)), (false, Some(2))];

/// The log probability of each token but the first, by the shadow's own model.
fn scores(tokens: &[Token]) -> Vec<f32> {
    let mut logits = Vec::new();
    let score = |end: usize| {
        raw_logits(Chain::of(&tokens[..end]), VOCABULARY, &mut logits);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        (f64::from(logits[tokens[end] as usize]) - sum.ln()) as f32
    };
    (1..tokens.len()).map(score).collect()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1e-3), "{found} {expected}");
    }
}

#[test]
fn prompt_log_probabilities_are_the_models_cached_or_not() {
    for (overlap, retract_every) in SET_UPS {
        let engine = Shadowed::new(options(overlap, retract_every));
        // Longer than a chunk, and than what is scored in a step.
        let lengths = [1, 2, 15, 16, 33, 64, 65, 150];
        for _ in 0..2 {
            let generations: Vec<_> = lengths
                .iter()
                .map(|&length| {
                    let mut request = request(&prompt(length, length), 5);
                    request.sampling.prompt_logprobs = Some(2);
                    engine.submit(request).unwrap()
                })
                .collect();
            for (&length, generation) in lengths.iter().zip(generations) {
                let tokens = prompt(length, length);
                let output = generation.wait().unwrap().remove(0);
                assert_eq!(output.tokens, foretold(&tokens, 5));
                let found: Vec<f32> = output.prompt_logprobs.iter().map(|l| l.logprob).collect();
                assert_close(&found, &scores(&tokens));
                assert!(output.prompt_logprobs.iter().all(|logprobs| logprobs.top.len() == 2));
                assert_eq!(output.usage.cached_tokens, 0, "all of it was to be computed");
            }
        }
        // What was computed for it is cached for others.
        let output = engine.generate(request(&prompt(150, 150), 1)).unwrap().remove(0);
        assert!(output.usage.cached_tokens >= 140, "{:?}", output.usage);
    }
}

#[test]
fn a_request_without_tokens_ends_once_its_prompt_is_scored() {
    for (overlap, retract_every) in SET_UPS {
        let engine = Shadowed::new(options(overlap, retract_every));
        for length in [2, 40, 512] {
            let tokens = prompt(length, length);
            let mut request = request(&tokens, 0);
            request.sampling.prompt_logprobs = Some(0);
            let output = engine.generate(request).unwrap().remove(0);
            assert_eq!((output.tokens.len(), output.reason), (0, FinishReason::Length));
            let found: Vec<f32> = output.prompt_logprobs.iter().map(|l| l.logprob).collect();
            assert_close(&found, &scores(&tokens));
        }
        assert_all_is_given_back(&engine);
        let error = engine.submit(request(&[1], 0)).unwrap_err();
        assert!(matches!(error, SubmitError::Params(_)), "{error}");
    }
}

#[test]
fn only_the_first_of_several_samples_scores_their_prompt() {
    let engine = Shadowed::new(small());
    let mut request = request(&prompt(1, 40), 5);
    (request.sampling.n, request.sampling.prompt_logprobs) = (3, Some(1));
    let outputs = engine.generate(request).unwrap();
    assert_close(
        &outputs[0].prompt_logprobs.iter().map(|l| l.logprob).collect::<Vec<_>>(),
        &scores(&prompt(1, 40)),
    );
    assert!(outputs[1..].iter().all(|output| output.prompt_logprobs.is_empty()));
}

/// The shadow's hidden states of a prompt, pooled.
fn vector(tokens: &[Token], pooling: PoolKind) -> f32 {
    let hidden = |end: usize| f64::from(Chain::of(&tokens[..end]).hidden());
    match pooling {
        PoolKind::Last => hidden(tokens.len()) as f32,
        PoolKind::Mean => {
            ((1..=tokens.len()).map(hidden).sum::<f64>() / tokens.len() as f64) as f32
        }
    }
}

#[test]
fn embeddings_are_the_models_and_share_the_cache() {
    for (overlap, retract_every) in SET_UPS {
        let engine = Shadowed::new(options(overlap, retract_every));
        for pooling in [PoolKind::Last, PoolKind::Mean] {
            for length in [1, 2, 16, 33, 64, 65, 150, 512] {
                let tokens = prompt(length, length);
                let request = EmbedRequest::new(tokens.clone()).pooling(pooling).normalize(false);
                let embedding = engine.embed(request.clone()).unwrap();
                assert_close(&embedding.vector, &[vector(&tokens, pooling)]);
                assert_eq!(embedding.usage.prompt_tokens, length);
                let again = block_on(engine.embed_async(request)).unwrap();
                assert_eq!(again.vector, embedding.vector, "{pooling:?} {length}");
                let cached = if pooling == PoolKind::Last { (length - 1) / 4 * 4 } else { 0 };
                assert_eq!(again.usage.cached_tokens, cached);
                let unit = engine.embed(EmbedRequest::new(tokens).pooling(pooling)).unwrap();
                assert_close(&unit.vector, &[1.0]);
            }
        }
        // Beside generations, which find the prefixes.
        let generations: Vec<_> =
            (0..4).map(|n| engine.submit(request(&prompt(n, 60), 30)).unwrap()).collect();
        for number in 0..8 {
            let tokens = prompt(number, 60);
            let request = EmbedRequest::new(tokens.clone()).pooling(PoolKind::Mean);
            let embedding = engine.embed(request.normalize(false)).unwrap();
            assert_close(&embedding.vector, &[vector(&tokens, PoolKind::Mean)]);
        }
        for (number, generation) in (0..).zip(generations) {
            assert_eq!(generation.wait().unwrap()[0].tokens, foretold(&prompt(number, 60), 30));
        }
        assert_all_is_given_back(&engine);
    }
}

#[test]
fn an_embedding_of_nothing_or_too_much_is_refused() {
    let engine = Shadowed::new(small());
    for tokens in [vec![], prompt(1, 513), vec![VOCABULARY]] {
        let error = engine.embed(EmbedRequest::new(tokens)).unwrap_err();
        assert!(matches!(error, GenerateError::Submit(_)), "{error}");
    }
    engine.shutdown(Shutdown::Now).unwrap();
    let error = engine.embed(EmbedRequest::new("text")).unwrap_err();
    assert!(matches!(error, GenerateError::Submit(SubmitError::ShuttingDown)), "{error}");
}

fn assert_all_is_given_back(engine: &engine_core::engine::Engine) {
    wait_until_idle(engine);
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.pages.owned_by_sequences, snapshot.pages.cached_locked), (0, 0));
}
