//! The batch file as scripts see it: what goes in, what comes out, on a tiny model. The unit tests
//! of the example's modules run here as well.

#[path = "../examples/offline_batch/batch/mod.rs"]
mod batch;
#[path = "../examples/support/json_request.rs"]
mod json_request;

use std::future::pending;
use std::io;
use std::path::Path;

use batch::{AnswerLine, BatchError, BatchOptions, Progress, Summary};
use futures_executor::block_on;
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
    let (answers, summary, _) = answer_and_warn(engine, options, file);
    (answers, summary)
}

/// The same, and the fields that were ignored.
fn answer_and_warn(
    engine: &Engine,
    options: &BatchOptions,
    file: &[u8],
) -> (Vec<Value>, Summary, Vec<String>) {
    let mut answers = Vec::new();
    let mut output = |answer: &AnswerLine| {
        let line = serde_json::to_string(answer)?;
        assert!(!line.contains('\n'), "an answer is one line");
        answers.push(serde_json::from_str(&line)?);
        Ok(())
    };
    let (mut read, mut answered, mut ignored) = (0, 0, Vec::new());
    let mut progress = |progress| match progress {
        Progress::Read => read += 1,
        Progress::Answered { .. } => answered += 1,
        Progress::UnknownField(name) => ignored.push(name),
    };
    let input = io::Cursor::new(file.to_owned());
    let run = batch::run(engine, options, input, &mut output, &mut progress, pending());
    let summary = block_on(run).unwrap();
    assert_eq!((read, answered), (summary.requests, summary.requests));
    assert!(!summary.interrupted);
    (answers, summary, ignored)
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
{"messages": []}
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
        (2, "line 4: messages must be a list of objects with a role, one at least, not []"),
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
fn prompts_are_scored_and_what_ended_an_answer_is_told() {
    let engine = engine(|_| {});
    let scored = json!({"token_ids": [5, 6, 7, 8], "prompt_logprobs": 2, "temperature": 0, "max_tokens": 3, "ignore_eos": true});
    let (answers, _) =
        answer(&engine, &BatchOptions::default(), &lines(std::slice::from_ref(&scored)));
    let scores = answers[0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!(scores.len(), 3, "all but the first");
    for score in scores {
        assert!(score["logprob"].as_f64().unwrap() < 0.0);
        assert_eq!(score["top"].as_array().unwrap().len(), 2);
    }
    assert!(answers[0].get("stop_reason").is_none(), "nothing ended it");
    let mut stopped = scored;
    stopped["stop_token_ids"] = json!([answers[0]["token_ids"][1]]);
    let (stopped, _) = answer(&engine, &BatchOptions::default(), &lines(&[stopped]));
    assert_eq!(stopped[0]["finish_reason"], "stop");
    assert_eq!(stopped[0]["stop_reason"], answers[0]["token_ids"][1]);
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
fn fields_without_a_meaning_are_named_once_and_the_rest_counts() {
    let engine = engine(|_| {});
    let mut requests: Vec<_> = (0..30)
        .map(|number| json!({"prompt": "a", "max_tokens": 2, "ignore_eos": true, "model": "x", format!("f{number}"): 1}))
        .collect();
    requests.insert(1, json!({"prompt": "a", "max_token": 2, "user": null, "max_tokens": 1}));
    let (answers, summary, ignored) =
        answer_and_warn(&engine, &BatchOptions::default(), &lines(&requests));
    assert_eq!(summary.errors, 0);
    assert_eq!(answers[0]["usage"]["completion_tokens"], 2);
    assert_eq!(ignored[..4], ["model", "f0", "max_token", "f1"]);
    assert_eq!(ignored.len(), BatchOptions::MOST_NAMED);
}

#[test]
fn an_answer_without_a_limit_ends_at_the_stated_one() {
    let engine = engine(|options| options.context_length = Some(2048));
    let file = lines(&[json!({"prompt": "a", "ignore_eos": true})]);
    let (answers, _) = answer(&engine, &BatchOptions::default(), &file);
    let most = BatchOptions::DEFAULT_MAX_TOKENS;
    assert_eq!(most, 1024, "as --help says");
    assert_eq!(answers[0]["usage"]["completion_tokens"], most, "{}", answers[0]["error"]);
    assert_eq!(answers[0]["finish_reason"], "length");
}

#[test]
fn requests_in_openais_batch_format_are_answered_in_that_format() {
    let engine = engine(|_| {});
    let chat = json!({"model": "any", "messages": [{"role": "user", "content": [
        {"type": "text", "text": "Hi"}, {"type": "text", "text": "there"},
    ]}], "max_tokens": 90, "max_completion_tokens": 5, "ignore_eos": true, "logprobs": true,
        "top_logprobs": 2, "n": 2, "seed": 3, "stream": false});
    let text = json!({"model": "any", "prompt": ["Once"], "max_tokens": 4, "ignore_eos": true,
        "logprobs": 1, "echo": false});
    let file = lines(&[
        json!({"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": chat}),
        json!({"prompt": "between", "max_tokens": 2, "ignore_eos": true}),
        json!({"custom_id": "t", "method": "POST", "url": "/v1/completions", "body": text, "x": 1}),
        json!({"custom_id": "i", "method": "POST", "url": "/v1/completions",
            "body": {"prompt": [5, 6, 7], "max_tokens": 1}}),
    ]);
    let (answers, summary, ignored) = answer_and_warn(&engine, &BatchOptions::default(), &file);
    assert_eq!((summary.requests, summary.errors), (4, 0), "{answers:?}");
    assert_eq!(ignored, ["body.stream", "x", "body.echo"]);
    assert_eq!(answers[1]["index"], 1, "a file may mix both formats");

    for (index, (number, custom_id, object)) in
        [(0, "c", "chat.completion"), (2, "t", "text_completion"), (3, "i", "text_completion")]
            .into_iter()
            .enumerate()
    {
        let line = &answers[number];
        let fields: Vec<_> = line.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["id", "custom_id", "response", "error"], "{index}");
        assert_eq!((&line["custom_id"], &line["error"]), (&json!(custom_id), &Value::Null));
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(line["response"]["body"]["object"], object);
    }
    let body = &answers[0]["response"]["body"];
    assert_eq!(body["model"], "any");
    assert_eq!(body["usage"]["completion_tokens"], 10, "the newer name of the limit counts");
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(index), &json!("length")));
        assert_eq!(choice["message"]["role"], "assistant");
        assert!(choice["message"]["content"].is_string());
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(tokens.len(), 5);
        assert!(tokens.iter().all(|token| token["token"].is_string()
            && token["logprob"].as_f64().unwrap() < 0.0
            && token["top_logprobs"].as_array().unwrap().len() == 2));
    }
    let choice = &answers[2]["response"]["body"]["choices"][0];
    assert!(choice["text"].is_string());
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(choice["logprobs"][field].as_array().unwrap().len(), 4, "{field}");
    }
    let usage = &answers[3]["response"]["body"]["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["total_tokens"]), (&json!(3), &json!(4)));
}

