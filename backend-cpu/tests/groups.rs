//! Page groups and programs: windowed layers that release pages, drafts beside a target.

mod support;

use backend_cpu::{CpuBackend, CpuOptions};
use engine_core::{
    PageId, Token,
    backend::{
        Backend, CompileOptions, Deadline, GroupId, KvFormat, PageCopy, ProgramId, SlotId,
        SlotSampling, StepResult, Tier,
    },
    model::Program,
};
use support::{
    Harness, RowPlan, Setup, compile_options,
    toys::{FIVE_TO_ONE, GEMMA, Toy, VOCAB_SIZE, WINDOW, random_weights},
};
use testkit::{interpreter::Interpreter, random::Random};

/// Two groups' worth, far more than a window.
const PROMPT: usize = 90;
const ANSWER: usize = 40;
const CHUNK: usize = 25;
const ROWS: u32 = 3;

fn prompt(slot: u32) -> Vec<Token> {
    let mut random = Random::new(40 + u64::from(slot));
    let len = PROMPT - 13 * slot as usize;
    (0..len).map(|_| random.below(VOCAB_SIZE as usize) as Token).collect()
}

fn sampling(slot: u32) -> SlotSampling {
    let temperature = if slot == 0 { 0.0 } else { 0.8 };
    SlotSampling { temperature, seed: slot.into(), logprobs: Some(5), ..SlotSampling::greedy() }
}

fn backend(threads: usize) -> CpuBackend {
    CpuBackend::with_options(&CpuOptions::new().threads(threads)).unwrap()
}

/// As many pages of each group as there can be in use, with windows in some.
fn options(programs: &[Program], page_size: u32) -> CompileOptions {
    let setup = Setup { page_size, ..Setup::default() };
    let mut options = compile_options(programs, setup);
    let groups = programs.iter().flat_map(Program::groups);
    for (group, pages) in groups.zip(&mut options.limits.pages) {
        let positions = match group.window {
            Some(window) => window + CHUNK as u32,
            None => (PROMPT + ANSWER) as u32,
        };
        // A window may begin and end inside a page.
        *pages = ROWS * (positions.div_ceil(page_size) + 1);
    }
    options
}

/// Tokens and log probabilities of three rows, prefilled in chunks that are not in step.
fn generate(backend: &dyn Backend, toy: Toy, page_size: u32) -> (Vec<Vec<(Token, f32)>>, Harness) {
    let program = toy.program();
    let weights = random_weights(std::slice::from_ref(&program));
    let programs = std::slice::from_ref(&program);
    let mut harness = Harness::on(backend, programs, &weights, &options(programs, page_size));
    let mut done = [0; ROWS as usize];
    let mut answers = vec![Vec::new(); ROWS as usize];
    for slot in 0..ROWS {
        harness.open_growing(slot, sampling(slot));
    }
    while answers.iter().any(|answer| answer.len() < ANSWER) {
        let mut plans = Vec::new();
        for slot in 0..ROWS {
            let (prompt, done) = (prompt(slot), &mut done[slot as usize]);
            if *done < prompt.len() {
                let end = prompt.len().min(*done + CHUNK - slot as usize);
                plans.push(match end == prompt.len() {
                    true => RowPlan::sampled(slot, &prompt[*done..]),
                    false => RowPlan::known(slot, &prompt[*done..end], vec![]),
                });
                *done = end;
            } else if answers[slot as usize].len() < ANSWER {
                plans.push(RowPlan::produced(slot));
            }
        }
        let result = harness.run(&plans);
        let rows = plans.iter().filter(|plan| !plan.wants.is_empty());
        for (answer, plan) in result.outputs.iter().zip(rows) {
            let tokens = result.tokens_of(answer).iter();
            answers[plan.slot as usize].extend(tokens.map(|it| (it.token, it.logprob)));
        }
    }
    (answers, harness)
}

