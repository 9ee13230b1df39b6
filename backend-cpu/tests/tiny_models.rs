//! Models with random weights, against logits of the reference implementation.

mod support;

use engine_core::{Token, backend::SlotSampling, model::open_model};
use serde::Deserialize;
use support::{Ask, Harness, RowPlan, Setup, fixtures, greedy, instruction_sets};

const MODELS: [&str; 4] = ["llama-tied", "llama3-rope-untied", "qwen2", "qwen3"];

#[derive(Deserialize)]
struct Expected {
    max_abs_difference_to_float64_products: f32,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    token_ids: Vec<Token>,
    last_logits: Vec<f32>,
    all_logits: Option<Vec<Vec<f32>>>,
    greedy: Greedy,
}

#[derive(Deserialize)]
struct Greedy {
    token_ids: Vec<Token>,
}

fn expected(model: &str) -> Expected {
    let path = fixtures().join("tiny").join(model).join("expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - greatest) - sum.ln()).collect()
}

#[test]
fn log_probabilities_match_the_reference_on_every_path() {
    for name in MODELS {
        let model = open_model(&fixtures().join("tiny").join(name)).unwrap();
        let program = model.program().unwrap();
        let expected = expected(name);
        // Log probabilities are differences of logits, and ours round as well.
        let allowed = f64::from(expected.max_abs_difference_to_float64_products) * 8.0 + 1e-5;
        let mut worst = 0.0f64;
        for set in instruction_sets() {
            let setup = Setup { set: Some(set), ..Setup::default() };
            for prompt in &expected.prompts {
                let mut harness = Harness::new(&program, &*model.weights, setup);
                let tokens = &prompt.token_ids;
                harness.open(0, tokens.len() as u32, SlotSampling::greedy());
                let first = match prompt.all_logits {
                    Some(_) => 0,
                    None => tokens.len() - 1,
                };
                let scored = vec![0; tokens.len() - first];
                let wants = vec![(first..tokens.len(), Ask::Score(scored, 255))];
                let result = harness.run(&[RowPlan::known(0, tokens, wants)]);
                let last = [prompt.last_logits.clone()];
                let references = prompt.all_logits.as_deref().unwrap_or(&last);
                assert_eq!(result.tokens.len(), references.len());
                for (sampled, logits) in result.tokens.iter().zip(references) {
                    let reference = log_softmax(logits);
                    let top = &result.top[sampled.top.range()];
                    assert_eq!(top.len(), reference.len().min(255));
                    for (token, logprob) in top {
                        let error = (f64::from(*logprob) - reference[*token as usize]).abs();
                        worst = worst.max(error);
                        assert!(error <= allowed, "{name} {set:?}: off by {error}");
                    }
                }
            }
        }
        println!("{name}: off by at most {worst:.1e} ({allowed:.1e} allowed)");
    }
}

#[test]
fn greedy_tokens_match_the_reference_in_any_batch_chunk_page_size_and_thread_count() {
    for name in MODELS {
        let model = open_model(&fixtures().join("tiny").join(name)).unwrap();
        let program = model.program().unwrap();
        let expected = expected(name);
        let prompts: Vec<&[Token]> =
            expected.prompts.iter().map(|prompt| prompt.token_ids.as_slice()).collect();
        for set in instruction_sets() {
            for (page_size, chunk, threads) in [(1, 7, 1), (16, usize::MAX, 2), (128, 16, 3)] {
                let setup = Setup { threads, set: Some(set), page_size, chunk, ..Setup::default() };
                let answers = greedy(&program, &*model.weights, &prompts, 16, setup);
                for (answer, prompt) in answers.iter().zip(&expected.prompts) {
                    assert_eq!(*answer, prompt.greedy.token_ids, "{name} {setup:?}");
                }
            }
        }
    }
}
