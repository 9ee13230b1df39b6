//! Greedy tokens and logits of a real model, recorded from transformers.

use engine_core::Token;
use engine_core::engine::Engine;
use engine_core::request::{Output, Prompt, Request, SamplingParams};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(crate) struct Greedy {
    pub(crate) prompts: Vec<GreedyPrompt>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GreedyPrompt {
    pub(crate) name: String,
    pub(crate) token_ids: Vec<Token>,
    pub(crate) output_ids: Vec<Token>,
    prompt_top: Top,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Top {
    ids: Vec<Token>,
    logits: Vec<f32>,
}

/// Submits all prompts at once and waits for all answers.
pub(crate) fn generate(engine: &Engine, prompts: &[GreedyPrompt], tokens: u32) -> Vec<Output> {
    let running: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let mut sampling = SamplingParams::greedy(tokens);
            sampling.ignore_eos = true;
            sampling.logprobs = Some(SamplingParams::MAX_LOGPROBS);
            let prompt = Prompt::Tokens(prompt.token_ids.clone());
            engine.submit(Request::new(prompt).sampling(sampling)).unwrap()
        })
        .collect();
    running.into_iter().map(|generation| generation.wait().unwrap().remove(0)).collect()
}

/// Largest difference, among the likeliest tokens after the prompt, of a token's distance to the
/// likeliest one.
pub(crate) fn logits_error(prompt: &GreedyPrompt, output: &Output) -> f32 {
    let top = &output.logprobs[0].top;
    assert_eq!(top.len(), usize::from(SamplingParams::MAX_LOGPROBS));
    let expected = prompt.prompt_top.ids.iter().zip(&prompt.prompt_top.logits);
    let mut worst = 0f32;
    let mut compared = 0;
    for (token, logit) in expected {
        if let Some((_, logprob)) = top.iter().find(|(found, _)| found == token) {
            let (expected, found) = (logit - prompt.prompt_top.logits[0], logprob - top[0].1);
            worst = worst.max((expected - found).abs());
            compared += 1;
        }
    }
    // Near-ties at the end of the list may put another token there.
    assert!(compared >= top.len() - 1, "{}: only {compared} in common", prompt.name);
    worst
}
