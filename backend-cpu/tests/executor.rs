//! The executor's contract: order, failures, deferred sampling, forks, tiers.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backend_cpu::{CpuBackend, CpuOptions};
use engine_core::{
    PageId, Token,
    backend::{
        Backend, BackendError, Batch, BatchError, Compute, Deadline, GroupId, InputToken, Mask,
        Masks, OutputRequest, PageCopy, Row, SlotEvent, SlotId, SlotSampling, Span, StepError,
        StepResult, Ticket, Tier,
    },
    model::{LoadedModel, Program, open_model},
    weights::{Format, MapWeights, Shape, Tensor, Weights, WeightsError},
};
use support::{Harness, RowPlan, SLOTS, Setup, compile_options, fixtures, greedy};

const PROMPT: [Token; 21] =
    [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71];

fn model() -> (LoadedModel, Program) {
    let model = open_model(&fixtures().join("tiny/llama-tied")).unwrap();
    let program = model.program().unwrap();
    (model, program)
}

/// The tensors of the model, to change some of them.
fn tensors(program: &Program, weights: &dyn Weights) -> MapWeights {
    let mut copy = MapWeights::new();
    for weight in program.weights() {
        copy.insert(&weight.name, weights.tensor(&weight.name).unwrap().into_owned());
    }
    copy
}

fn last(tokens: &[Token], slot: u32) -> RowPlan {
    RowPlan::sampled(slot, tokens)
}

fn sampled(result: &StepResult) -> Vec<Token> {
    result.tokens.iter().map(|sampled| sampled.token).collect()
}

fn compile_error(program: &Program, weights: &dyn Weights) -> BackendError {
    let programs = std::slice::from_ref(program);
    let options = compile_options(programs, Setup::default());
    CpuBackend::new().compile(programs, weights, &options).err().unwrap()
}

#[test]
fn sampling_that_was_deferred_obeys_its_masks() {
    let (model, program) = model();
    let free = greedy(&program, &*model.weights, &[&PROMPT], 1, Setup::default())[0][0];
    let mut harness = Harness::new(&program, &*model.weights, Setup::default());
    for slot in 0..2 {
        harness.open(slot, 64, SlotSampling::greedy());
    }
    let ticket = harness.launch(&[last(&PROMPT, 0), last(&PROMPT, 1).deferred()]).unwrap();
    // All tokens but the one that would win.
    let mut allowed = vec![u32::MAX; (program.vocab_size() as usize).div_ceil(32)];
    allowed[free as usize / 32] &= !(1 << (free % 32));
    let masks = [Mask { output: 1, index: 0, allowed: &allowed }];
    harness.executor.sample(&ticket, &Masks { entries: &masks }).unwrap();
    let (result, outcome) = harness.wait(ticket);
    outcome.unwrap();
    let tokens = sampled(&result);
    assert_eq!(tokens[0], free);
    assert_ne!(tokens[1], free);
    // The next step goes on with the token that the mask forced.
    let next = harness.run(&[RowPlan::produced(0), RowPlan::produced(1)]);
    let mut forced = PROMPT.to_vec();
    forced.push(tokens[1]);
    let expected = greedy(&program, &*model.weights, &[&forced], 1, Setup::default())[0][0];
    assert_eq!(sampled(&next)[1], expected);
}

#[test]
fn a_fork_in_the_middle_of_a_page_continues_as_its_parent_would() {
    let (model, program) = model();
    let expected = greedy(&program, &*model.weights, &[&PROMPT], 6, Setup::default()).remove(0);
    let mut harness = Harness::new(&program, &*model.weights, Setup::default());
    harness.open(0, 64, SlotSampling::greedy());
    harness.run(&[last(&PROMPT, 0)]);
    // The whole page is shared, the partial one is copied.
    harness.open(1, 64, SlotSampling::greedy());
    let group = GroupId(0);
    let parent = harness.slots.pages(SlotId(0), group).to_vec();
    let table = harness.slots.pages_mut(SlotId(1), group);
    table[0] = parent[0];
    let copy = SlotEvent::CopyPage { group, from: parent[1], to: table[1] };
    harness.events.insert(0, copy);
    harness.set_position(1, PROMPT.len() as u32 - 1);
    // The parent writes on in its own page meanwhile.
    let mut answers = vec![expected[0]];
    let result = harness.run(&[RowPlan::produced(0), last(&PROMPT[PROMPT.len() - 1..], 1)]);
    assert_eq!(sampled(&result), [expected[1], expected[0]]);
    for _ in 1..6 {
        let result = harness.run(&[RowPlan::produced(1)]);
        answers.extend(sampled(&result));
    }
    assert_eq!(answers, expected);
}