#[test]
fn envelopes_that_make_no_sense_are_answered_with_their_id_and_a_reason() {
    let engine = engine(|_| {});
    let (chat, text) = ("/v1/chat/completions", "/v1/completions");
    let envelope = |url: &str, body: Value| json!({"custom_id": "a", "method": "POST", "url": url, "body": body});
    let hi = json!([{"role": "user", "content": "Hi"}]);
    let cases = [
        (envelope("/v1/embeddings", json!({"input": "a"})), "url must be"),
        (json!({"custom_id": "a", "method": "GET", "url": text, "body": {}}), "method must be"),
        (envelope(text, json!("a")), "body must be an object"),
        (envelope(text, json!({})), "exactly one of"),
        (envelope(text, json!({"prompt": ["a", "b"]})), "one text or one list"),
        (envelope(text, json!({"messages": hi})), "must be in body.prompt, not in body.messages"),
        (envelope(chat, json!({"messages": []})), "one at least"),
        (envelope(chat, json!({"prompt": "a"})), "must be in body.messages, not in body.prompt"),
        (envelope(chat, json!({"messages": hi, "top_logprobs": 2})), "true beside top_logprobs"),
        (envelope(chat, json!({"messages": hi, "temperature": -1})), "temperature must be"),
        (
            envelope(
                chat,
                json!({"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "x"}}]}]}),
            ),
            "parts of the type `text`",
        ),
    ];
    let requests: Vec<Value> = cases.iter().map(|(request, _)| request.clone()).collect();
    let (answers, summary) = answer(&engine, &BatchOptions::default(), &lines(&requests));
    assert_eq!(summary.errors, cases.len());
    for (answer, (request, reason)) in answers.iter().zip(&cases) {
        assert_eq!(answer["custom_id"], "a");
        assert_eq!(answer["response"]["status_code"], 400, "{request}");
        let message = answer["response"]["body"]["error"]["message"].as_str().unwrap();
        assert!(message.contains(reason), "{message}");
    }
    let nameless = json!({"custom_id": 7, "method": "POST", "url": text, "body": {"prompt": "a"}});
    let (answers, _) = answer(&engine, &BatchOptions::default(), &lines(&[nameless]));
    assert_eq!(answers[0]["custom_id"], Value::Null);
    let message = answers[0]["response"]["body"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("custom_id must be a text, not 7"), "{message}");
}

/// An input whose lines come one by one, each when it is sent.
struct Slow {
    lines: std::sync::mpsc::Receiver<Vec<u8>>,
}

impl io::Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Ok(line) = self.lines.recv() else { return Ok(0) };
        buffer[..line.len()].copy_from_slice(&line);
        Ok(line.len())
    }
}

