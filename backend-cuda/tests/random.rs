//! Random requests to small models, some of them with windows: the tokens are those of the CPU however the engine is set up,
//! and those that the device samples are those that the host samples.

mod stand_in;

use backend_cpu::CpuBackend;
use backend_cuda::CudaOptions;
use engine_core::Token;
use engine_core::backend::Backend;
use engine_core::engine::{Engine, EngineOptions, Generation, KvMemory};
use engine_core::request::{Output, Request, SamplingParams};
use engine_core::schedule::Speculation;
use stand_in::{engine_of, options};
use testkit::random::Random;

/// How far log probabilities in f16 may be from those in f32.
const NOISE: f32 = 0.05;
const ANSWER: u32 = 8;
/// Full attention, windows in all layers and in some, soft caps, experts.
const MODELS: [(&str, usize); 5] =
    [("llama-tied", 384), ("mistral", 96), ("gemma3", 96), ("gemma2", 160), ("mixtral", 96)];

/// Ways to set up an engine, none of which changes a token.
const CHANGES: [fn(EngineOptions) -> EngineOptions; 4] = [
    |options| options,
    |options| options.overlap(false).cache(false).page_size(64),
    |options| {
        let mut options = options.chunked_prefill_size(16).page_size(1);
        options.retract_every = Some(3);
        options
    },
    |options| options.speculation(Speculation::default()).kv_memory(KvMemory::Tokens(256)),
];

/// Prompts of random lengths, many of which begin alike.
fn prompts(random: &mut Random, vocabulary: usize) -> Vec<Vec<Token>> {
    let mut token = || 3 + random.below(vocabulary - 3) as Token;
    let beginnings: Vec<Vec<Token>> = (0..2).map(|_| (0..50).map(|_| token()).collect()).collect();
    let mut prompt = |n: usize| {
        let mut prompt = beginnings[n % 2][..random.below(51)].to_vec();
        prompt
            .extend((0..random.between(1, 30)).map(|_| 3 + random.below(vocabulary - 3) as Token));
        prompt
    };
    (0..8).map(&mut prompt).collect()
}

fn answers(
    engine: &Engine,
    prompts: &[Vec<Token>],
    sampling: impl Fn(usize) -> SamplingParams,
) -> Vec<Output> {
    let submit = |(n, prompt): (usize, &Vec<Token>)| {
        engine.submit(Request::new(prompt.clone()).sampling(sampling(n))).expect("taken")
    };
    let submitted: Vec<Generation> = prompts.iter().enumerate().map(submit).collect();
    submitted.into_iter().map(|it| it.wait().expect("an answer").remove(0)).collect()
}

#[test]
fn random_requests_are_continued_as_on_the_cpu_however_the_engine_is_set_up() {
    let backend = stand_in::backend(CudaOptions::new().half(true));
    let greedy = || SamplingParams::greedy(ANSWER).ignore_eos(true);
    for (seed, (model, vocabulary)) in (1..).zip(MODELS) {
        let prompts = prompts(&mut Random::new(seed), vocabulary);
        let start = |backend: &dyn Backend, options| engine_of(model, backend, options);
        let reference = start(&CpuBackend::new(), options());
        let expected = answers(&reference, &prompts, |_| greedy().logprobs(2));
        for (number, change) in CHANGES.into_iter().enumerate() {
            let engine = start(&backend, change(options()));
            let found = answers(&engine, &prompts, |_| greedy());
            let mut compared = 0;
            for (expected, found) in expected.iter().zip(&found) {
                assert_eq!(found.tokens.len(), ANSWER as usize);
                for (place, (token, other)) in expected.tokens.iter().zip(&found.tokens).enumerate()
                {
                    let top = &expected.logprobs[place].top;
                    let margin = top[0].1 - top[1].1;
                    let what =
                        format!("{model}, change {number}, place {place}: {other}, not {token}");
                    assert!(token == other || margin < 2.0 * NOISE, "{what}, ahead by {margin}");
                    if token != other {
                        // From here on the texts differ.
                        break;
                    }
                    compared += 1;
                }
            }
            let all = prompts.len() * ANSWER as usize;
            assert!(compared > all / 2, "{model}, change {number}: {compared} of {all}");
            let snapshot = engine.snapshot();
            assert!(number != 0 || snapshot.scheduler.cached_tokens > 0, "{snapshot:?}");
            assert!(number != 2 || snapshot.scheduler.retractions > 0, "{snapshot:?}");
        }
    }
}

/// Parameters that the device samples by; `n` chooses.
fn sampled(n: usize) -> SamplingParams {
    let params = SamplingParams::default().max_tokens(ANSWER).ignore_eos(true).seed(n as u64 + 7);
    match n {
        0 => params,
        1 => params.temperature(0.3),
        2 => params.temperature(1.7).top_k(20),
        3 => params.top_p(0.8),
        4 => params.min_p(0.02),
        5 => params.temperature(0.9).top_k(50).top_p(0.9).min_p(0.01),
        6 => params.temperature(1e-3),
        _ => params.temperature(100.0).top_k(2),
    }
}

#[test]
fn the_device_samples_the_tokens_that_the_host_samples() {
    let backend = stand_in::backend(CudaOptions::new().half(true));
    let (model, vocabulary) = MODELS[0];
    let prompts = prompts(&mut Random::new(11), vocabulary);
    // One request at a time: the logits are the same to the bit.
    let alone = || options().max_running_requests(1).cache(false);
    let run = |options, logprobs: Option<u8>| {
        let engine = engine_of(model, &backend, options);
        answers(&engine, &prompts, |n| sampled(n).logprobs(logprobs))
    };
    let of_the_host = run(alone(), Some(1));
    for overlap in [true, false] {
        let of_the_device = run(alone().overlap(overlap), None);
        for (n, (host, device)) in of_the_host.iter().zip(&of_the_device).enumerate() {
            assert_eq!(host.tokens, device.tokens, "request {n}");
        }
    }
}
