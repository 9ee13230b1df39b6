//! Outputs of more than one token: verified drafts, scores of runs, hidden states, pooled vectors.

use engine_core::Token;
use engine_core::backend::{Mask, PoolKind, Pooling, SlotSampling, Want};

use super::check::Check;
use super::failure::{Failure, expect_equal};
use super::models::{Model, VOCAB_SIZE, prompt};
use super::session::{Answer, RowPlan, Session, Setup};
use super::slots::{confident_prompt, with_logprobs};

/// Tokens of the longest draft.
const DRAFT: usize = 4;

/// Whatever of a draft holds, the answer is what plain steps sample, and so is the step after.
pub fn a_verified_draft_gives_the_tokens_of_plain_steps(check: &Check<'_>) -> Result<(), Failure> {
    let model = Model::llama()?;
    let (prompt, chain) = confident_prompt(check, &model)?;
    let proposals = (chain - 2).min(DRAFT);
    verify_drafts(check, &model, &prompt, proposals, with_logprobs())
}

/// With noise, filters, bias, a minimum length and penalties: each position is sampled with its own
/// noise, and after the tokens that were accepted before it.
pub fn a_verified_draft_is_sampled_as_plain_steps_are(check: &Check<'_>) -> Result<(), Failure> {
    check.part("a_verified_draft_is_sampled_as_plain_steps_are", || {
        // Two tokens may be as good as each other but for rounding, where a step's shape rounds.
        check.require_batch_invariance()?;
        let prompt = prompt(11, 31);
        let set: [fn(&mut SlotSampling); 4] = [
            |_| {},
            |sampling| (sampling.top_k, sampling.top_p) = (20, 0.9),
            |sampling| {
                sampling.logit_bias = [(3, 4.0), (40, -2.0)].into();
                sampling.suppress = [0, 3, 9].into();
                sampling.suppress_before = 13;
            },
            |sampling| {
                sampling.repetition_penalty = 1.3;
                sampling.frequency_penalty = 0.7;
                sampling.presence_penalty = 0.4;
            },
        ];
        for (seed, set) in (1..).zip(set) {
            let mut sampling = with_logprobs();
            (sampling.temperature, sampling.seed) = (1.0, seed);
            set(&mut sampling);
            if sampling.has_penalties() {
                sampling.history = prompt[..].into();
                sampling.history_prompt = prompt.len() as u32;
            }
            verify_drafts(check, &Model::llama()?, &prompt, DRAFT, sampling)?;
        }
        Ok(())
    })
}

/// Verifies drafts of `proposals` tokens whose first 0, 1, .. hold, and goes on after each.
fn verify_drafts(
    check: &Check<'_>,
    model: &Model,
    prompt: &[Token],
    proposals: usize,
    sampling: SlotSampling,
) -> Result<(), Failure> {
    let setup = Setup::new();
    let mut plain = check.session(model, &setup)?;
    plain.open(2, sampling.clone());
    let mut alone = plain.run(&[RowPlan::known(2, prompt).sample()])?;
    for _ in 0..=proposals {
        alone.extend(plain.run(&[RowPlan::produced(2)])?);
    }
    let tokens: Vec<Token> = alone.iter().map(|answer| answer.token).collect();
    for held in 0..=proposals {
        let mut session = check.session(model, &setup)?;
        session.open(2, sampling.clone());
        session.open(5, with_logprobs());
        let first = session.launch(&[RowPlan::known(2, prompt).sample()])?;
        let mut draft = tokens[1..=proposals].to_vec();
        if let Some(token) = draft.get_mut(held) {
            *token = (*token + 1) % VOCAB_SIZE;
        }
        // Launched before the token that it goes on from is known, beside another row.
        let verified = session.launch(&[
            RowPlan::produced_and(2, &draft).verify(0),
            RowPlan::known(5, &prompt[..3]).sample(),
        ])?;
        let mut found = session.wait(first)?;
        let mut answers = session.wait(verified)?;
        answers.retain(|answer| answer.output == 0);
        expect_equal(
            &format!("tokens with {held} proposals that hold"),
            &(held + 1),
            &answers.len(),
        )?;
        found.extend(answers);
        session.rewind(2, (prompt.len() + 1 + held) as u32);
        if held < proposals {
            found.extend(session.run(&[RowPlan::produced(2)])?);
        }
        renumber(&mut found);
        let mut expected = alone[..found.len()].to_vec();
        renumber(&mut expected);
        check.same_answers(&format!("a draft of which {held} hold"), &expected, &found)?;
    }
    Ok(())
}

fn renumber(answers: &mut [Answer]) {
    answers.iter_mut().for_each(|answer| answer.output = 0);
}

