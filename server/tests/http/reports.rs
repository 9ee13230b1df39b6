//! Reports from the field about other servers, each as a test.

use std::net::Shutdown as Half;
use std::time::Duration;

use serde_json::{Value, json};
use understory_server::ServerOptions;

use super::support::{Running, engine_options, finishes, said};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn hello(more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "hello there"}],
        "temperature": 0, "max_tokens": 24, "ignore_eos": true,
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body
}

fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// sgl-project/sglang#954, ollama/ollama#4448.
#[test]
fn usage_comes_in_a_chunk_of_its_own_and_only_where_asked_for() {
    let server = Running::tiny();
    let whole = server.post(CHAT, &hello(json!({}))).json();
    let with = streamed(hello(json!({"stream_options": {"include_usage": true}})));
    let mut events = server.stream(CHAT, &with);
    let last = events.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][count], whole["usage"][count]);
    }
    for event in &events {
        assert_eq!(event.get("usage"), Some(&Value::Null));
        assert_eq!(event["choices"].as_array().unwrap().len(), 1);
    }
    for event in server.stream(CHAT, &streamed(hello(json!({})))) {
        assert_eq!(event.get("usage"), None);
        assert_eq!(event["choices"].as_array().unwrap().len(), 1);
    }
}

/// vllm-project/vllm#3574, sgl-project/sglang#11462, osaurus-ai/vmlx-swift#109.
#[test]
fn nothing_of_a_stop_string_is_shown_and_nothing_behind_it() {
    let server = Running::tiny();
    let whole = content(&server.post(CHAT, &hello(json!({}))).json());
    let places: Vec<usize> = whole.char_indices().map(|(place, _)| place).collect();
    assert!(places.len() > 12, "{whole:?}");
    // Stops of all lengths at several places: within tokens and across them.
    for length in [1, 2, 5, 9] {
        for begin in [1, 4, 7] {
            let (from, to) =
                (places[begin], places.get(begin + length).copied().unwrap_or(whole.len()));
            let stop = &whole[from..to];
            let expected = &whole[..whole.find(stop).unwrap()];
            let body = hello(json!({"stop": [stop, "never said"]}));
            let answer = server.post(CHAT, &body).json();
            assert_eq!(content(&answer), expected, "{stop:?} in {whole:?}");
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "stop");
            assert_eq!(
                (&choice["stop_reason"], &choice["matched_stop"]),
                (&json!(stop), &json!(stop))
            );
            let events = server.stream(CHAT, &streamed(body));
            assert_eq!(said(&events, 0), expected);
            assert_eq!(finishes(&events), [(0, "stop".to_owned())]);
        }
    }
    // A stop that begins and fails costs no text.
    let begins = format!("{}\u{1}", &whole[places[2]..places[6]]);
    let events = server.stream(CHAT, &streamed(hello(json!({"stop": begins}))));
    assert_eq!(said(&events, 0), whole);
}

/// vllm-project/vllm#32439, BerriAI/litellm#37140, ROCm/ATOM#1441.
#[test]
fn a_client_that_leaves_frees_its_request_streaming_or_not_or_queued() {
    let options = engine_options().max_running_requests(1);
    let step = Duration::from_millis(10);
    let server = Running::endless(step, options, ServerOptions::default());
    let long = json!({"prompt": "a", "max_tokens": 1500, "ignore_eos": true});
    for body in [streamed(long.clone()), long.clone()] {
        let leaves = server.send(TEXT, &body);
        while server.engine.snapshot().scheduler.running == 0 {
            std::thread::yield_now();
        }
        let queued = server.send(TEXT, &body);
        while server.engine.snapshot().scheduler.waiting == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(100));
        drop(queued);
        let begin = std::time::Instant::now();
        while server.engine.snapshot().scheduler.waiting > 0 {
            assert!(begin.elapsed() < Duration::from_secs(1), "still queued");
            std::thread::sleep(step);
        }
        drop(leaves);
        server.wait_until_idle(Duration::from_secs(1));
        let loads = server.get("/v1/loads").json();
        assert_eq!(loads["loads"][0]["num_running_reqs"], 0);
        assert_eq!(loads["loads"][0]["num_waiting_reqs"], 0);
    }
    assert!(server.engine.snapshot().scheduler.generated_tokens < 1000);
}

#[test]
fn a_client_that_only_finished_writing_is_answered() {
    let server =
        Running::endless(Duration::from_millis(5), engine_options(), ServerOptions::default());
    for stream in [false, true] {
        let body = json!({"prompt": "a", "max_tokens": 60, "ignore_eos": true, "stream": stream});
        let connection = server.send(TEXT, &body);
        connection.shutdown(Half::Write).unwrap();
        let answer = super::support::Answer::read(connection);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.contains("\"length\""), "{answer:?}");
    }
}

/// ROCm/ATOM#1589.
#[test]
fn streams_that_end_by_themselves_are_not_counted_as_aborted() {
    let server = Running::endless(Duration::ZERO, engine_options(), ServerOptions::default());
    for _ in 0..1000 {
        let body = json!({"prompt": "a", "max_tokens": 2, "ignore_eos": true, "stream": true});
        assert_eq!(finishes(&server.stream(TEXT, &body)).len(), 1);
    }
    let model = "{model_name=\"llama-tied\"}";
    assert_eq!(server.metric(&format!("sglang:num_aborted_requests_total{model}")), 0.0);
    assert_eq!(server.metric(&format!("sglang:num_requests_total{model}")), 1000.0);
    let lengths = "vllm:request_success_total{model_name=\"llama-tied\",engine=\"0\",finished_reason=\"length\"}";
    assert_eq!(server.metric(lengths), 1000.0);
}

