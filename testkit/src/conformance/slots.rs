//! What stays on the device from step to step: next tokens, page tables, KV.

use engine_core::backend::{GroupId, PageCopy, SlotSampling, Tier};
use engine_core::{PageId, Token};

use super::check::Check;
use super::failure::{CaseError, Failure, expect_equal};
use super::models::{Model, prompt};
use super::session::{RowPlan, Setup};
use crate::interpreter::logits;

/// Greedy tokens that a chain of steps produces.
const CHAIN: usize = 8;

/// As many at least, on a backend of little precision.
const SHORTEST_CHAIN: usize = 3;

/// Each step is launched before the one before it is waited for.
pub fn produced_tokens_need_no_host(check: &Check<'_>) -> Result<(), Failure> {
    let model = Model::llama()?;
    let (prompt, chain) = confident_prompt(check, &model)?;
    check.agree("an overlapped chain", &model, &Setup::new(), |session| {
        session.open(3, with_logprobs());
        let mut answers = Vec::new();
        let mut pending = session.launch(&[RowPlan::known(3, &prompt).sample()])?;
        for _ in 1..chain {
            let next = session.launch(&[RowPlan::produced(3)])?;
            answers.extend(session.wait(std::mem::replace(&mut pending, next))?);
        }
        answers.extend(session.wait(pending)?);
        Ok(answers)
    })
}

/// A slot that sits a step out goes on with its own token.
pub fn slots_keep_their_own_next_token(check: &Check<'_>) -> Result<(), Failure> {
    let model = Model::llama()?;
    let (confident, _) = confident_prompt(check, &model)?;
    let other = prompt(9, 77);
    check.agree("a slot that waits", &model, &Setup::new(), |session| {
        session.open(0, with_logprobs());
        session.open(5, with_logprobs());
        let mut answers = session.run(&[RowPlan::known(0, &confident).sample()])?;
        answers.extend(session.run(&[RowPlan::known(5, &other).sample()])?);
        let tokens = prompt(3, 78);
        answers.extend(session.run(&[RowPlan::known(5, &tokens).score_all()])?);
        answers
            .extend(session.run(&[RowPlan::produced(0), RowPlan::known(5, &tokens).score_last()])?);
        answers.extend(session.run(&[RowPlan::produced(0)])?);
        Ok(answers)
    })
}

/// Whole pages are shared, a partial one is copied, and then both go their ways.
pub fn forks_go_on_from_their_parents_positions(check: &Check<'_>) -> Result<(), Failure> {
    let model = Model::llama()?;
    for (page_size, positions) in [(16, 20), (16, 32), (16, 7)] {
        let setup = Setup::new().page_size(page_size);
        let what = format!("a fork at {positions}");
        check.agree(&what, &model, &setup, |session| {
            let parent = prompt(40, 6);
            session.open(0, SlotSampling::greedy());
            let mut answers = session.run(&[RowPlan::known(0, &parent[..36]).score_last()])?;
            session.fork(0, 4, positions, SlotSampling::greedy())?;
            let branch = prompt(5, 61);
            answers.extend(session.run(&[
                RowPlan::known(0, &parent[36..37]).score_last(),
                RowPlan::known(4, &branch).score_all(),
            ])?);
            answers.extend(session.run(&[
                RowPlan::known(4, &branch[..1]).score_last(),
                RowPlan::known(0, &parent[37..]).score_all(),
            ])?);
            Ok(answers)
        })?;
    }
    Ok(())
}

/// Entries of a page table are re-pointed while a step that reads the old page is out.
pub fn pages_move_between_launches(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("moved pages", &Model::llama()?, &Setup::new(), |session| {
        let tokens = prompt(50, 6);
        session.open(1, SlotSampling::greedy());
        let first = session.launch(&[RowPlan::known(1, &tokens[..40]).score_last()])?;
        session.move_page(1, 0)?;
        session.move_page(1, 2)?;
        let second = session.launch(&[RowPlan::known(1, &tokens[40..]).score_all()])?;
        let mut answers = session.wait(first)?;
        answers.extend(session.wait(second)?);
        Ok(answers)
    })
}