#[test]
fn pages_come_back_from_the_host_tier_as_they_went() {
    let (model, program) = model();
    let setup = Setup::default();
    let expected = greedy(&program, &*model.weights, &[&PROMPT], 4, setup).remove(0);
    let mut harness = Harness::new(&program, &*model.weights, setup);
    let mut options = compile_options(std::slice::from_ref(&program), setup);
    options.host_pages = vec![8];
    let programs = std::slice::from_ref(&program);
    harness.executor = CpuBackend::new().compile(programs, &*model.weights, &options).unwrap();
    harness.open(0, 64, SlotSampling::greedy());
    let first = harness.run(&[last(&PROMPT, 0)]);
    let group = GroupId(0);
    let pages = harness.slots.pages(SlotId(0), group).to_vec();
    let out: Vec<PageCopy> = (0..)
        .zip(&pages)
        .map(|(host, page)| PageCopy {
            group,
            from: (Tier::Device, *page),
            to: (Tier::Host, PageId(host)),
        })
        .collect();
    let ticket = harness.executor.transfer(&out).unwrap();
    harness.executor.wait_transfer(ticket, Deadline::NEVER).unwrap();
    // Back to other pages; what was there is overwritten by somebody else.
    harness.open(1, 64, SlotSampling::greedy());
    let back: Vec<PageCopy> = out
        .iter()
        .zip(harness.slots.pages(SlotId(1), group))
        .map(|(copy, page)| PageCopy { group, from: copy.to, to: (Tier::Device, *page) })
        .collect();
    let ticket = harness.executor.transfer(&back).unwrap();
    harness.set_position(0, 0);
    harness.run(&[last(&[7; PROMPT.len()], 0)]);
    harness.executor.wait_transfer(ticket, Deadline::NEVER).unwrap();
    harness.set_position(1, PROMPT.len() as u32);
    let mut answers = sampled(&first);
    let second = harness.run(&[last(&[answers[0]], 1)]);
    answers.extend(sampled(&second));
    for _ in 2..4 {
        let result = harness.run(&[RowPlan::produced(1)]);
        answers.extend(sampled(&result));
    }
    assert_eq!(answers, expected);
}

#[test]
fn transfers_are_refused_without_a_host_tier_and_for_unknown_pages() {
    let (model, program) = model();
    let setup = Setup::default();
    let mut harness = Harness::new(&program, &*model.weights, setup);
    let copy = PageCopy {
        group: GroupId(0),
        from: (Tier::Device, PageId(0)),
        to: (Tier::Host, PageId(8)),
    };
    let refused = harness.executor.transfer(&[copy]);
    assert!(matches!(refused, Err(StepError::Unsupported { .. })));
    let mut options = compile_options(std::slice::from_ref(&program), setup);
    options.host_pages = vec![8];
    let programs = std::slice::from_ref(&program);
    let compiled = CpuBackend::new().compile(programs, &*model.weights, &options);
    assert!(matches!(compiled.unwrap().transfer(&[copy]), Err(StepError::Unsupported { .. })));
}

#[test]
fn a_row_that_is_not_finite_fails_alone_and_so_does_what_continues_it() {
    let (model, program) = model();
    // Token 5 poisons whatever contains it.
    let mut weights = tensors(&program, &*model.weights);
    let name = "model.embed_tokens.weight";
    let embedding = weights.remove(name).unwrap();
    let shape = embedding.shape();
    let mut values = embedding.to_f32();
    values[5 * shape.cols()] = f32::NAN;
    weights.insert(name, Tensor::from_f32(Format::F32, shape, &values).unwrap());
    // Tied to the embedding, the logits would all have a NaN: give them a weight of their own.
    let config = &model.config;
    assert!(config.vocab_size > 5);
    weights.insert("lm_head.weight", embedding);
    let program = engine_core::model::build(config, true).unwrap();

    let mut harness = Harness::new(&program, &weights, Setup::default());
    harness.open(0, 64, SlotSampling::greedy());
    harness.open(1, 64, SlotSampling::greedy());
    let first = harness.launch(&[last(&[1, 5, 2], 0), last(&[1, 4, 2], 1)]).unwrap();
    let second = harness.launch(&[RowPlan::produced(0), RowPlan::produced(1)]).unwrap();
    for ticket in [first, second] {
        let (result, outcome) = harness.wait(ticket);
        let Err(StepError::Rows(failures)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].row, 0);
        assert_eq!(result.outputs.len(), 1);
        assert_eq!(result.outputs[0].output, 1);
    }
    // The slot works again for the next sequence, in the same pages.
    harness.open(0, 64, SlotSampling::greedy());
    harness.run(&[last(&[1, 4, 2], 0)]);
}