#[test]
fn lines_of_a_slow_input_are_answered_as_they_come() {
    let engine = engine(|_| {});
    let (sender, lines) = std::sync::mpsc::channel();
    let line =
        |number| format!("{{\"token_ids\": [5, {number}], \"max_tokens\": 2}}\n").into_bytes();
    sender.send(line(0)).unwrap();
    let mut answered = 0;
    // Each answer brings the next line: were they held back, nothing would ever come.
    let mut output = |_: &AnswerLine| {
        answered += 1;
        if answered < 4 {
            sender.send(line(answered)).map_err(io::Error::other)?;
        }
        Ok(())
    };
    let (finished, stop) = tokio::sync::oneshot::channel::<()>();
    let mut progress = {
        let (mut count, mut finished) = (0, Some(finished));
        move |progress| {
            count += usize::from(matches!(progress, Progress::Answered { .. }));
            // The input never ends; the batch is told to.
            if count == 4
                && let Some(finished) = finished.take()
            {
                drop(finished);
            }
        }
    };
    let stop = async { drop(stop.await) };
    let input = io::BufReader::new(Slow { lines });
    let options = BatchOptions::default();
    let run = batch::run(&engine, &options, input, &mut output, &mut progress, stop);
    let summary = block_on(run).unwrap();
    assert_eq!((summary.requests, summary.interrupted), (4, true));
    assert_eq!(answered, 4);
}

#[test]
fn what_is_finished_when_a_batch_is_stopped_is_handed_out() {
    let engine = engine(|_| {});
    // The first runs for long; those after it wait for their turn in the file.
    let mut requests =
        vec![json!({"token_ids": [5], "n": 4, "max_tokens": 450, "ignore_eos": true})];
    requests.extend((0..3).map(|number| json!({"token_ids": [6, number], "max_tokens": 1})));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut stop = Some(stop);
    let mut answered = 0;
    let mut progress = |progress| {
        answered += usize::from(matches!(progress, Progress::Answered { .. }));
        if answered == 3 {
            stop.take();
        }
    };
    let mut indices = Vec::new();
    let mut output = |answer: &AnswerLine| {
        indices.push(answer.index);
        Ok(())
    };
    let options = BatchOptions::default();
    let input = io::Cursor::new(lines(&requests));
    let stopped = async { drop(stopped.await) };
    let run = batch::run(&engine, &options, input, &mut output, &mut progress, stopped);
    let summary = block_on(run).unwrap();
    assert!(summary.interrupted);
    assert_eq!(indices, [1, 2, 3]);
}

