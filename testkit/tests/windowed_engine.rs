//! Models with windowed layers through the whole engine: pages of their own change no token.
//!
//! Each model is built twice: once with a windowed page group, whose pages are let go, and once
//! with all KV in one full group, where attention masks what the window has left. Weights are the
//! same, and so is each operation's arithmetic, so the answers are equal to the bit.

use engine_core::Token;
use engine_core::backend::GroupId;
use engine_core::engine::{Engine, EngineOptions, KvMemory, Shutdown};
use engine_core::model::{Activation, AttentionOptions, Program, ProgramBuilder, Split};
use engine_core::request::{Request, SamplingParams};
use engine_core::schedule::Speculation;
use engine_core::weights::{Format, MapWeights, Shape, Tensor};
use testkit::interpreter::Interpreter;
use testkit::random::Random;
use testkit::shadow::ShadowBackend;

const VOCABULARY: u32 = 64;
const WIDTH: usize = 16;
const HEAD: u32 = 8;
const WINDOW: u32 = 12;
const PAGE: usize = 4;
const CONTEXT: usize = 160;

/// A decoder whose layers are windowed where the pattern says so. With `groups`, windowed layers
/// have a page group of their own; otherwise all share one, and are masked.
fn decoder(pattern: &[bool], groups: bool) -> Program {
    let mut b = ProgramBuilder::new("windowed toy", VOCABULARY);
    let has_full = pattern.contains(&false);
    let full = (has_full || !groups).then(|| b.page_group(1, HEAD, None));
    let windowed = groups.then(|| b.page_group(1, HEAD, Some(WINDOW)));
    let mut x = b.embed("embed", WIDTH, 1.0);
    for (layer, &is_windowed) in pattern.iter().enumerate() {
        let name = |part: &str| format!("layer.{layer}.{part}");
        let h = b.rms_norm(x, &name("norm"), 1e-5);
        let query = b.linear(h, &name("q"), 2 * HEAD as usize, Split::Columns);
        let key = b.linear(h, &name("k"), HEAD as usize, Split::Columns);
        let value = b.linear(h, &name("v"), HEAD as usize, Split::Columns);
        let mut options = AttentionOptions::full(HEAD);
        options.window = is_windowed.then_some(WINDOW);
        let group = if is_windowed { windowed.or(full) } else { full };
        options.group = group.unwrap_or(GroupId(0));
        let attended = b.attention(query, key, value, &options);
        let o = b.linear(attended, &name("o"), WIDTH, Split::Rows);
        x = b.add(x, o);
        let h = b.rms_norm(x, &name("norm2"), 1e-5);
        let gate = b.linear(h, &name("gate"), WIDTH, Split::Columns);
        let up = b.linear(h, &name("up"), WIDTH, Split::Columns);
        let act = b.gated_activation(gate, up, Activation::GeluTanh);
        let down = b.linear(act, &name("down"), WIDTH, Split::Rows);
        x = b.add(x, down);
    }
    let x = b.rms_norm(x, "norm", 1e-5);
    let x = b.select_outputs(x);
    b.finish_with_logits(x, "embed", Some(30.0)).unwrap()
}

fn weights(program: &Program) -> MapWeights {
    let mut weights = MapWeights::new();
    for weight in program.weights() {
        // By name, so that both forms of a model have the same.
        let seed =
            weight.name.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31) ^ u64::from(byte));
        let mut random = Random::new(seed);
        let shape = match weight.shape[..] {
            [rows, columns] => Shape::matrix(rows, columns),
            _ => Shape::Vector(weight.shape.iter().product()),
        };
        let scale = if weight.shape.len() == 2 { 0.002 } else { 0.0 };
        let base = if weight.shape.len() == 2 { 0.0 } else { 1.0 };
        let mut value = || base + scale * (random.below(1000) as f32 - 500.0);
        let values: Vec<f32> = (0..shape.rows() * shape.cols()).map(|_| value()).collect();
        weights.insert(weight.name.clone(), Tensor::from_f32(Format::F32, shape, &values).unwrap());
    }
    weights
}

fn options(memory: KvMemory) -> EngineOptions {
    EngineOptions::default()
        .page_size(PAGE)
        .max_running_requests(4)
        .chunked_prefill_size(16)
        .kv_memory(memory)
}

