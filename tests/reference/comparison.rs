//! Compares models with what transformers computed: log probabilities and greedy tokens.

use engine_core::Token;
use engine_core::backend::Backend;
use engine_core::model::{LoadedModel, Program};
use engine_core::weights::Weights;

use crate::driver::Sequence;
use crate::fixtures::{Expected, ExpectedPrompt, log_softmax};

/// How many times the reference's own noise a log probability may be off. The noise is that of
/// one order of summation; ours is another.
const NOISE_FACTOR: f32 = 6.0;

/// Compares an opened model on each backend with what transformers computed.
pub(crate) fn check_model(
    backends: &[Box<dyn Backend>],
    name: &str,
    model: &LoadedModel,
    expected: &Expected,
) {
    // The context decides on the frequencies of LongRoPE, as the length does in transformers.
    let program = |context| model.program_for(context).unwrap();
    check(backends, name, program, model.weights.as_ref(), expected);
}

/// Compares a model on each backend with what transformers computed. `program` builds it for a
/// number of tokens.
pub(crate) fn check(
    backends: &[Box<dyn Backend>],
    name: &str,
    program: impl Fn(usize) -> Program,
    weights: &dyn Weights,
    expected: &Expected,
) {
    for backend in backends {
        let mut worst = 0f32;
        for prompt in &expected.prompts {
            let generated = prompt.greedy.as_ref().map_or(0, |greedy| greedy.token_ids.len());
            let program = program(prompt.token_ids.len() + generated);
            let mut sequence = Sequence::new(backend.as_ref(), &program, weights);
            let whole = sequence.log_probabilities(&prompt.token_ids);
            worst = larger(worst, max_difference(&whole, &prompt.last_logits));
            if let Some(expected) = &prompt.greedy {
                let tokens = go_on(&mut sequence, &whole, expected.token_ids.len());
                let backend = backend.capabilities().description;
                assert_eq!(tokens, expected.token_ids, "{name}, {backend}, {}", prompt.name);
            }
            if let Some(all_logits) = &prompt.all_logits {
                let sequence = Sequence::new(backend.as_ref(), &program, weights);
                worst = larger(worst, error_token_by_token(sequence, prompt, all_logits));
            }
        }
        let backend = backend.capabilities().description;
        let allowed = NOISE_FACTOR * expected.noise;
        println!("{name}, {backend}: log probabilities within {worst:.1e} ({allowed:.1e} allowed)");
        assert!(worst <= allowed, "{name}, {backend}: {worst:e} is more than {allowed:e}");
    }
}

/// Greedy tokens after a prompt whose `log_probabilities` were just computed.
fn go_on(sequence: &mut Sequence, log_probabilities: &[f32], count: usize) -> Vec<Token> {
    let likeliest = (0..).zip(log_probabilities).max_by(|(_, a), (_, b)| a.total_cmp(b));
    let first = likeliest.expect("a vocabulary").0;
    let mut tokens = vec![first, sequence.greedy(&[first])];
    while tokens.len() < count {
        tokens.push(sequence.next_greedy());
    }
    tokens
}

/// Largest difference of a log probability after each token of a prompt.
fn error_token_by_token(
    mut sequence: Sequence,
    prompt: &ExpectedPrompt,
    all_logits: &[Vec<f32>],
) -> f32 {
    assert_eq!(all_logits.len(), prompt.token_ids.len());
    let steps = prompt.token_ids.iter().zip(all_logits);
    let error = |(&token, logits): (&Token, &Vec<f32>)| {
        max_difference(&sequence.log_probabilities(&[token]), logits)
    };
    steps.map(error).fold(0.0, larger)
}

fn max_difference(log_probabilities: &[f32], logits: &[f32]) -> f32 {
    assert_eq!(log_probabilities.len(), logits.len());
    let pairs = log_probabilities.iter().zip(log_softmax(logits));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, larger)
}

/// The larger one, where NaN is larger than any.
fn larger(worst: f32, x: f32) -> f32 {
    if x <= worst { worst } else { x }
}
