//! What may be wanted of a row besides one token: verified chains, scores, vectors.

mod support;

use std::sync::Arc;

use engine_core::{
    Token,
    backend::{Mask, Masks, PoolKind, Pooling, Sampled, SlotSampling, StepError, StepResult},
    model::{LoadedModel, Program, open_model},
    sample,
};
use support::{Ask, Harness, RowPlan, Setup, fixtures};
use testkit::random::Random;

const PROMPT: [Token; 21] =
    [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71];
/// Tokens of an answer.
const ANSWER: usize = 48;
/// Room for them, and for proposals beyond.
const LENGTH: u32 = 128;

fn model() -> (LoadedModel, Program) {
    let model = open_model(&fixtures().join("tiny/llama-tied")).unwrap();
    let program = model.program().unwrap();
    (model, program)
}

fn harness() -> (Harness, Program) {
    let (model, program) = model();
    (Harness::new(&program, &*model.weights, Setup::default()), program)
}

/// A token with the bits of its log probability, and the likeliest with theirs.
type Exact = (Token, u32, Vec<(Token, u32)>);

fn exact(result: &StepResult, sampled: &Sampled) -> Exact {
    let top = result.top[sampled.top.range()].iter();
    let top = top.map(|(token, logprob)| (*token, logprob.to_bits())).collect();
    (sampled.token, sampled.logprob.to_bits(), top)
}

/// Answers of an output.
fn of_output(result: &StepResult, output: u32) -> Vec<Exact> {
    let answer = result.output(output).unwrap();
    result.tokens_of(answer).iter().map(|sampled| exact(result, sampled)).collect()
}

/// One of each that changes what is sampled.
fn samplings() -> Vec<SlotSampling> {
    let sampled =
        |seed| SlotSampling { temperature: 0.9, seed, logprobs: Some(3), ..SlotSampling::greedy() };
    let prompt = |sampling| SlotSampling {
        history: Arc::from(PROMPT),
        history_prompt: PROMPT.len() as u32,
        ..sampling
    };
    vec![
        SlotSampling::greedy(),
        SlotSampling { logprobs: Some(2), ..SlotSampling::greedy() },
        sampled(1),
        SlotSampling { top_k: 5, ..sampled(2) },
        SlotSampling { top_p: 0.7, min_p: 0.02, sample_index: 3, ..sampled(3) },
        prompt(SlotSampling { repetition_penalty: 1.4, ..SlotSampling::greedy() }),
        prompt(SlotSampling { frequency_penalty: 0.8, presence_penalty: 0.5, ..sampled(4) }),
        SlotSampling { logit_bias: Arc::from([(7, 6.0), (9, 6.0), (11, -9.0)]), ..sampled(5) },
        // Tokens that win without it may not end the answer before its tenth token.
        SlotSampling {
            logit_bias: Arc::from([(7, 40.0)]),
            suppress: Arc::from([7]),
            suppress_before: PROMPT.len() as u32 + 10,
            ..SlotSampling::greedy()
        },
    ]
}

/// The answers of plain steps, by slot.
fn plain(samplings: &[SlotSampling]) -> Vec<Vec<Exact>> {
    let (mut harness, _) = harness();
    let slots = 0..samplings.len() as u32;
    for (slot, sampling) in slots.clone().zip(samplings) {
        harness.open(slot, LENGTH, sampling.clone());
    }
    let mut answers = vec![Vec::new(); samplings.len()];
    for step in 0..ANSWER {
        let plan = |slot| match step {
            0 => RowPlan::sampled(slot, &PROMPT),
            _ => RowPlan::produced(slot),
        };
        let result = harness.run(&slots.clone().map(plan).collect::<Vec<_>>());
        for slot in slots.clone() {
            answers[slot as usize].extend(of_output(&result, slot));
        }
    }
    answers
}

/// What really follows, for some tokens, and then something else.
fn proposals(truth: &[Exact], random: &mut Random) -> Vec<Token> {
    let right = random.below(6);
    let mut proposed: Vec<Token> = truth.iter().take(right).map(|token| token.0).collect();
    let wrong = random.below(3);
    proposed.extend((0..wrong).map(|_| random.below(90) as Token));
    proposed
}