#[test]
fn released_windows_are_the_masked_form_bit_for_bit_and_bound_their_pages() {
    for toy in [FIVE_TO_ONE, GEMMA] {
        for page_size in [4, 16] {
            let (expected, masked) = generate(&backend(2), toy.masked(), page_size);
            let (answers, released) = generate(&backend(2), toy, page_size);
            assert_eq!(answers, expected, "{toy:?} with pages of {page_size}");
            let bound = ROWS * ((WINDOW + CHUNK as u32).div_ceil(page_size) + 1);
            let most = released.most_pages(1);
            assert!(most <= bound as usize, "{most} of {bound} pages");
            assert!(most < masked.most_pages(1), "the window is longer than the answers");
            assert_eq!(released.most_pages(0), masked.most_pages(0));
        }
    }
}

#[test]
fn windowed_models_answer_as_the_interpreter_does() {
    for toy in [FIVE_TO_ONE, GEMMA] {
        let (expected, _) = generate(&Interpreter, toy.masked(), 16);
        let (answers, _) = generate(&backend(3), toy, 8);
        for (answer, expected) in answers.iter().flatten().zip(expected.iter().flatten()) {
            assert_eq!(answer.0, expected.0, "{toy:?}");
            assert!((answer.1 - expected.1).abs() < 1e-4, "{answer:?}, not {expected:?}");
        }
    }
}

#[test]
fn the_host_tier_has_pages_of_each_group() {
    let program = FIVE_TO_ONE.program();
    let weights = random_weights(std::slice::from_ref(&program));
    let programs = std::slice::from_ref(&program);
    let mut options = options(programs, 16);
    options.limits.pages = vec![40, 40];
    options.host_pages = vec![9, 3];
    let mut harness = Harness::on(&backend(2), programs, &weights, &options);
    harness.open_growing(0, sampling(0));
    let tokens = prompt(0);
    for chunk in tokens[..80].chunks(CHUNK) {
        harness.run(&[RowPlan::known(0, chunk, vec![])]);
    }
    // A window's pages leave for the host in reverse order, and others come back.
    let groups = [GroupId(0), GroupId(1)];
    let mut copies = Vec::new();
    let mut back = Vec::new();
    for group in groups {
        let table = harness.slots.pages_mut(SlotId(0), group);
        let live = table.iter_mut().filter(|page| **page != PageId::NONE).rev();
        for (host, page) in (0..options.host_pages[group.index()]).map(PageId).zip(live) {
            copies.push(PageCopy { group, from: (Tier::Device, *page), to: (Tier::Host, host) });
            *page = PageId(39 - host.0);
            back.push(PageCopy { group, from: (Tier::Host, host), to: (Tier::Device, *page) });
        }
    }
    for copies in [copies, back] {
        let ticket = harness.executor.transfer(&copies).unwrap();
        harness.executor.wait_transfer(ticket, Deadline::NEVER).unwrap();
    }
    let moved = harness.run(&[RowPlan::sampled(0, &tokens[80..])]);
    let (expected, _) = generate(&backend(1), FIVE_TO_ONE.masked(), 4);
    assert_eq!((moved.tokens[0].token, moved.tokens[0].logprob), expected[0][0]);
}

#[test]
fn a_page_costs_what_its_group_has_of_heads_layers_and_padding() {
    let program = FIVE_TO_ONE.program();
    let bytes = |group| backend(1).page_bytes(&program, GroupId(group), 16, KvFormat::F32);
    // Layers, KV heads, width of keys and of values (padded to 16), bytes, positions.
    assert_eq!(bytes(0), 2 * (16 + 16) * 4 * 16);
    assert_eq!(bytes(1), 5 * (24 + 32) * 4 * 16);
}

/// A draft of the first layer of the target.
const DRAFT: Toy = Toy { windowed: &[true], ..FIVE_TO_ONE };

fn tokens(result: &StepResult) -> Vec<Token> {
    result.tokens.iter().map(|it| it.token).collect()
}

