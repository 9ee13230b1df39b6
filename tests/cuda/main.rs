//! NVIDIA devices as a program opens them, on the emulator: `cuda:emulate` answers as the CPU backend does.

use understory::prelude::*;

/// How far log probabilities in bfloat16 may be from those in f32.
const NOISE: f32 = 0.25;

const TOKENS: u32 = 8;

/// What `offline_batch --backend cuda --emulate` asks.
fn questions() -> Vec<String> {
    let lines = include_str!("../../examples/data/short_prompts.jsonl").lines();
    let read = |line| {
        let request: serde_json::Value = serde_json::from_str(line).expect("JSON");
        request["messages"][0]["content"].as_str().expect("a text").to_owned()
    };
    lines.map(read).collect()
}

/// The greedy answers, with the two likeliest tokens at each place.
fn answers(backend: &str) -> Vec<Output> {
    let options = EngineOptions::default()
        .compute(Compute::Exact)
        .kv_memory(KvMemory::Tokens(1024))
        .context_length(256)
        .max_running_requests(4);
    let loader = understory::load("default").backend(backend).options(options);
    let engine = loader.start().unwrap_or_else(|error| panic!("{}", one_line(&error)));
    let submit = |prompt: String| {
        let sampling = SamplingParams::greedy(TOKENS).logprobs(2).ignore_eos(true);
        let request = Request::new(vec![ChatMessage::new("user", prompt)]).sampling(sampling);
        engine.submit(request).expect("taken")
    };
    let submitted: Vec<Generation> = questions().into_iter().map(submit).collect();
    submitted.into_iter().map(|it| it.wait().expect("an answer").remove(0)).collect()
}

#[test]
fn the_bundled_model_answers_on_the_emulator_as_on_the_cpu() {
    let (expected, found) = (answers("cpu"), answers("cuda:emulate"));
    let (mut compared, mut largest) = (0, 0.0f32);
    for (expected, found) in expected.iter().zip(&found) {
        println!("{:?}, {:?}", expected.text, found.text);
        assert_eq!(found.tokens.len(), TOKENS as usize);
        for place in 0..TOKENS as usize {
            let (token, other) = (expected.tokens[place], found.tokens[place]);
            let (wanted, got) = (&expected.logprobs[place], &found.logprobs[place]);
            let margin = wanted.top[0].1 - wanted.top[1].1;
            if token != other {
                assert!(margin < 2.0 * NOISE, "{token} is ahead by {margin}, but {other} came");
                // From here on the texts differ.
                break;
            }
            let difference = (wanted.logprob - got.logprob).abs();
            assert!(difference < NOISE, "place {place}: {wanted:?}, {got:?}");
            largest = largest.max(difference);
            compared += 1;
        }
    }
    println!("{compared} tokens are equal; log probabilities differ by {largest} at most");
    assert!(compared >= expected.len() * TOKENS as usize / 2, "{compared} tokens before near ties");
}

#[test]
fn another_driver_than_the_first_is_refused() {
    let opened = |choice: &str| {
        let choice: BackendChoice = choice.parse().expect("well formed");
        choice.open(&FetchOptions::default(), &mut ()).map(|_| ())
    };
    opened("cuda:emulate").expect("the emulator");
    let wrong =
        understory::cuda::CudaOptions::new().driver(std::path::PathBuf::from("/none/libcuda.so"));
    let error = understory::cuda::CudaBackend::new(&wrong).expect_err("there is no such file");
    assert!(error.to_string().contains("loading the CUDA driver"), "{error}");
}
