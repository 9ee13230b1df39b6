//! Compares models with what transformers computed: log probabilities and greedy tokens.

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
            worst = worst.max(logits_error(backend.as_ref(), &program, weights, prompt));
            check_greedy(backend.as_ref(), &program, weights, prompt);
        }
        let backend = backend.capabilities().description;
        let allowed = NOISE_FACTOR * expected.noise;
        println!("{name}, {backend}: log probabilities within {worst:.1e} ({allowed:.1e} allowed)");
        assert!(worst <= allowed, "{name}, {backend}: {worst:e} is more than {allowed:e}");
    }
}

/// Largest difference of a log probability after a prompt, or after each token of it where that
/// was recorded: then the prompt is computed token by token.
fn logits_error(
    backend: &dyn Backend,
    program: &Program,
    weights: &dyn Weights,
    prompt: &ExpectedPrompt,
) -> f32 {
    let whole = Sequence::new(backend, program, weights).log_probabilities(&prompt.token_ids);
    let mut worst = max_difference(&whole, &prompt.last_logits);
    if let Some(all_logits) = &prompt.all_logits {
        assert_eq!(all_logits.len(), prompt.token_ids.len());
        let mut sequence = Sequence::new(backend, program, weights);
        for (&token, logits) in prompt.token_ids.iter().zip(all_logits) {
            worst = worst.max(max_difference(&sequence.log_probabilities(&[token]), logits));
        }
    }
    worst
}

fn check_greedy(
    backend: &dyn Backend,
    program: &Program,
    weights: &dyn Weights,
    prompt: &ExpectedPrompt,
) {
    let Some(expected) = &prompt.greedy else { return };
    let mut sequence = Sequence::new(backend, program, weights);
    let mut tokens = vec![sequence.greedy(&prompt.token_ids)];
    while tokens.len() < expected.token_ids.len() {
        tokens.push(sequence.next_greedy());
    }
    let backend = backend.capabilities().description;
    assert_eq!(tokens, expected.token_ids, "{backend}, prompt {}", prompt.name);
}

fn max_difference(log_probabilities: &[f32], logits: &[f32]) -> f32 {
    assert_eq!(log_probabilities.len(), logits.len());
    let pairs = log_probabilities.iter().zip(log_softmax(logits));
    // NaN must not be lost in a maximum.
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |worst, x| if x <= worst { worst } else { x })
}