#[test]
fn rows_that_make_no_sense_are_refused_before_anything_happens() {
    let (model, program) = model();
    let mut harness = Harness::new(&program, &*model.weights, Setup::default());
    harness.open(0, 64, SlotSampling::greedy());
    let refused = |outcome: Result<Ticket, StepError>| match outcome {
        Err(StepError::Batch { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    let unknown = last(&[program.vocab_size()], 0);
    assert!(matches!(
        refused(harness.launch(&[unknown])),
        BatchError::Unknown { what: "token", .. }
    ));
    harness.set_position(0, 64);
    let error = refused(harness.launch(&[last(&[1], 0)]));
    assert!(matches!(error, BatchError::TableTooShort { .. }));
    harness.set_position(0, 0);
    harness.slots.pages_mut(SlotId(0), GroupId(0))[0] = PageId(u32::MAX);
    let error = refused(harness.launch(&[last(&[1], 0)]));
    assert!(matches!(error, BatchError::UnknownPage { .. }));
    harness.set_position(0, 0);
    harness.slots.pages_mut(SlotId(0), GroupId(0))[0] = PageId(0);
    harness.run(&[last(&[1], 0)]);
}

#[test]
fn batches_beyond_the_limits_are_refused() {
    let (model, program) = model();
    let mut harness = Harness::new(&program, &*model.weights, Setup::default());
    let tokens = [InputToken::Known(1)];
    let span = Span { start: 0, len: 1 };
    let row = Row { slot: SlotId(0), tokens: span, position: 0, outputs: Span::default() };
    let rows = vec![row; SLOTS as usize + 1];
    let slots = harness.slots.clone();
    let batch = Batch::new(1, &tokens, &rows, 0, &[], &[], &slots);
    assert!(matches!(harness.executor.launch(&batch), Err(StepError::Batch { .. })));
    let outputs = [OutputRequest::sample(3, 0)];
    let batch = Batch::new(1, &tokens, &rows[..1], 0, &outputs, &[], &slots);
    assert!(matches!(harness.executor.launch(&batch), Err(StepError::Batch { .. })));
    let events = [SlotEvent::Open { slot: SlotId(SLOTS) }];
    let batch = Batch::new(1, &tokens, &rows[..1], 0, &[], &events, &slots);
    assert!(matches!(harness.executor.launch(&batch), Err(StepError::Batch { .. })));
}

#[test]
fn continuing_a_sequence_that_never_sampled_fails_that_row() {
    let (model, program) = model();
    let mut harness = Harness::new(&program, &*model.weights, Setup::default());
    harness.open(0, 64, SlotSampling::greedy());
    let ticket = harness.launch(&[RowPlan::produced(0)]).unwrap();
    let (_, outcome) = harness.wait(ticket);
    assert!(matches!(outcome, Err(StepError::Rows(failures)) if failures[0].row == 0));
}

#[test]
fn a_missed_deadline_is_death_and_the_executor_says_so_from_then_on() {
    let (model, program) = model();
    let mut harness = Harness::new(&program, &*model.weights, Setup::default());
    harness.open(0, 256, SlotSampling::greedy());
    // No launch has this number, so it never ends, however fast the machine is.
    let ticket = Ticket::new(u64::MAX);
    let mut result = StepResult::default();
    let deadline = Deadline::after(Duration::from_millis(20));
    let outcome = harness.executor.wait(ticket, deadline, &mut result);
    assert!(matches!(outcome, Err(StepError::Dead { .. })));
    let refused = harness.launch(&[last(&PROMPT, 0)]);
    assert!(matches!(refused, Err(StepError::Dead { .. })));
}

#[test]
fn an_executor_can_be_dropped_with_steps_in_flight() {
    let (model, program) = model();
    let mut harness = Harness::new(&program, &*model.weights, Setup::default());
    harness.open(0, 256, SlotSampling::greedy());
    let first = harness.launch(&[last(&PROMPT, 0)]).unwrap();
    let second = harness.launch(&[RowPlan::produced(0).deferred()]).unwrap();
    drop((first, second));
    drop(harness);
}

#[test]
fn sampled_tokens_do_not_depend_on_batch_or_threads() {
    let (model, program) = model();
    let sampling = |slot: u32| {
        let mut sampling = SlotSampling::greedy();
        sampling.temperature = 1.0;
        sampling.top_p = 0.9;
        sampling.repetition_penalty = 1.2;
        sampling.seed = 1000 + u64::from(slot);
        sampling.history = Arc::from(PROMPT);
        sampling.history_prompt = PROMPT.len() as u32;
        sampling
    };
    let generate = |slots: &[u32], threads: usize| {
        let setup = Setup { threads, ..Setup::default() };
        let mut harness = Harness::new(&program, &*model.weights, setup);
        for slot in slots {
            harness.open(*slot, 64, sampling(*slot));
        }
        let plans: Vec<RowPlan> = slots.iter().map(|slot| last(&PROMPT, *slot)).collect();
        let mut answers = vec![sampled(&harness.run(&plans))];
        for _ in 0..12 {
            let plans: Vec<RowPlan> = slots.iter().map(|slot| RowPlan::produced(*slot)).collect();
            answers.push(sampled(&harness.run(&plans)));
        }
        answers
    };
    let together = generate(&[0, 1, 2, 3, 4, 5, 6], 3);
    for slot in 0..7 {
        let alone = generate(&[slot], 1);
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together[slot as usize], alone[0]);
        }
    }
    let first: Vec<Token> = together.iter().map(|tokens| tokens[0]).collect();
    let second: Vec<Token> = together.iter().map(|tokens| tokens[1]).collect();
    assert_ne!(first, second, "seeds make no difference");
}

#[test]
fn weights_that_do_not_fit_the_program_are_typed_errors() {
    let (model, program) = model();
    let name = "model.norm.weight";
    let mut weights = tensors(&program, &*model.weights);
    let norm = weights.remove(name).unwrap();
    let error = compile_error(&program, &weights);
    assert!(matches!(&error, BackendError::Weights(WeightsError::MissingTensor { .. })), "{error}");
    let longer = vec![1.0; norm.shape().cols() + 1];
    let longer = Tensor::from_f32(Format::F32, Shape::Vector(longer.len()), &longer).unwrap();
    weights.insert(name, longer);
    match compile_error(&program, &weights) {
        BackendError::Shape { name: found, expected, found: shape } => {
            assert_eq!((found.as_str(), shape[0]), (name, expected[0] + 1));
        }
        other => panic!("{other}"),
    }
}

/// Weights that count how often each of them is read.
#[derive(Debug)]
struct Counted<'a> {
    weights: &'a dyn Weights,
    reads: Mutex<BTreeMap<String, usize>>,
}