#[test]
fn verified_chains_answer_what_plain_steps_sample() {
    let samplings = samplings();
    let expected = plain(&samplings);
    let distinct: std::collections::HashSet<Token> =
        expected.iter().flatten().map(|token| token.0).collect();
    assert!(distinct.len() > 20, "the answers are too plain to show anything");
    let (mut harness, _) = harness();
    let mut random = Random::new(17);
    for (slot, sampling) in (0..).zip(&samplings) {
        harness.open(slot, LENGTH, sampling.clone());
    }
    let mut answers: Vec<Vec<Exact>> = vec![Vec::new(); samplings.len()];
    let (mut accepted, mut refused) = (0, 0);
    while answers.iter().any(|answer| answer.len() < ANSWER) {
        let mut plans = Vec::new();
        for (slot, answer) in (0..).zip(&answers) {
            let truth = &expected[slot as usize];
            if answer.is_empty() {
                plans.push(RowPlan::sampled(slot, &PROMPT));
            } else if answer.len() < ANSWER {
                let proposed = proposals(&truth[answer.len()..], &mut random);
                plans.push(match random.chance(50) {
                    true => RowPlan::verified(slot, &proposed),
                    // The host knows the token by now, and may say so.
                    false => {
                        let tokens = [&[answer[answer.len() - 1].0], &proposed[..]].concat();
                        RowPlan::known(slot, &tokens, vec![(0..tokens.len(), Ask::Verify)])
                    }
                });
            }
        }
        let before: Vec<u32> = plans.iter().map(|plan| harness.position(plan.slot)).collect();
        let result = harness.run(&plans);
        for (output, (plan, before)) in (0..).zip(plans.iter().zip(before)) {
            let tokens = of_output(&result, output);
            if before > 0 {
                accepted += tokens.len() - 1;
                refused += plan.tokens.len() - tokens.len();
                harness.set_position(plan.slot, before + tokens.len() as u32);
            }
            answers[plan.slot as usize].extend(tokens);
        }
    }
    assert!(accepted > 100 && refused > 50, "{accepted} accepted, {refused} refused");
    for ((answer, expected), sampling) in answers.iter().zip(&expected).zip(&samplings) {
        assert_eq!(answer[..ANSWER], expected[..], "{sampling:?}");
    }
}

#[test]
fn masks_of_a_chain_are_told_apart_by_their_place() {
    let expected: Vec<Token> =
        plain(&[SlotSampling::greedy()])[0].iter().map(|token| token.0).collect();
    let (mut harness, program) = harness();
    let mut verify = |allowed_at_1: &[u32]| {
        harness.open(0, LENGTH, SlotSampling::greedy());
        harness.run(&[RowPlan::sampled(0, &PROMPT)]);
        let plan = RowPlan::verified(0, &expected[1..4]).deferred();
        let ticket = harness.launch(&[plan]).unwrap();
        let masks = [Mask { output: 0, index: 1, allowed: allowed_at_1 }];
        harness.executor.sample(&ticket, &Masks { entries: &masks }).unwrap();
        let (result, outcome) = harness.wait(ticket);
        outcome.unwrap();
        of_output(&result, 0).into_iter().map(|token| token.0).collect::<Vec<Token>>()
    };
    let mut words = vec![u32::MAX; (program.vocab_size() as usize).div_ceil(32)];
    assert_eq!(verify(&words), expected[1..5]);
    let forbidden = expected[2];
    words[forbidden as usize / 32] &= !(1 << (forbidden % 32));
    let tokens = verify(&words);
    assert_eq!((tokens.len(), tokens[0]), (2, expected[1]));
    assert_ne!(tokens[1], forbidden);
}

#[test]
fn outputs_that_wait_for_masks_put_off_no_others() {
    let expected: Vec<Token> =
        plain(&[SlotSampling::greedy()])[0].iter().map(|token| token.0).collect();
    let (mut harness, program) = harness();
    for slot in 0..3 {
        harness.open(slot, LENGTH, SlotSampling::greedy());
    }
    let waiting = RowPlan::sampled(1, &PROMPT).deferred();
    let scored = vec![(0..20, Ask::Score(PROMPT[1..].to_vec(), 1)), (20..21, Ask::Sample)];
    let plans =
        [RowPlan::sampled(0, &PROMPT), waiting, RowPlan::known(2, &PROMPT, scored).deferred()];
    let first = harness.launch(&plans).unwrap();
    // Slot 0 goes on although the others wait.
    let second = harness.launch(&[RowPlan::produced(0)]).unwrap();
    let mut allowed = vec![u32::MAX; (program.vocab_size() as usize).div_ceil(32)];
    allowed[expected[0] as usize / 32] &= !(1 << (expected[0] % 32));
    let masks = [Mask { output: 1, index: 0, allowed: &allowed }];
    harness.executor.sample(&first, &Masks { entries: &masks }).unwrap();
    let (result, outcome) = harness.wait(first);
    outcome.unwrap();
    let outputs: Vec<u32> = result.outputs.iter().map(|it| it.output).collect();
    assert_eq!(outputs, [0, 1, 2, 3]);
    assert_eq!(of_output(&result, 0)[0].0, expected[0]);
    assert_ne!(of_output(&result, 1)[0].0, expected[0]);
    assert_eq!(of_output(&result, 2).len(), 20);
    assert_eq!(of_output(&result, 3)[0].0, expected[0]);
    let (result, outcome) = harness.wait(second);
    outcome.unwrap();
    assert_eq!(of_output(&result, 0)[0].0, expected[1]);
}