/// Prompts that share beginnings, greedy and sampled, some much longer than the window.
fn requests() -> Vec<Request> {
    let mut random = Random::new(3);
    let mut tokens = |count: usize| -> Vec<Token> {
        (0..count).map(|_| random.below(VOCABULARY as usize) as Token).collect()
    };
    let stem = tokens(60);
    let mut prompts: Vec<Vec<Token>> = Vec::new();
    for (shared, own) in [(60, 10), (60, 3), (32, 50), (0, 9), (60, 10), (44, 20), (60, 40)] {
        prompts.push([&stem[..shared], &tokens(own)].concat());
    }
    let samplings = (0..).map(|index: u64| {
        let mut sampling = SamplingParams::greedy(40);
        sampling.ignore_eos = true;
        if index.is_multiple_of(2) {
            sampling.temperature = 0.8;
            sampling.seed = Some(index);
        }
        sampling
    });
    let all = prompts.into_iter().zip(samplings);
    all.map(|(prompt, sampling)| Request::new(prompt).sampling(sampling)).collect()
}

fn answers(program: Program, options: EngineOptions) -> Vec<Vec<Token>> {
    let weights = weights(&program);
    let builder = Engine::builder().options(options).model_context(CONTEXT);
    let engine = builder.build(program, &weights, &Interpreter, &mut ()).unwrap();
    let mut all = Vec::new();
    // Twice: the second time beginnings are cached.
    for _ in 0..2 {
        let running = engine.submit_all(requests()).unwrap();
        for generation in running {
            all.extend(generation.wait().unwrap().into_iter().map(|output| output.tokens));
        }
    }
    engine.shutdown(Shutdown::Drain).unwrap();
    assert_eq!(engine.snapshot().windowed_pages.in_use(), 0);
    all
}

const GEMMA_LIKE: &[bool] = &[true, false, true, false];
const FIVE_TO_ONE: &[bool] = &[true, true, true, true, true, false];

#[test]
fn two_groups_generate_what_one_masked_group_generates() {
    for pattern in [GEMMA_LIKE, FIVE_TO_ONE] {
        let masked = answers(decoder(pattern, false), options(KvMemory::Tokens(2000)));
        for memory in [KvMemory::Tokens(2000), KvMemory::Tokens(200)] {
            assert_eq!(answers(decoder(pattern, true), options(memory)), masked);
        }
    }
}

#[test]
fn windowed_layers_alone_generate_what_one_masked_group_generates() {
    let masked = answers(decoder(&[true, true], false), options(KvMemory::Tokens(2000)));
    let bytes = |pages: u64| KvMemory::Bytes(pages * 2 * 2 * 4 * u64::from(HEAD) * PAGE as u64);
    for memory in [KvMemory::Tokens(2000), bytes(20), bytes(100)] {
        assert_eq!(answers(decoder(&[true, true], true), options(memory)), masked);
    }
}

#[test]
fn speculation_changes_no_token_of_a_windowed_model() {
    let plain = answers(decoder(GEMMA_LIKE, true), options(KvMemory::Tokens(400)));
    let mut speculation = Speculation::default();
    speculation.min_match = 1;
    let speculating = options(KvMemory::Tokens(400)).speculation(speculation);
    assert_eq!(answers(decoder(GEMMA_LIKE, true), speculating), plain);
}

#[test]
fn a_long_answer_keeps_a_window_of_pages_and_not_more() {
    let program = decoder(GEMMA_LIKE, true);
    let weights = weights(&program);
    let shadow = ShadowBackend::new();
    let builder = Engine::builder().options(options(KvMemory::Tokens(4000))).model_context(2000);
    let engine = builder.build(program, &weights, &shadow, &mut ()).unwrap();
    let mut sampling = SamplingParams::greedy(1500);
    sampling.ignore_eos = true;
    let generation = engine.submit(Request::new(vec![1, 2, 3]).sampling(sampling)).unwrap();
    let mut peak = 0;
    let output = loop {
        peak = peak.max(engine.snapshot().windowed_pages.in_use());
        if engine.snapshot().scheduler.generated_tokens >= 1500 {
            break generation.wait().unwrap();
        }
        std::thread::yield_now();
    };
    assert_eq!(output[0].tokens.len(), 1500);
    assert_eq!(shadow.ledger().violations(), []);
    // The window, the page that is filled, the next one, and those of two steps' chunks.
    let most = (WINDOW as usize - 1).div_ceil(PAGE) + 2 + 2 * 16 / PAGE;
    assert!(peak <= most, "{peak} pages, where {most} are enough");
    let limits = engine.limits();
    assert!(limits.windowed_pages < limits.pages, "{limits:?}");
}

#[test]
fn a_host_tier_beside_windowed_groups_is_refused_with_the_reason() {
    let program = decoder(GEMMA_LIKE, true);
    let weights = weights(&program);
    let options = options(KvMemory::Tokens(400)).host_kv_memory(KvMemory::Tokens(400));
    let builder = Engine::builder().options(options).model_context(CONTEXT);
    let error = builder.build(program, &weights, &ShadowBackend::new(), &mut ()).unwrap_err();
    assert!(error.to_string().contains("window"), "{error}");
}
