//! The batch file as scripts see it: what goes in, what comes out, on a tiny model. The unit tests
//! of the example's modules run here as well.

#[path = "../examples/offline_batch/batch/mod.rs"]
mod batch;
#[path = "../examples/support/json_request.rs"]
mod json_request;

use std::io;
use std::path::Path;

use batch::{AnswerLine, BatchError, BatchOptions, Progress, Summary};
use serde_json::{Value, json};
use understory::prelude::*;

const MODEL: &str = "tests/fixtures/tiny/llama-tied";

fn engine(set: impl FnOnce(&mut EngineOptions)) -> Engine {
    let backend = BackendChoice::Cpu { threads: Some(1) };
    let backend = backend.open(&FetchOptions::default(), &mut ()).unwrap();
    let mut options = EngineOptions::default();
    options.page_size = Some(4);
    options.kv_memory = KvMemory::Tokens(4096);
    options.max_running_requests = Some(8);
    set(&mut options);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL);
    Engine::builder().options(options).load(path, backend.as_ref(), &mut ()).unwrap()
}

/// The answers to a batch file, and their sum.
fn answer(engine: &Engine, options: &BatchOptions, file: &[u8]) -> (Vec<Value>, Summary) {
    let mut answers = Vec::new();
    let mut output = |answer: &AnswerLine| {
        let line = serde_json::to_string(answer)?;
        assert!(!line.contains('\n'), "an answer is one line");
        answers.push(serde_json::from_str(&line)?);
        Ok(())
    };
    let (mut read, mut answered) = (0, 0);
    let mut progress = |progress| match progress {
        Progress::Read => read += 1,
        Progress::Answered { .. } => answered += 1,
    };
    let summary = batch::run(engine, options, file, &mut output, &mut progress).unwrap();
    assert_eq!((read, answered), (summary.requests, summary.requests));
    (answers, summary)
}

fn lines(requests: &[Value]) -> Vec<u8> {
    requests.iter().flat_map(|request| format!("{request}\n").into_bytes()).collect()
}