/// One output scores a run of tokens as single outputs would.
pub fn a_run_of_tokens_is_scored_at_once(check: &Check<'_>) -> Result<(), Failure> {
    let (model, tokens) = (Model::llama()?, prompt(24, 8));
    let script = |rows: fn(&[Token]) -> Vec<RowPlan>| {
        move |session: &mut Session, tokens: &[Token]| {
            (0..2).for_each(|slot| session.open(slot, with_logprobs()));
            session.run(&rows(tokens))
        }
    };
    let whole = script(|tokens| {
        let plan = RowPlan::known(0, tokens).score_run(3..15, &tokens[4..16], u8::MAX);
        vec![plan, RowPlan::known(1, &tokens[..5]).sample()]
    });
    let single = script(|tokens| {
        let plan = RowPlan::known(0, tokens);
        let plan = (3..15).fold(plan, |plan, at| plan.score_of(at, tokens[at + 1], u8::MAX));
        vec![plan, RowPlan::known(1, &tokens[..5]).sample()]
    });
    let mut expected = single(&mut check.reference(&model, &Setup::new())?, &tokens)?;
    let mut found = whole(&mut check.session(&model, &Setup::new())?, &tokens)?;
    expect_equal("the output of the sample", &Some(1), &found.last().map(|last| last.output))?;
    renumber(&mut expected);
    renumber(&mut found);
    check.same_answers("scores of a run", &expected, &found)
}

/// Hidden states of a run, and pooled vectors, beside rows that sample.
pub fn hidden_states_and_pooled_vectors_agree(check: &Check<'_>) -> Result<(), Failure> {
    let setup = Setup { hidden: true, ..Setup::new() };
    let pool = |kind, normalize| Want::Pool(Pooling { kind, normalize });
    check.agree("vectors", &Model::llama()?, &setup, |session| {
        (0..4).for_each(|slot| session.open(slot, with_logprobs()));
        let tokens = prompt(20, 9);
        let mut answers = session.run(&[
            RowPlan::known(0, &tokens).want(17..20, Want::Hidden),
            RowPlan::known(1, &tokens[..13]).want(0..13, pool(PoolKind::Mean, false)).sample(),
            RowPlan::known(2, &tokens[..7]).want(6..7, pool(PoolKind::Last, true)),
        ])?;
        answers.extend(session.run(&[
            RowPlan::produced(1),
            RowPlan::known(2, &tokens[7..]).want(0..13, pool(PoolKind::Mean, true)),
            RowPlan::known(3, &tokens).score_last(),
        ])?);
        let lengths: Vec<usize> = answers.iter().map(|answer| answer.vector.len()).collect();
        expect_equal("elements of the vectors", &vec![3 * 64, 64, 0, 64, 0, 64, 0], &lengths)?;
        Ok(answers)
    })
}

/// Only the outputs that wait for masks wait: the next tokens of the other rows are there for the
/// next step.
pub fn one_deferred_output_does_not_defer_the_others(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("a step of both kinds", &Model::llama()?, &Setup::new(), |session| {
        (0..3).for_each(|slot| session.open(slot, with_logprobs()));
        let rows: Vec<RowPlan> = (0..3)
            .map(|slot| RowPlan::known(slot, &prompt(9, 40 + u64::from(slot))).sample())
            .collect();
        let mixed = session.launch_deferring(&rows, &[1])?;
        // Goes on from the rows that did not wait.
        let next = session.launch(&[RowPlan::produced(0), RowPlan::produced(2)])?;
        let allowed = [0, 0, 1 << 5];
        session.sample(&mixed, &[Mask { output: 1, index: 0, allowed: &allowed }])?;
        let mut answers = session.wait(mixed)?;
        expect_equal("the masked token", &69, &answers[1].token)?;
        answers.extend(session.wait(next)?);
        answers.extend(session.run(&[RowPlan::produced(1)])?);
        Ok(answers)
    })
}

/// Each token of a draft has a mask of its own.
pub fn a_draft_is_verified_under_a_mask_for_each_token(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("a masked draft", &Model::llama()?, &Setup::new(), |session| {
        session.open(0, with_logprobs());
        let tokens = [&prompt(6, 44)[..], &[33, 34, 35]].concat();
        let deferred = session.launch_deferred(&[RowPlan::known(0, &tokens).verify(5)])?;
        let only = |token: u32| {
            let mut words = [0u32; 2];
            words[token as usize / 32] = 1 << (token % 32);
            words
        };
        let masks: Vec<_> = [33, 34, 50].into_iter().map(only).collect();
        let entries: Vec<_> =
            (0..).zip(&masks).map(|(index, allowed)| Mask { output: 0, index, allowed }).collect();
        session.sample(&deferred, &entries)?;
        let mut answers = session.wait(deferred)?;
        let found: Vec<Token> = answers.iter().map(|answer| answer.token).collect();
        expect_equal("tokens under masks", &vec![33, 34, 50], &found)?;
        session.rewind(0, tokens.len() as u32 - 1);
        answers.extend(session.run(&[RowPlan::produced(0)])?);
        Ok(answers)
    })
}