/// A sequence moves in where another one was, into its slot and its pages.
pub fn a_reopened_slot_forgets_its_sequence(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("a reopened slot", &Model::llama()?, &Setup::new(), |session| {
        session.open(2, with_logprobs());
        let mut answers = session.run(&[RowPlan::known(2, &prompt(45, 1)).sample()])?;
        session.close(2);
        session.open(2, SlotSampling::greedy());
        answers.extend(session.run(&[RowPlan::known(2, &prompt(18, 2)).score_all()])?);
        // Closed and opened while a step is out, and by another slot's events in between.
        let out = session.launch(&[RowPlan::known(2, &prompt(3, 3)).score_all()])?;
        session.close(2);
        session.open(6, SlotSampling::greedy());
        session.open(2, SlotSampling::greedy());
        let next = session.launch(&[
            RowPlan::known(6, &prompt(20, 4)).score_all(),
            RowPlan::known(2, &prompt(12, 5)).score_all(),
        ])?;
        answers.extend(session.wait(out)?);
        answers.extend(session.wait(next)?);
        Ok(answers)
    })
}

/// Pages go to the host tier, are overwritten on the device, and come back elsewhere.
pub fn pages_come_back_from_the_host_tier(check: &Check<'_>) -> Result<(), Failure> {
    if check.backend().capabilities().host_memory_bytes == 0 {
        return Err(Failure::Skipped { what: "a host tier".into() });
    }
    let setup = Setup { host_pages: 4, ..Setup::new() };
    check.agree("transferred pages", &Model::llama()?, &setup, |session| {
        let tokens = prompt(50, 6);
        session.open(0, SlotSampling::greedy());
        let mut answers = session.run(&[RowPlan::known(0, &tokens[..48]).score_last()])?;
        let away: Vec<PageCopy> = (0..)
            .zip(session.table(0))
            .map(|(host, &device)| PageCopy {
                group: GroupId(0),
                from: (Tier::Device, device),
                to: (Tier::Host, PageId(host)),
            })
            .collect();
        session.transfer(&away)?;
        session.close(0);
        // Takes the pages that were just given up.
        session.open(1, SlotSampling::greedy());
        session.run(&[RowPlan::known(1, &prompt(48, 8)).score_last()])?;
        let pages = session.adopt(0, 48, SlotSampling::greedy())?;
        let back: Vec<PageCopy> = (0..)
            .zip(&pages)
            .map(|(host, &device)| PageCopy {
                group: GroupId(0),
                from: (Tier::Host, PageId(host)),
                to: (Tier::Device, device),
            })
            .collect();
        session.transfer(&back)?;
        answers.extend(session.run(&[RowPlan::known(0, &tokens[48..]).score_all()])?);
        Ok(answers)
    })
}

/// An executor without a host tier says so.
pub fn transfers_without_a_host_tier_are_refused(check: &Check<'_>) -> Result<(), Failure> {
    let mut session = check.session(&Model::llama()?, &Setup::new())?;
    let copy = PageCopy {
        group: GroupId(0),
        from: (Tier::Device, PageId(0)),
        to: (Tier::Host, PageId(0)),
    };
    let refused = session.executor().transfer(&[copy]).is_err();
    expect_equal("refused", &true, &refused)
}

/// Greedy, reporting all log probabilities.
pub(super) fn with_logprobs() -> SlotSampling {
    let mut sampling = SlotSampling::greedy();
    sampling.logprobs = Some(u8::MAX);
    sampling
}

/// A prompt after which greedy decoding has no near-ties for a while, so that a chain of sampled
/// tokens is the same on any backend within the tolerance. Returns how long that chain is: `CHAIN`
/// where the tolerance is a small one, and at least `SHORTEST_CHAIN`.
pub(super) fn confident_prompt(
    check: &Check<'_>,
    model: &Model,
) -> Result<(Vec<Token>, usize), Failure> {
    let mut longest = (Vec::new(), 0);
    for seed in 0..3000 {
        let prompt = prompt(6, 1000 + seed);
        let chain = confident_chain(check, model, &prompt)?;
        if chain > longest.1 {
            longest = (prompt, chain);
        }
        if chain == CHAIN {
            break;
        }
    }
    if longest.1 < SHORTEST_CHAIN {
        let what = "prompts without near-ties at this tolerance";
        return Err(Failure::Case(CaseError::TooFew { what }));
    }
    Ok(longest)
}

/// How many greedy tokens after `prompt` are sure, up to `CHAIN`.
fn confident_chain(check: &Check<'_>, model: &Model, prompt: &[Token]) -> Result<usize, Failure> {
    let mut tokens = prompt.to_vec();
    for len in 0..CHAIN {
        let logits = logits(model.program(), &model.weights, &tokens).map_err(|source| {
            Failure::Compile { program: model.program().name().to_owned(), source }
        })?;
        let mut ranked: Vec<(f32, Token)> =
            logits.last().into_iter().flatten().copied().zip(0..).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        // Both of them may be off by the tolerance.
        if ranked[0].0 - ranked[1].0 <= 2.0 * check.tolerance() {
            return Ok(len);
        }
        tokens.push(ranked[0].1);
    }
    Ok(CHAIN)
}