#[test]
fn each_way_of_writing_a_prompt_is_answered_in_order() {
    let engine = engine(|_| {});
    let file = lines(&[
        json!({"prompt": "Once upon a time", "max_tokens": 30, "ignore_eos": true}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}),
        json!({"token_ids": [5, 6, 7], "max_tokens": 9, "ignore_eos": true}),
    ]);
    let (answers, summary) = answer(&engine, &BatchOptions::default(), &file);
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer["index"], index);
        assert_eq!(answer["error"], Value::Null);
        let tokens = answer["token_ids"].as_array().unwrap().len();
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
        assert!(answer["ttft_ms"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(answers[0]["token_ids"].as_array().unwrap().len(), 30);
    assert_eq!(answers[2]["usage"]["prompt_tokens"], 3);
    assert_eq!(answers[2]["finish_reason"], "length");
    assert_eq!((summary.requests, summary.errors), (3, 0));
    assert!(summary.itl_ms.p99 >= summary.itl_ms.p50 && summary.itl_ms.p50.is_some());
    let total: u64 =
        answers.iter().map(|answer| answer["usage"]["completion_tokens"].as_u64().unwrap()).sum();
    assert_eq!(summary.completion_tokens, total);
}

#[test]
fn bad_lines_are_answered_with_errors_and_the_others_are_served() {
    let engine = engine(|_| {});
    let mut file = br#"
{"prompt": "fine", "max_tokens": 2, "ignore_eos": true}
{"prompt": "cut
{"prompt": "a", "max_token": 2}
{"prompt": "a", "temperature": -1}
{"prompt": "a", "token_ids": [1]}
{"token_ids": [999999]}
{"token_ids": []}
{"prompt": "a", "stop": ""}
"#
    .to_vec();
    let too_long = json!({"token_ids": vec![5; 600]});
    file.extend(format!("{too_long}\n").into_bytes());
    file.extend(b"\xff\n");
    file.extend(br#"{"prompt": "fine too", "max_tokens": 2, "ignore_eos": true}"#);

    let (answers, summary) = answer(&engine, &BatchOptions::default(), &file);
    let indices: Vec<_> = answers.iter().map(|answer| answer["index"].clone()).collect();
    assert_eq!(indices, (0..11).map(Value::from).collect::<Vec<_>>());
    for good in [0, 10] {
        assert_eq!(answers[good]["usage"]["completion_tokens"], 2, "{}", answers[good]);
    }
    let expected = [
        (1, "line 3: it is not JSON"),
        (2, "line 4: there is no field \"max_token\""),
        (3, "line 5: temperature must be"),
        (4, "line 6: it must have exactly one of prompt, messages and token_ids"),
        (5, "line 7: prompt token 0 is 999999"),
        (6, "line 8: "),
        (7, "line 9: stop string 0 is empty"),
        (8, "line 10: "),
        (9, "line 11: it is not UTF-8"),
    ];
    for (index, start) in expected {
        let error = answers[index]["error"].as_str().unwrap();
        assert!(error.starts_with(start), "{error}");
        assert_eq!(answers[index].as_object().unwrap().len(), 2, "index and error only");
    }
    assert_eq!((summary.requests, summary.errors), (11, 9));
}

#[test]
fn more_requests_than_the_queue_takes_are_all_answered_in_order() {
    let engine = engine(|options| {
        options.max_queued_requests = 3;
        options.max_running_requests = Some(2);
    });
    let requests: Vec<_> = (0..40)
        .map(|number| {
            json!({"token_ids": [5, 6, number], "max_tokens": 1 + number % 7, "ignore_eos": true})
        })
        .collect();
    let (answers, summary) = answer(&engine, &BatchOptions::default(), &lines(&requests));
    assert_eq!((summary.requests, summary.errors), (40, 0));
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer["index"], index);
        assert_eq!(answer["usage"]["completion_tokens"], 1 + index % 7);
    }
}

#[test]
fn a_request_for_more_samples_than_the_queue_holds_is_its_own_error() {
    let engine = engine(|options| options.max_queued_requests = 3);
    let file = lines(&[
        json!({"prompt": "a", "n": 4, "max_tokens": 2}),
        json!({"prompt": "a", "n": 3, "max_tokens": 2, "ignore_eos": true}),
    ]);
    let (answers, _) = answer(&engine, &BatchOptions::default(), &file);
    let error = answers[0]["error"].as_str().unwrap();
    assert!(error.contains("the queue is full"), "{error}");
    assert_eq!(answers[1]["usage"]["completion_tokens"], 6);
}

#[test]
fn several_samples_are_choices_of_one_answer() {
    let engine = engine(|_| {});
    let prompt: Vec<u32> = (5..25).collect();
    let file = lines(&[json!({
        "token_ids": prompt, "n": 3, "seed": 7, "max_tokens": 12, "ignore_eos": true, "logprobs": 2,
    })]);
    let (answers, _) = answer(&engine, &BatchOptions::default(), &file);
    let choices = answers[0]["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let tokens = choice["token_ids"].as_array().unwrap();
        let logprobs = choice["logprobs"].as_array().unwrap();
        assert_eq!((tokens.len(), logprobs.len()), (12, 12));
        for (token, logprob) in tokens.iter().zip(logprobs) {
            assert_eq!(&logprob["token_id"], token);
            assert!(logprob["logprob"].as_f64().unwrap() < 0.0);
            assert_eq!(logprob["top"].as_array().unwrap().len(), 2);
        }
    }
    assert_ne!(choices[0]["token_ids"], choices[1]["token_ids"]);
    assert_eq!(answers[0]["token_ids"], choices[0]["token_ids"]);
    let expected = json!({"prompt_tokens": 20, "cached_tokens": 0, "completion_tokens": 36});
    assert_eq!(answers[0]["usage"], expected);
}

#[test]
fn the_command_line_limits_what_lines_ask_for() {
    let engine = engine(|_| {});
    let line = |seed: u32| {
        json!({
            "prompt": "a b c", "max_tokens": 50, "min_tokens": 20, "temperature": 2, "seed": seed,
        })
    };
    let options = BatchOptions { max_tokens: Some(6), greedy: true, ..BatchOptions::default() };
    let (answers, _) = answer(&engine, &options, &lines(&[line(1), line(2)]));
    assert_eq!(answers[0]["usage"]["completion_tokens"], 6);
    assert_eq!(answers[0]["token_ids"], answers[1]["token_ids"], "greedy ignores the seed");
    let (answers, _) = answer(&engine, &BatchOptions::default(), &lines(&[line(1), line(2)]));
    assert_ne!(answers[0]["token_ids"], answers[1]["token_ids"], "but otherwise it counts");
}

#[test]
fn prefixes_are_shared_within_a_namespace_only() {
    let engine = engine(|_| {});
    let prompt: Vec<u32> = (5..46).collect();
    let cached = |namespace: Value| {
        let request = json!({"token_ids": prompt, "max_tokens": 1, "namespace": namespace});
        let (answers, summary) = answer(&engine, &BatchOptions::default(), &lines(&[request]));
        assert_eq!(answers[0]["usage"]["cached_tokens"], summary.cached_tokens);
        summary.cached_tokens
    };
    assert_eq!(cached(Value::Null), 0);
    assert_eq!(cached(Value::Null), 40);
    assert_eq!(cached(json!("tenant")), 0);
    assert_eq!(cached(json!("tenant")), 40);
}

#[test]
fn the_bundled_prompts_are_requests() {
    let file = include_str!("../examples/data/prompts.jsonl");
    for line in file.lines() {
        let request = json_request::JsonRequest::parse(line, &SamplingParams::default()).unwrap();
        assert!(request.sampling.max_tokens.is_some_and(|max| max <= 128), "{line}");
    }
    assert_eq!(file.lines().count(), 64);
}

#[test]
fn files_that_fail_end_the_batch_with_an_error() {
    struct Broken;
    impl io::Read for Broken {
        fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("unplugged"))
        }
    }
    let engine = engine(|_| {});
    let options = BatchOptions::default();
    let input = io::BufReader::new(Broken);
    let error = batch::run(&engine, &options, input, &mut |_| Ok(()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, BatchError::Read(_)), "{error}");

    let file = lines(&[json!({"prompt": "a", "max_tokens": 1})]);
    let mut full = |_: &AnswerLine| Err(io::Error::other("no space left"));
    let error = batch::run(&engine, &options, &file[..], &mut full, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
}

#[test]
fn a_dead_engine_is_the_answer_to_every_line() {
    let engine = engine(|_| {});
    engine.shutdown(Shutdown::Now).unwrap();
    let file = lines(&[json!({"prompt": "a"}), json!({"prompt": "b"})]);
    let (answers, summary) = answer(&engine, &BatchOptions::default(), &file);
    assert_eq!(summary.errors, 2);
    assert!(answers[1]["error"].as_str().unwrap().contains("shutting down"), "{}", answers[1]);
}