/// mattn/tensai#110.
#[test]
fn no_half_characters_are_streamed() {
    let server = Running::tiny();
    let emoji = "🦀🌲".repeat(3);
    let body = streamed(hello(json!({"regex": emoji, "max_tokens": 200, "ignore_eos": false})));
    let events = server.stream(CHAT, &body);
    assert_eq!(said(&events, 0), emoji);
    for event in &events {
        assert!(!event.to_string().contains('\u{fffd}'), "{event}");
    }
}

/// ggml-org/llama.cpp#20226, BerriAI/litellm#3276.
#[test]
fn several_choices_have_their_own_indices() {
    let server = Running::tiny();
    let body = hello(json!({"n": 3, "seed": -5, "temperature": 1}));
    let whole = server.post(CHAT, &body).json();
    let events = server.stream(CHAT, &streamed(body));
    let roles = events.iter().filter(|event| event["choices"][0]["delta"]["role"] == "assistant");
    let mut roles: Vec<_> =
        roles.map(|event| event["choices"][0]["index"].as_u64().unwrap()).collect();
    roles.sort_unstable();
    assert_eq!(roles, [0, 1, 2]);
    let mut ends: Vec<_> = finishes(&events).into_iter().map(|(index, _)| index).collect();
    ends.sort_unstable();
    assert_eq!(ends, [0, 1, 2]);
    let mut texts = Vec::new();
    for index in 0..3 {
        let choice = &whole["choices"][index];
        assert_eq!(choice["index"], index);
        texts.push(choice["message"]["content"].as_str().unwrap());
        assert_eq!(said(&events, index as u64), texts[index]);
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
}

/// vllm-project/vllm#4795, #3179.
#[test]
fn log_probabilities_need_no_number_of_alternatives() {
    let server = Running::tiny();
    let body = hello(json!({"logprobs": true}));
    let answer = server.post(CHAT, &body).json();
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 24);
    let bytes = |tokens: &[Value]| -> Vec<u8> {
        let all = tokens.iter().flat_map(|token| token["bytes"].as_array().unwrap());
        all.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect()
    };
    assert_eq!(String::from_utf8_lossy(&bytes(tokens)), content(&answer));
    assert!(tokens.iter().all(|token| token["top_logprobs"] == json!([])));
    // A stream has the same, none lost and none twice.
    let events = server.stream(CHAT, &streamed(body));
    let chunks =
        events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let all: Vec<Value> = chunks.flatten().cloned().collect();
    assert_eq!(&all, tokens);
}

/// vllm-project/vllm#3707.
#[test]
fn zero_alternatives_still_mean_log_probabilities() {
    let server = Running::tiny();
    let body = json!({"prompt": "hello", "max_tokens": 3, "logprobs": 0, "temperature": 0, "ignore_eos": true});
    let logprobs = &server.post(TEXT, &body).json()["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3);
    assert!(logprobs["token_logprobs"].as_array().unwrap().iter().all(Value::is_number));
    assert_eq!(logprobs["top_logprobs"], json!([{}, {}, {}]));
}

/// ggml-org/llama.cpp#27174.
#[test]
fn an_echoed_prompt_has_the_log_probabilities_of_a_forward_pass() {
    let server = Running::tiny();
    let ids: Vec<u32> = (1..9).collect();
    let body = json!({
        "prompt": ids, "max_tokens": 6, "logprobs": 1, "temperature": 0, "ignore_eos": true, "return_token_ids": true,
    });
    let generated = server.post(TEXT, &body).json()["choices"][0].clone();
    let answer: Vec<u32> = serde_json::from_value(generated["token_ids"].clone()).unwrap();
    let all: Vec<u32> = ids.iter().chain(&answer).copied().collect();

    let echo =
        json!({"prompt": [all], "max_tokens": 0, "logprobs": 1, "echo": true, "temperature": 0});
    let whole = server.post(TEXT, &echo).json();
    assert_eq!(whole["usage"]["prompt_tokens"], 14);
    let echoed = &whole["choices"][0]["logprobs"];
    let scores = echoed["token_logprobs"].as_array().unwrap();
    assert_eq!(
        (scores.len(), &scores[0], &echoed["top_logprobs"][0]),
        (14, &Value::Null, &Value::Null)
    );
    assert_eq!(scores[8..], generated["logprobs"]["token_logprobs"].as_array().unwrap()[..]);
    let streamed = server.stream(TEXT, &streamed(echo.clone()));
    assert_eq!(streamed[0]["choices"][0]["logprobs"], *echoed);

    let mut one_more = echo;
    one_more["max_tokens"] = 1.into();
    let choice = server.post(TEXT, &one_more).json()["choices"][0].clone();
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 15);
    let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
    assert!(offsets.windows(2).all(|two| two[0].as_u64() <= two[1].as_u64()), "{offsets:?}");
}

/// abetlen/llama-cpp-python#1907, ikawrakow/ik_llama.cpp#2321.
#[test]
fn the_newer_name_of_the_limit_counts() {
    let server = Running::tiny();
    let body = hello(json!({"max_completion_tokens": 5, "max_tokens": 50}));
    let answer = server.post(CHAT, &body).json();
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}
