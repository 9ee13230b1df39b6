//! Reduced precisions and KV formats: a row's result depends on the row alone in each of them.

mod support;

use backend_cpu::{CpuBackend, CpuOptions, InstructionSet};
use engine_core::{
    PageId, Token,
    backend::{
        Backend, Compute, GroupId, KvFormat, SharedPrefix, SlotId, SlotSampling, Span, StepResult,
    },
    model::{LoadedModel, open_model},
};
use support::{Ask, Harness, RowPlan, Setup, compile_options, fixtures};

/// A precision and a KV format, on a checkpoint that has products in it.
const MODES: [(&str, Compute, KvFormat); 8] = [
    ("tiny-gguf/llama-quantized.gguf", Compute::Int8, KvFormat::F32),
    ("tiny-gguf/llama-quantized.gguf", Compute::Int8, KvFormat::Int8),
    ("tiny-gguf/llama-quantized.gguf", Compute::Auto, KvFormat::Bf16),
    ("tiny/llama-tied", Compute::Int8, KvFormat::Bf16),
    ("tiny/llama-tied", Compute::Bf16, KvFormat::Bf16),
    ("tiny/llama-tied", Compute::Bf16, KvFormat::F16),
    ("tiny/llama-tied", Compute::Exact, KvFormat::Bf16),
    ("tiny/llama-tied", Compute::Exact, KvFormat::F32),
];

fn open(name: &str) -> LoadedModel {
    open_model(&fixtures().join(name)).unwrap()
}

fn text(seed: u32, len: usize) -> Vec<Token> {
    (0..len as u32).map(|i| (i * 7919 + seed * 104_729 + i * i * 31) % 250).collect()
}

fn harness(model: &LoadedModel, setup: Setup, (compute, kv): (Compute, KvFormat)) -> Harness {
    let programs = [model.program().unwrap()];
    let mut options = compile_options(&programs, setup);
    (options.compute, options.kv_format) = (compute, kv);
    let mut cpu = CpuOptions::new().threads(setup.threads);
    cpu.instruction_set = setup.set;
    let backend = CpuBackend::with_options(&cpu).unwrap();
    Harness::on(&backend, &programs, &*model.weights, &options)
}

/// Log probabilities of the tokens of each text, bit for bit, computed together in chunks.
fn scores(harness: &mut Harness, texts: &[&[Token]], chunk: usize) -> Vec<Vec<u32>> {
    for (slot, text) in (0..).zip(texts) {
        harness.open(slot, text.len() as u32, SlotSampling::greedy());
    }
    let mut scores = vec![Vec::new(); texts.len()];
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    for start in (0..longest - 1).step_by(chunk) {
        let mut plans = Vec::new();
        let mut slots = Vec::new();
        for (slot, text) in texts.iter().enumerate() {
            let end = (start + chunk).min(text.len() - 1);
            if start < end {
                let ask = Ask::Score(text[start + 1..end + 1].to_vec(), 1);
                plans.push(RowPlan::known(
                    slot as u32,
                    &text[start..end],
                    vec![(0..end - start, ask)],
                ));
                slots.push(slot);
            }
        }
        let result = harness.run(&plans);
        for (slot, output) in slots.into_iter().zip(&result.outputs) {
            scores[slot].extend(result.tokens_of(output).iter().map(|it| it.logprob.to_bits()));
        }
    }
    scores
}

#[test]
fn scores_depend_on_the_text_alone_in_every_precision() {
    for (name, compute, kv) in MODES {
        let model = open(name);
        let texts = [text(1, 150), text(2, 40), text(3, 97)];
        let texts: Vec<&[Token]> = texts.iter().map(Vec::as_slice).collect();
        for set in InstructionSet::ALL {
            let cpu = CpuOptions::new().instruction_set(set);
            if CpuBackend::with_options(&cpu).is_err() {
                continue;
            }
            let setup = |threads, page_size| Setup {
                threads,
                page_size,
                set: Some(set),
                ..Setup::default()
            };
            let score = |setup, texts: &[&[Token]], chunk| {
                scores(&mut harness(&model, setup, (compute, kv)), texts, chunk)
            };
            let alone: Vec<Vec<u32>> =
                texts.iter().map(|text| score(setup(1, 16), &[*text], 64).remove(0)).collect();
            for (threads, page_size, chunk) in [(2, 16, 64), (3, 1, 13), (2, 128, 1)] {
                let together = score(setup(threads, page_size), &texts, chunk);
                assert_eq!(together, alone, "{name} {compute} {kv} {set}, chunks of {chunk}");
            }
        }
    }
}