fn penalized() -> SlotSampling {
    SlotSampling { frequency_penalty: 2.0, presence_penalty: 1.0, ..sampling(1) }
}

/// Prefills a program's KV and samples after the last token.
fn prefill(harness: &mut Harness) -> Token {
    let prompt = prompt(0);
    let (chunks, last) = prompt.split_at(PROMPT - 1);
    for chunk in chunks.chunks(CHUNK) {
        harness.run(&[RowPlan::known(0, chunk, vec![])]);
    }
    tokens(&harness.run(&[RowPlan::sampled(0, last)]))[0]
}

#[test]
fn programs_of_an_executor_share_slots_but_neither_kv_nor_next_tokens_nor_counts() {
    let weights = random_weights(&[FIVE_TO_ONE.program()]);
    let alone = |toy: Toy| {
        let programs = [toy.program()];
        let mut harness = Harness::on(&backend(2), &programs, &weights, &options(&programs, 16));
        harness.open_growing(0, penalized());
        let mut answer = vec![prefill(&mut harness)];
        answer.extend((0..20).flat_map(|_| tokens(&harness.run(&[RowPlan::produced(0)]))));
        answer
    };
    let target = alone(FIVE_TO_ONE);
    let programs = [FIVE_TO_ONE.program(), DRAFT.program()];
    let mut harness = Harness::on(&backend(2), &programs, &weights, &options(&programs, 16));
    harness.open_growing(0, penalized());
    let draft = ProgramId(1);
    let mut answer = vec![prefill(&mut harness)];
    harness.program = draft;
    let mut drafted = vec![prefill(&mut harness)];
    assert_ne!(answer, drafted, "the draft is the target");
    for _ in 0..20 {
        harness.program = ProgramId(0);
        answer.extend(tokens(&harness.run(&[RowPlan::produced(0)])));
        harness.program = draft;
        drafted.extend(tokens(&harness.run(&[RowPlan::produced(0)])));
    }
    assert_eq!(answer, target);
    // Moving out takes the next tokens of both programs.
    harness.open_growing(0, penalized());
    for program in [ProgramId(0), draft] {
        harness.program = program;
        let ticket = harness.launch(&[RowPlan::produced(0)]).unwrap();
        let (_, outcome) = harness.wait(ticket);
        assert!(outcome.is_err());
    }
}

#[test]
fn drafts_propose_and_the_target_verifies() {
    let weights = random_weights(&[FIVE_TO_ONE.program()]);
    let (plain, _) = generate(&backend(2), FIVE_TO_ONE, 16);
    let expected: Vec<Token> = plain[0].iter().map(|it| it.0).collect();
    // A draft that is the target itself: all that it proposes is accepted.
    let programs = [FIVE_TO_ONE.program(), FIVE_TO_ONE.program()];
    let mut harness = Harness::on(&backend(2), &programs, &weights, &options(&programs, 16));
    harness.open_growing(0, sampling(0));
    let first = prefill(&mut harness);
    harness.program = ProgramId(1);
    assert_eq!(prefill(&mut harness), first);
    let mut answer = vec![first];
    while answer.len() < 21 {
        harness.program = ProgramId(1);
        let known = [*answer.last().unwrap()];
        let mut proposed = tokens(&harness.run(&[RowPlan::sampled(0, &known)]));
        for _ in 0..3 {
            proposed.extend(tokens(&harness.run(&[RowPlan::produced(0)])));
        }
        harness.program = ProgramId(0);
        let result = harness.run(&[RowPlan::verified(0, &proposed)]);
        assert_eq!(result.tokens.len(), 5);
        answer.extend(tokens(&result));
        // The draft has not seen its last proposal.
        harness.program = ProgramId(1);
        harness.run(&[RowPlan::known(0, &proposed[3..], vec![])]);
    }
    assert_eq!(answer, expected[..answer.len()]);
}
