//! What a batch is made of must not matter: rows, chunks, page sizes.

use engine_core::backend::SlotSampling;

use super::check::Check;
use super::failure::{Failure, expect_equal};
use super::models::{Model, prompt};
use super::session::{Answer, RowPlan, Session, Setup};

/// Decode rows, first chunks, later chunks and whole prompts in the same steps.
pub fn decode_and_prefill_rows_share_a_step(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("mixed steps", &Model::llama()?, &Setup::new(), |session| {
        let prompts: Vec<_> = (0..4).map(|slot| prompt(48, 20 + slot)).collect();
        (0..4).for_each(|slot| session.open(slot, SlotSampling::greedy()));
        let part = |slot: usize, from: usize, to: usize| {
            RowPlan::known(slot as u32, &prompts[slot][from..to])
        };
        let mut answers = session.run(&[part(0, 0, 20).score_last(), part(1, 0, 17)])?;
        answers.extend(session.run(&[
            part(0, 20, 21).score_last(),
            part(1, 17, 40).score_last(),
            part(2, 0, 48).score(3).score_last(),
        ])?);
        answers.extend(session.run(&[
            part(1, 40, 41).score_last(),
            part(0, 21, 22).score_last(),
            part(3, 0, 1).score_last(),
            part(2, 47, 48).score_last(),
        ])?);
        Ok(answers)
    })
}

/// Chunks of one token, of less than a page, of more than one.
pub fn chunks_of_a_prompt_agree_with_the_whole(check: &Check<'_>) -> Result<(), Failure> {
    let (model, setup) = (Model::llama()?, Setup::new());
    let whole = scores(&mut check.reference(&model, &setup)?, 0, &[50])?;
    for chunks in [vec![50], vec![1; 50], vec![7; 7], vec![16, 16, 16, 2], vec![33, 17]] {
        let found = scores(&mut check.session(&model, &setup)?, 0, &chunks)?;
        compare_scores(check, &format!("chunks {chunks:?}"), &whole, &found)?;
    }
    Ok(())
}

/// Pages of one position, of a few, and larger than the sequence.
pub fn page_sizes_agree(check: &Check<'_>) -> Result<(), Failure> {
    let model = Model::llama()?;
    let whole = scores(&mut check.reference(&model, &Setup::new())?, 0, &[50])?;
    let supported = check.backend().capabilities().page_sizes;
    for page_size in [1, 2, 16, 32, 128] {
        check.part(&format!("page_sizes_agree/{page_size}"), || {
            if !supported.contains(&page_size) {
                return Err(Failure::Skipped { what: format!("pages of {page_size}") });
            }
            let setup = Setup::new().page_size(page_size);
            let found = scores(&mut check.session(&model, &setup)?, 0, &[20, 1, 29])?;
            compare_scores(check, &format!("pages of {page_size}"), &whole, &found)
        })?;
    }
    Ok(())
}

/// As many rows, tokens and outputs as the limits allow.
pub fn the_largest_step_runs(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("the largest step", &Model::llama()?, &Setup::new(), |session| {
        let limits = session.executor().limits().clone();
        let (per_row, outputs) = (limits.tokens / limits.rows, limits.outputs / limits.rows);
        let plans: Vec<RowPlan> = (0..limits.rows)
            .map(|slot| {
                let tokens = prompt(per_row as usize, u64::from(slot));
                let plan = RowPlan::known(slot, &tokens);
                (0..outputs as usize).fold(plan, |plan, token| plan.score(token))
            })
            .collect();
        (0..limits.rows).for_each(|slot| session.open(slot, SlotSampling::greedy()));
        session.run(&plans)
    })
}

/// A step whose rows are prefill chunks that aren't the last.
pub fn steps_without_outputs_write_their_kv(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("no outputs", &Model::llama()?, &Setup::new(), |session| {
        let tokens = prompt(40, 3);
        session.open(2, SlotSampling::greedy());
        let answers = session.run(&[RowPlan::known(2, &tokens[..32])])?;
        expect_equal("answers of a step without outputs", &0, &answers.len())?;
        session.run(&[RowPlan::known(2, &tokens[32..]).score_all()])
    })
}

/// The shapes that were prepared are all that traffic needs.
pub fn nothing_is_compiled_after_warm_up(check: &Check<'_>) -> Result<(), Failure> {
    let mut session = check.session(&Model::llama()?, &Setup::new())?;
    let warmed = session.executor().warm_up(&mut ());
    warmed.map_err(|source| Failure::Compile { program: "warm-up".into(), source })?;
    let tokens = prompt(60, 3);
    session.open(0, SlotSampling::greedy());
    session.open(1, SlotSampling::greedy());
    session.run(&[RowPlan::known(0, &tokens[..37]).score_all()])?;
    session.run(&[RowPlan::known(0, &tokens[37..38]).sample(), RowPlan::known(1, &tokens)])?;
    session.run(&[RowPlan::produced(0)])?;
    let compiled = session.executor().compiles_in_traffic();
    expect_equal("shapes compiled in traffic", &0, &compiled)
}