#[test]
fn a_step_that_is_given_up_takes_the_next_token_from_deferred_rows_only() {
    let (mut harness, _) = harness();
    for slot in 0..2 {
        harness.open(slot, LENGTH, SlotSampling::greedy());
    }
    let plans = [RowPlan::sampled(0, &PROMPT), RowPlan::sampled(1, &PROMPT).deferred()];
    let ticket = harness.launch(&plans).unwrap();
    let (result, outcome) = harness.wait(ticket);
    assert!(matches!(outcome, Err(StepError::Unsupported { .. })));
    assert_eq!(result, StepResult::default());
    let ticket = harness.launch(&[RowPlan::produced(0), RowPlan::produced(1)]).unwrap();
    let (result, outcome) = harness.wait(ticket);
    assert!(matches!(outcome, Err(StepError::Rows(failures)) if failures[0].row == 1));
    assert_eq!(result.outputs.len(), 1);
}

#[test]
fn a_score_of_a_run_is_that_of_its_tokens_and_changes_nothing() {
    let expected = plain(&[SlotSampling::greedy()]).remove(0);
    let (mut harness, _) = harness();
    for slot in 0..2 {
        harness.open(slot, LENGTH, SlotSampling::greedy());
    }
    let targets = PROMPT[1..].to_vec();
    let mut wants: Vec<_> = vec![(0..20, Ask::Score(targets.clone(), 4))];
    wants.push((20..21, Ask::Sample));
    let mut single: Vec<_> =
        (0..20).map(|token| (token..token + 1, Ask::Score(vec![targets[token]], 4))).collect();
    single.push((20..21, Ask::Sample));
    let plans = [RowPlan::known(0, &PROMPT, wants), RowPlan::known(1, &PROMPT, single)];
    let result = harness.run(&plans);
    let together = of_output(&result, 0);
    let apart: Vec<Exact> = (2..22).flat_map(|output| of_output(&result, output)).collect();
    assert_eq!(together, apart);
    assert!(together.iter().all(|token| token.2.len() == 4));
    for output in [1, 22] {
        assert_eq!(of_output(&result, output)[0].0, expected[0].0);
    }
    let result = harness.run(&[RowPlan::produced(0), RowPlan::produced(1)]);
    assert_eq!(of_output(&result, 0)[0].0, expected[1].0);
}

#[test]
fn vectors_depend_on_neither_batch_nor_chunks_and_pools_are_made_of_hidden_states() {
    let (mut harness, _) = harness();
    for slot in 0..4 {
        harness.open(slot, LENGTH, SlotSampling::greedy());
    }
    let vector = |result: &StepResult, output: u32| {
        result.vector_of(result.output(output).unwrap()).to_vec()
    };
    let all = [
        (PoolKind::Last, false),
        (PoolKind::Last, true),
        (PoolKind::Mean, false),
        (PoolKind::Mean, true),
    ];
    let poolings = all.map(|(kind, normalize)| Pooling { kind, normalize });
    // Alone: no logits are computed at all.
    let mut wants = vec![(0..21, Ask::Hidden)];
    wants.extend(poolings.map(|pooling| (5..21, Ask::Pool(pooling))));
    let alone = harness.run(&[RowPlan::known(0, &PROMPT, wants)]);
    assert!(alone.tokens.is_empty());
    let hidden = vector(&alone, 0);
    let width = hidden.len() / PROMPT.len();
    assert!(width > 1 && hidden.iter().any(|value| *value != hidden[0]));
    for (output, pooling) in (1..).zip(poolings) {
        assert_eq!(vector(&alone, output), sample::pool(pooling, &hidden[5 * width..], width));
    }
    // In chunks, beside rows that sample, and with a sample of its own.
    let first = [RowPlan::known(1, &PROMPT[..8], vec![(2..8, Ask::Hidden)])];
    let first = harness.run(&first);
    let rest = vec![(0..13, Ask::Hidden), (12..13, Ask::Sample), (12..13, Ask::Hidden)];
    let result =
        harness.run(&[RowPlan::sampled(2, &PROMPT), RowPlan::known(1, &PROMPT[8..], rest)]);
    assert_eq!(vector(&first, 0), hidden[2 * width..8 * width]);
    assert_eq!(vector(&result, 1), hidden[8 * width..]);
    assert_eq!(vector(&result, 3), hidden[20 * width..]);
    assert_eq!(of_output(&result, 0), of_output(&result, 2));
}