impl Weights for Counted<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        *self.reads.lock().unwrap().entry(name.to_owned()).or_default() += 1;
        self.weights.tensor(name)
    }

    fn describe(&self, name: &str) -> Result<(Format, Shape), WeightsError> {
        self.weights.describe(name)
    }

    fn contains(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.weights.names()
    }
}

#[test]
fn loading_reads_each_weight_once_and_an_estimate_reads_none() {
    // Of experts in blocks and scales, which are repacked whenever they are read.
    let model = open_model(&fixtures().join("tiny/gpt-oss-mxfp4")).unwrap();
    let program = model.program().unwrap();
    let counted = Counted { weights: &*model.weights, reads: Mutex::default() };
    let backend = CpuBackend::new();
    let bytes = backend.weight_bytes(&program, &counted, Compute::Exact).unwrap();
    assert!(bytes > 0 && counted.reads.lock().unwrap().is_empty());

    let programs = [program.clone(), program];
    backend.compile(&programs, &counted, &compile_options(&programs, Setup::default())).unwrap();
    let expected = programs[0].weights().iter().map(|weight| (weight.name.clone(), 1)).collect();
    assert_eq!(*counted.reads.lock().unwrap(), expected);
}

#[test]
fn options_that_make_no_sense_are_typed_errors() {
    let (model, program) = model();
    let refused = |change: &dyn Fn(&mut engine_core::backend::CompileOptions)| {
        let mut options = compile_options(std::slice::from_ref(&program), Setup::default());
        change(&mut options);
        let programs = std::slice::from_ref(&program);
        CpuBackend::new().compile(programs, &*model.weights, &options).err().unwrap()
    };
    let error = refused(&|options| options.page_size = 24);
    assert!(matches!(error, BackendError::Option { option: "page_size", .. }));
    let error = refused(&|options| options.limits.pages.clear());
    assert!(matches!(error, BackendError::Option { option: "limits.pages", .. }));
    let error = refused(&|options| options.limits.slots = 0);
    assert!(matches!(error, BackendError::Option { option: "limits", .. }));
    let error = refused(&|options| options.limits.pages = vec![u32::MAX]);
    assert!(matches!(error, BackendError::Memory { .. }));
    let error = refused(&|options| options.limits.tokens = u32::MAX);
    assert!(matches!(error, BackendError::Memory { .. }));
    let no_threads = CpuBackend::with_options(&CpuOptions::new().threads(0));
    assert!(matches!(no_threads, Err(BackendError::Option { option: "threads", .. })));
}