/// A row's bits don't depend on its company, where the backend promises that.
pub fn the_batch_changes_no_bit(check: &Check<'_>) -> Result<(), Failure> {
    check.require_batch_invariance()?;
    let (model, setup) = (Model::llama()?, Setup::new());
    let alone = scores(&mut check.session(&model, &setup)?, 0, &[20, 1, 1, 28])?;
    let mut session = check.session(&model, &setup)?;
    let tokens = prompt(50, 0);
    (0..8).for_each(|slot| session.open(slot, SlotSampling::greedy()));
    let mut together = Vec::new();
    let mut done = 0;
    for (step, len) in [20, 1, 1, 28].into_iter().enumerate() {
        let mut plans = vec![RowPlan::known(0, &tokens[done..done + len]).score_all()];
        let company = 1 + 2 * step as u32;
        plans.extend((0..company.min(7)).map(|slot| {
            RowPlan::known(slot + 1, &prompt(1 + 3 * slot as usize, u64::from(slot))).score_last()
        }));
        let outputs = len as u32;
        let answers = session.run(&plans)?;
        together.extend(answers.into_iter().filter(|answer| answer.output < outputs));
        done += len;
    }
    same_bits("in a batch", &alone, &together)
}

/// A prompt's bits don't depend on how it was chunked, where the backend promises that.
pub fn chunking_changes_no_bit(check: &Check<'_>) -> Result<(), Failure> {
    check.require_batch_invariance()?;
    let (model, setup) = (Model::llama()?, Setup::new());
    let whole = scores(&mut check.session(&model, &setup)?, 0, &[50])?;
    for chunks in [vec![1; 50], vec![7; 7], vec![16, 16, 16, 2], vec![33, 17]] {
        let found = scores(&mut check.session(&model, &setup)?, 0, &chunks)?;
        same_bits(&format!("chunks {chunks:?}"), &whole[..found.len()], &found)?;
    }
    Ok(())
}

/// A sequence's bits don't depend on the page size, where the backend promises that.
pub fn the_page_size_changes_no_bit(check: &Check<'_>) -> Result<(), Failure> {
    check.require_batch_invariance()?;
    let model = Model::llama()?;
    let whole = scores(&mut check.session(&model, &Setup::new())?, 0, &[50])?;
    for page_size in check.backend().capabilities().page_sizes {
        let setup = Setup::new().page_size(page_size);
        let found = scores(&mut check.session(&model, &setup)?, 0, &[50])?;
        same_bits(&format!("pages of {page_size}"), &whole, &found)?;
    }
    Ok(())
}

/// Log probabilities after every token of a prompt of 50, in chunks. What the chunks leave over
/// isn't computed.
fn scores(session: &mut Session, seed: u64, chunks: &[usize]) -> Result<Vec<Answer>, Failure> {
    let tokens = prompt(50, seed);
    session.open(0, SlotSampling::greedy());
    let mut answers = Vec::new();
    let mut done = 0;
    for &len in chunks {
        let plan = RowPlan::known(0, &tokens[done..done + len]).score_all();
        answers.extend(session.run(&[plan])?);
        done += len;
    }
    Ok(answers)
}

/// Compares answers that were outputs of different steps.
fn compare_scores(
    check: &Check<'_>,
    what: &str,
    expected: &[Answer],
    found: &[Answer],
) -> Result<(), Failure> {
    let renumbered: Vec<Answer> = (expected.iter().zip(found))
        .map(|(expected, found)| Answer { output: found.output, ..expected.clone() })
        .collect();
    check.same_answers(what, &renumbered, found)
}

pub(super) fn same_bits(what: &str, expected: &[Answer], found: &[Answer]) -> Result<(), Failure> {
    let bits = |answers: &[Answer]| -> Vec<Vec<u32>> {
        let bits_of = |answer: &Answer| answer.by_token().iter().map(|x| x.to_bits()).collect();
        answers.iter().map(bits_of).collect()
    };
    for (index, (expected, found)) in bits(expected).iter().zip(bits(found)).enumerate() {
        expect_equal(&format!("bits {what}, answer {index}"), expected, &found)?;
    }
    expect_equal(&format!("answers {what}"), &expected.len(), &found.len())
}
