//! Which answers come back, in which order, and what is in them.

use engine_core::backend::SlotSampling;

use super::check::Check;
use super::failure::{Failure, expect_equal};
use super::models::{Model, prompt};
use super::session::{Answer, RowPlan, Setup};
use super::slots::with_logprobs;

/// Several outputs of one row, some of them of the same token, beside rows with one and with
/// none.
pub fn rows_answer_several_outputs_in_order(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("several outputs", &Model::llama()?, &Setup::new(), |session| {
        (0..3).for_each(|slot| session.open(slot, with_logprobs()));
        let answers = session.run(&[
            RowPlan::known(0, &prompt(12, 1)).score(2).score_of(2, 40, u8::MAX).score(7).sample(),
            RowPlan::known(1, &prompt(5, 2)),
            RowPlan::known(2, &prompt(9, 3)).score_all().sample(),
        ])?;
        let outputs: Vec<u32> = answers.iter().map(|answer| answer.output).collect();
        expect_equal("answered outputs", &(0..14).collect(), &outputs)?;
        Ok(answers)
    })
}

/// As many of the likeliest tokens as each output asks for, and no log probability unasked.
pub fn likeliest_tokens_are_as_many_as_asked_for(check: &Check<'_>) -> Result<(), Failure> {
    let mut session = check.session(&Model::llama()?, &Setup::new())?;
    let tokens = prompt(10, 4);
    for (slot, logprobs) in [(0, None), (1, Some(0)), (2, Some(3))] {
        let mut sampling = SlotSampling::greedy();
        sampling.logprobs = logprobs;
        session.open(slot, sampling);
    }
    let answers = session.run(&[
        RowPlan::known(0, &tokens).score_of(9, 11, 0).score_of(9, 11, 5).score_last().sample(),
        RowPlan::known(1, &tokens).sample(),
        RowPlan::known(2, &tokens).sample(),
    ])?;
    let [none, five, all, unasked, only_own, three] = &answers[..] else {
        return Err(Failure::wrong("number of answers", 6, answers.len()));
    };
    let lengths: Vec<usize> = answers.iter().map(|answer| answer.top.len()).collect();
    expect_equal("likeliest tokens", &vec![0, 5, all.top.len(), 0, 0, 3], &lengths)?;
    expect_equal("an unasked log probability is NaN", &true, &unasked.logprob.is_nan())?;

    // All rows hold the same tokens, so each list is the beginning of the longest.
    let by_token = all.by_token();
    let tolerance = check.tolerance();
    let near = |a: f32, b: f32| (a - b).abs() <= tolerance;
    for (what, answer) in [("top 5", five), ("top 3", three)] {
        let pairs = answer.top.iter().zip(&all.top);
        let agrees = pairs.clone().all(|(a, b)| near(a.1, b.1))
            && answer.top.iter().all(|&(token, logprob)| near(logprob, by_token[token as usize]));
        if !agrees {
            return Err(Failure::wrong(what, &all.top, &answer.top));
        }
    }
    for answer in [none, five, only_own, three] {
        let expected = by_token[answer.token as usize];
        if !near(answer.logprob, expected) {
            return Err(Failure::wrong("log probability", expected, answer.logprob));
        }
    }
    expect_equal("scored tokens", &[11, 11], &[none.token, five.token])?;
    expect_equal("greedy tokens", &[all.top[0].0; 3], &[unasked, only_own, three].map(token))
}

/// Log probabilities of a distribution: together their exponentials are 1.
pub fn log_probabilities_are_normalized(check: &Check<'_>) -> Result<(), Failure> {
    let mut session = check.session(&Model::llama()?, &Setup::new())?;
    session.open(0, SlotSampling::greedy());
    for answer in session.run(&[RowPlan::known(0, &prompt(20, 5)).score_all()])? {
        let sum: f64 = answer.by_token().iter().map(|&x| f64::from(x).exp()).sum();
        // Normalization is the sampler's, in f32 or better, whatever the model computes in.
        if (sum - 1.0).abs() > 1e-4 {
            return Err(Failure::wrong("sum of probabilities", 1.0, sum));
        }
    }
    Ok(())
}

fn token(answer: &Answer) -> u32 {
    answer.token
}
