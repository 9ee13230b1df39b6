//! Several programs in one executor.

use engine_core::backend::ProgramId;
use engine_core::model::{AttentionOptions, Program, ProgramBuilder, ProgramError, Split};
use engine_core::weights::Format;

use super::check::Check;
use super::failure::{Failure, expect_equal};
use super::models::{Model, VOCAB_SIZE, prompt};
use super::session::{RowPlan, Session, Setup};
use super::slots::with_logprobs;

const WIDTH: usize = 64;

/// A target and a draft share slots and sampling state. Each has page groups, KV and next tokens of
/// its own.
pub fn programs_share_slots_and_keep_their_own_kv(check: &Check<'_>) -> Result<(), Failure> {
    let target = program("target", &[None])?;
    let draft = program("draft", &[None, Some(8)])?;
    let model = Model::random_programs(vec![target, draft], Format::F32, 12)?;
    check.agree("two programs", &model, &Setup::new(), |session: &mut Session| {
        (0..2).for_each(|slot| session.open(slot, with_logprobs()));
        let tokens = prompt(21, 70);
        let on = |session: &mut Session, program, rows: &[RowPlan]| {
            session.use_program(ProgramId(program));
            session.run(rows)
        };
        let mut answers = on(session, 0, &[RowPlan::known(0, &tokens).sample()])?;
        answers.extend(on(
            session,
            1,
            &[RowPlan::known(0, &tokens[..9]).score_last(), RowPlan::known(1, &tokens).sample()],
        )?);
        answers.extend(on(
            session,
            1,
            &[RowPlan::produced(1), RowPlan::known(0, &tokens[9..]).sample()],
        )?);
        // The target goes on from its own token, whatever the draft has sampled since.
        answers.extend(on(
            session,
            0,
            &[RowPlan::produced(0), RowPlan::known(1, &tokens).sample()],
        )?);
        answers.extend(on(session, 1, &[RowPlan::produced(0), RowPlan::produced(1)])?);
        Ok(answers)
    })
}

/// What a draft samples is a proposal: penalties count the target's tokens alone.
pub fn tokens_of_a_draft_are_not_counted(check: &Check<'_>) -> Result<(), Failure> {
    // The same weights twice, so that the draft proposes what the target would sample.
    let twin = program("twin", &[None])?;
    let model = Model::random_programs(vec![twin.clone(), twin], Format::F32, 12)?;
    check.agree("penalties beside a draft", &model, &Setup::new(), |session: &mut Session| {
        let mut sampling = with_logprobs();
        sampling.frequency_penalty = 100.0;
        session.open(0, sampling);
        let tokens = prompt(21, 71);
        let mut answers = Vec::new();
        for program in [1, 0] {
            session.use_program(ProgramId(program));
            answers.extend(session.run(&[RowPlan::known(0, &tokens).sample()])?);
            for _ in 0..3 {
                answers.extend(session.run(&[RowPlan::produced(0)])?);
            }
        }
        expect_equal("the target's first token", &answers[0].token, &answers[4].token)?;
        Ok(answers)
    })
}

/// A layer for each window, in a page group of its own; every weight's name begins with `name`.
fn program(name: &str, windows: &[Option<u32>]) -> Result<Program, ProgramError> {
    let mut b = ProgramBuilder::new(name, VOCAB_SIZE);
    let mut x = b.embed(&format!("{name}.embedding"), WIDTH, 1.0);
    for (layer, &window) in windows.iter().enumerate() {
        let mut options = AttentionOptions::full(16);
        (options.group, options.window) = (b.page_group(2, 16, window), window);
        let part = |part: &str| format!("{name}.{layer}.{part}");
        let h = b.rms_norm(x, &part("norm"), 1e-5);
        let q = b.linear(h, &part("q"), 64, Split::Columns);
        let k = b.linear(h, &part("k"), 32, Split::Columns);
        let v = b.linear(h, &part("v"), 32, Split::Columns);
        let h = b.attention(q, k, v, &options);
        let h = b.linear(h, &part("o"), WIDTH, Split::Rows);
        x = b.add(x, h);
    }
    let x = b.select_outputs(x);
    b.finish_with_logits(x, &format!("{name}.output"), None)
}