/// Decodes rows that share 256 tokens, some steps, and returns log probabilities.
fn decode_shared(mut harness: Harness, hinted: bool) -> Vec<u32> {
    let prefix = text(9, 256);
    harness.open(0, 320, SlotSampling::greedy());
    harness.run(&[RowPlan::known(0, &prefix, Vec::new())]);
    let group = GroupId(0);
    let pages: Vec<PageId> = harness.slots.pages(SlotId(0), group)[..16].to_vec();
    for slot in 1..5 {
        harness.open(slot, 320, SlotSampling::greedy());
        harness.slots.pages_mut(SlotId(slot), group)[..16].copy_from_slice(&pages);
        harness.set_position(slot, 256);
    }
    let tails: Vec<Vec<Token>> = (0..5).map(|slot| text(20 + slot, 3 + slot as usize)).collect();
    let plans: Vec<RowPlan> =
        (0..).zip(&tails).map(|(slot, tail)| RowPlan::known(slot, tail, Vec::new())).collect();
    harness.run(&plans);
    if hinted {
        harness.shared = vec![SharedPrefix { rows: Span { start: 0, len: 5 }, pages: 16 }];
    }
    let mut scores = Vec::new();
    for step in 0..4 {
        let plans: Vec<RowPlan> = (0..5)
            .map(|slot| {
                let ask = Ask::Score(vec![slot + step], 1);
                RowPlan::known(slot, &[slot * 7 + step], vec![(0..1, ask)])
            })
            .collect();
        let result: StepResult = harness.run(&plans);
        scores.extend(result.tokens.iter().map(|it| it.logprob.to_bits()));
    }
    scores
}

#[test]
fn reading_a_shared_prefix_once_changes_no_bit() {
    for (name, compute, kv) in MODES {
        let model = open(name);
        let make = || harness(&model, Setup::default(), (compute, kv));
        assert_eq!(
            decode_shared(make(), true),
            decode_shared(make(), false),
            "{name} {compute} {kv}"
        );
    }
}

#[test]
fn a_long_context_that_is_split_over_threads_changes_no_bit() {
    for (name, compute, kv) in MODES {
        let model = open(name);
        let long = text(4, 1300);
        let last = |threads| {
            let setup = Setup { threads, ..Setup::default() };
            let mut harness = harness(&model, setup, (compute, kv));
            harness.open(0, 1400, SlotSampling::greedy());
            harness.run(&[RowPlan::known(0, &long, Vec::new())]);
            let scores = (0..3).map(|step| {
                let ask = Ask::Score(vec![step], 1);
                let result = harness.run(&[RowPlan::known(0, &[step * 3], vec![(0..1, ask)])]);
                result.tokens[0].logprob.to_bits()
            });
            scores.collect::<Vec<u32>>()
        };
        assert_eq!(last(1), last(3), "{name} {compute} {kv}");
    }
}

#[test]
fn auto_computes_quantized_weights_in_bytes_where_these_are_fast() {
    let model = open("tiny-gguf/llama-quantized.gguf");
    let texts = [text(1, 60)];
    let score = |set, compute| {
        let setup = Setup { set: Some(set), ..Setup::default() };
        let mut harness = harness(&model, setup, (compute, KvFormat::F32));
        scores(&mut harness, &[&texts[0]], 64)
    };
    for set in InstructionSet::ALL {
        let Ok(backend) = CpuBackend::with_options(&CpuOptions::new().instruction_set(set)) else {
            continue;
        };
        let is_fast = backend.capabilities().fast_computes.contains(&Compute::Int8);
        assert_eq!(is_fast, set != InstructionSet::Portable);
        let expected = if is_fast { Compute::Int8 } else { Compute::Exact };
        assert_eq!(score(set, Compute::Auto), score(set, expected), "{set}");
        assert_ne!(score(set, Compute::Int8), score(set, Compute::Exact), "{set}");
    }
}

#[test]
fn a_page_costs_half_in_sixteen_bits_and_a_quarter_in_eight_with_scales() {
    let program = open("tiny/llama-tied").program().unwrap();
    let backend = CpuBackend::new();
    let bytes = |format| backend.page_bytes(&program, GroupId(0), 16, format);
    let group = &program.groups()[0];
    let scales = 2 * 4 * 16 * u64::from(group.kv_heads) * u64::from(group.layers);
    assert_eq!(bytes(KvFormat::F16) * 2, bytes(KvFormat::F32));
    assert_eq!(bytes(KvFormat::Bf16) * 2, bytes(KvFormat::F32));
    assert_eq!((bytes(KvFormat::Int8) - scales) * 4, bytes(KvFormat::F32));
}

#[test]
fn an_executor_takes_what_its_backend_says_beforehand() {
    let backend = CpuBackend::with_options(&CpuOptions::new().threads(2)).unwrap();
    let mixtures = [
        ("tiny-gguf/mixtral.gguf", Compute::Int8, KvFormat::Bf16),
        ("tiny-gguf/mixtral.gguf", Compute::Exact, KvFormat::F32),
    ];
    for (name, compute, kv) in MODES.into_iter().chain(mixtures) {
        let model = open(name);
        let programs = [model.program().unwrap()];
        let activations = [512, 4096].map(|context| {
            let mut options = compile_options(&programs, Setup::default());
            (options.compute, options.kv_format) = (compute, kv);
            options.context_length = context;
            let told = backend.footprint(&programs, &*model.weights, &options).unwrap();
            let executor = backend.compile(&programs, &*model.weights, &options).unwrap();
            assert_eq!(executor.footprint(), Some(told), "{name} {compute} {kv}");
            told.activations
        });
        // Longer contexts are split, into blocks with a state each, unless windows keep them short.
        let splits = programs[0].groups().iter().any(|group| group.window.is_none());
        assert_eq!(activations[0] < activations[1], splits, "{name} {compute} {kv}");
    }
}