#[test]
fn the_bundled_prompts_are_requests() {
    let file = include_str!("../examples/data/prompts.jsonl");
    for line in file.lines() {
        let fields = json_request::JsonRequest::fields(line).unwrap();
        let request = json_request::JsonRequest::from_fields(fields, &SamplingParams::default());
        let request = request.unwrap();
        assert!(request.unknown.is_empty());
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
    let error =
        block_on(batch::run(&engine, &options, input, &mut |_| Ok(()), &mut |_| {}, pending()))
            .unwrap_err();
    assert!(matches!(error, BatchError::Read(_)), "{error}");

    let file = lines(&[json!({"prompt": "a", "max_tokens": 1})]);
    let mut full = |_: &AnswerLine| Err(io::Error::other("no space left"));
    let input = io::Cursor::new(file);
    let error = block_on(batch::run(&engine, &options, input, &mut full, &mut |_| {}, pending()))
        .unwrap_err();
    assert!(one_line(&error).contains("no space left"), "{error}");
}

#[test]
fn a_dead_engine_is_the_answer_to_every_line() {
    let engine = engine(|_| {});
    engine.shutdown(Shutdown::Now).unwrap();
    let envelope = json!({
        "custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "b"},
    });
    let file = lines(&[json!({"prompt": "a"}), envelope]);
    let (answers, summary) = answer(&engine, &BatchOptions::default(), &file);
    assert_eq!(summary.errors, 2);
    assert!(answers[0]["error"].as_str().unwrap().contains("shutting down"), "{}", answers[0]);
    assert_eq!(answers[1]["response"], Value::Null, "the request is not at fault");
    let message = answers[1]["error"]["message"].as_str().unwrap();
    assert!(message.contains("shutting down"), "{message}");
}

/// What each line of a file with forms is answered.
fn formed() -> Vec<Value> {
    let line = |format: Value| {
        json!({"prompt": "a", "max_tokens": 40, "seed": 3, "response_format": format}).to_string()
    };
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"], "additionalProperties": false});
    let lines = [
        line(json!({"type": "text"})),
        line(json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})),
        line(json!({"type": "regex", "pattern": "(ab|cd){3}"})),
        line(json!({"type": "choice", "choices": ["yes", "no"]})),
        line(json!({"type": "json_schema", "json_schema": {"schema": {"uniqueItems": true}}})),
        line(json!("json")),
    ];
    answer(&engine(|_| {}), &BatchOptions::default(), lines.join("\n").as_bytes()).0
}

#[test]
#[cfg(feature = "grammar")]
fn an_answer_has_the_form_that_its_line_states() {
    let answers = formed();
    assert!(answers[0]["error"].is_null());
    let document: Value = serde_json::from_str(answers[1]["text"].as_str().unwrap()).unwrap();
    assert!((0..10).contains(&document["n"].as_i64().unwrap()), "{document}");
    assert_eq!(answers[1]["finish_reason"], "stop");
    let text = answers[2]["text"].as_str().unwrap();
    assert!(text.len() == 6 && text.replace("ab", "").replace("cd", "").is_empty(), "{text}");
    assert!(["yes", "no"].contains(&answers[3]["text"].as_str().unwrap()));
    let error = answers[4]["error"].as_str().unwrap();
    assert!(error.contains("line 5") && error.contains("uniqueItems is not supported"), "{error}");
    let error = answers[5]["error"].as_str().unwrap();
    assert!(error.contains("response_format must be an object"), "{error}");
}

#[test]
#[cfg(not(feature = "grammar"))]
fn a_form_is_refused_by_a_build_without_grammars() {
    let answers = formed();
    assert!(answers[0]["error"].is_null());
    for answer in &answers[1..5] {
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains("needs a build with the feature `grammar`"), "{error}");
    }
    let error = answers[5]["error"].as_str().unwrap();
    assert!(error.contains("response_format must be an object"), "{error}");
}
