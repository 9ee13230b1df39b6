//! The shapes of answers, and errors that name their parameter.

use serde_json::{Value, json};
use understory_server::{Limits, Origins, ServerOptions};

use super::support::{Answer, Running, engine_options, request, said};
use std::io::Write;

#[test]
fn wrong_parameters_are_named_and_unknown_ones_ignored() {
    let server = Running::tiny();
    let messages = json!([{"role": "user", "content": "a"}]);
    for (path, body, param) in [
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": -1}), "max_tokens"),
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 0}), "max_tokens"),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "temperature": "hot"}),
            "temperature",
        ),
        ("/v1/chat/completions", json!({"messages": messages, "top_p": 2}), "top_p"),
        ("/v1/chat/completions", json!({"messages": messages, "n": 4_000_000_000_u32}), "n"),
        ("/v1/chat/completions", json!({"messages": messages, "top_logprobs": 3}), "top_logprobs"),
        ("/v1/chat/completions", json!({"messages": messages, "stop": [""]}), "stop"),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "logit_bias": {"x": 1}}),
            "logit_bias",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "logit_bias": {"99999": 1}}),
            "logit_bias",
        ),
        ("/v1/chat/completions", json!({"messages": []}), "messages"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "boss", "content": ""}]}),
            "messages[0].role",
        ),
        ("/v1/chat/completions", json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0]",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "tool_choice": "required"}),
            "tool_choice",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "response_format": {"type": "json_schema", "json_schema": {"schema":
                {"type": "object", "properties": {"a": {"type": "no type"}}}}}}),
            "response_format",
        ),
        ("/v1/completions", json!({"prompt": []}), "prompt"),
        ("/v1/completions", json!({"prompt": [1, "a"]}), "prompt"),
        ("/v1/completions", json!({"prompt": [[1], []]}), "prompt[1]"),
        ("/v1/completions", json!({"prompt": [1, 99999]}), "prompt"),
        ("/v1/completions", json!({"prompt": "a", "suffix": "b"}), "suffix"),
        ("/v1/completions", json!({"prompt": "a", "best_of": 2}), "best_of"),
        ("/v1/completions", json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        ("/generate", json!({"text": "a", "input_ids": [1]}), "text"),
        ("/generate", json!({"text": "a", "sampling_params": {"top_k": -2}}), "top_k"),
        ("/generate", json!({"text": "a", "lora_path": "b"}), "lora_path"),
        ("/generate", json!({"text": ["a", "b"], "rid": ["c"]}), "rid"),
        ("/v1/embeddings", json!({"input": "a", "dimensions": 3}), "dimensions"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 400, "{body} {}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{body} {}", answer.body);
        assert_eq!(error["type"], "invalid_request_error");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    let fine = json!({
        "messages": messages, "max_tokens": 1, "unheard_of": {"a": [1]}, "user": "b", "metadata": null,
        "stop": null, "logprobs": null, "tools": null, "response_format": {"type": "text"},
    });
    assert_eq!(server.post("/v1/chat/completions", &fine).status, 200);
    server.wait_until_idle(std::time::Duration::from_secs(5));
}

#[test]
fn a_prompt_beyond_the_context_is_told_apart() {
    let server = Running::with(engine_options().context_length(64), ServerOptions::default());
    let ids: Vec<u32> = vec![1; 64];
    for body in [json!({"prompt": ids}), json!({"prompt": "word ".repeat(5000)})] {
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["code"], "context_length_exceeded", "{}", answer.body);
    }
    // One token of room is room.
    let body = json!({"prompt": ids[..63], "max_tokens": 9, "ignore_eos": true});
    let answer = server.post("/v1/completions", &body).json();
    assert_eq!(answer["usage"]["completion_tokens"], 1);
}

#[test]
fn models_have_the_names_they_are_served_under() {
    let mut options = ServerOptions::default();
    options.served_model_name = vec!["org/first".to_owned(), "second".to_owned()];
    let server = Running::with(engine_options(), options);
    let list = server.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    let first = &list["data"][0];
    assert_eq!((&first["id"], &first["object"]), (&json!("org/first"), &json!("model")));
    assert!(first["root"].as_str().unwrap().ends_with("llama-tied"));
    assert!(first["max_model_len"].is_u64() && list["data"][1]["id"] == "second");
    assert_eq!(server.get("/v1/models/org/first").json(), *first);
    assert_eq!(server.get("/v1/models/third").status, 404);
    for (name, status) in
        [("org/first", 200), ("second", 200), ("", 200), ("default", 200), ("third", 404)]
    {
        let body = json!({"prompt": "a", "max_tokens": 1, "model": name});
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, status, "{name}");
        if status == 404 {
            assert_eq!(answer.json()["error"]["code"], "model_not_found");
        }
    }
    assert_eq!(server.get("/nothing/here").json()["error"]["code"], "not_found");
    assert_eq!(server.get("/v1/completions").status, 405);
    assert_eq!(
        server.get("/version").status,
        404,
        "routers take a server with this route for another one"
    );
}

#[test]
fn every_chunk_of_a_chat_has_the_same_head_and_its_keys() {
    let server = Running::tiny();
    let body = json!({
        "messages": [{"role": "developer", "content": "a"}, {"role": "user", "content": [
            {"type": "text", "text": "b"}, {"type": "text", "text": "c"}]}],
        "max_tokens": 8, "ignore_eos": true, "temperature": 0, "stream": true, "model": "default",
    });
    let mut stream = server.connect();
    let head = "x-request-id: my-id-1\r\ncontent-type: text/plain\r\n";
    stream.write_all(request("/v1/chat/completions", &body.to_string(), head).as_bytes()).unwrap();
    let answer = Answer::read(stream);
    assert_eq!(answer.header("x-request-id"), Some("my-id-1"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    let data = answer.data();
    let chunks: Vec<Value> =
        data[..data.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    for (place, chunk) in chunks.iter().enumerate() {
        assert_eq!(chunk["id"], "chatcmpl-my-id-1");
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            (&chunk["model"], &chunk["created"]),
            (&json!("default"), &chunks[0]["created"])
        );
        let choice = &chunk["choices"][0];
        assert!(choice.get("finish_reason").is_some() && choice.get("logprobs").is_some());
        let is_first = place == 0;
        assert_eq!(choice["delta"].get("role").is_some(), is_first);
        let is_last = place + 1 == chunks.len();
        assert_eq!(choice["finish_reason"].is_string(), is_last);
        assert_eq!(choice["delta"] == json!({}), is_last);
        assert_eq!(choice.get("matched_stop").is_some(), is_last);
    }
    assert!(chunks.len() >= 3);
}

#[test]
fn completions_of_several_prompts_are_numbered_by_prompt_and_sample() {
    let server = Running::tiny();
    let body = json!({
        "prompt": ["one", "two"], "n": 2, "max_tokens": 4, "temperature": 0, "ignore_eos": true,
    });
    let whole = server.post("/v1/completions", &body).json();
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert_eq!(choices[0]["text"], choices[1]["text"], "greedy samples are equal");
    assert_eq!(whole["usage"]["completion_tokens"], 16);
    let tokens = server.post("/tokenize", &json!({"prompt": ["one", "two"]})).json();
    let prompts = tokens["count"][0].as_u64().unwrap() + tokens["count"][1].as_u64().unwrap();
    assert_eq!(whole["usage"]["prompt_tokens"], prompts);
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = server.stream("/v1/completions", &streamed);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(said(&events, index as u64), choice["text"].as_str().unwrap());
    }
    // One of a list that is wrong keeps the others from running.
    assert_eq!(server.post("/v1/completions", &json!({"prompt": ["a", ""]})).status, 400);
}

#[test]
fn native_streams_have_all_text_so_far_and_end_with_the_counts() {
    let server = Running::tiny();
    let body = json!({
        "text": "hello", "rid": "r", "return_logprob": true, "logprob_start_len": 0, "top_logprobs_num": 1,
        "sampling_params": {"max_new_tokens": 6, "temperature": 0, "ignore_eos": true}, "model": "unknown",
        "return_bytes": true, "log_metrics": true,
    });
    let whole = server.post("/generate", &body).json();
    let meta = &whole["meta_info"];
    assert_eq!((&meta["id"], &meta["completion_tokens"]), (&json!("r"), &json!(6)));
    assert_eq!(meta["finish_reason"], json!({"type": "length", "length": 6}));
    assert_eq!(whole["output_ids"].as_array().unwrap().len(), 6);
    assert_eq!(meta["output_token_logprobs"].as_array().unwrap().len(), 6);
    let inputs = meta["input_token_logprobs"].as_array().unwrap();
    assert_eq!(inputs.len() as u64, meta["prompt_tokens"].as_u64().unwrap());
    assert!(
        inputs[0][0].is_null() && inputs[1..].iter().all(|triple| triple[0].is_f64()),
        "{inputs:?}"
    );
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = server.stream("/generate", &streamed);
    let texts: Vec<&str> = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert!(texts.windows(2).all(|two| two[1].starts_with(two[0])), "{texts:?}");
    let last = events.last().unwrap();
    assert_eq!((&last["text"], &last["output_ids"]), (&whole["text"], &whole["output_ids"]));
    assert!(
        events[..events.len() - 1]
            .iter()
            .all(|event| event["meta_info"]["finish_reason"].is_null())
    );
    assert_eq!(events[0]["meta_info"]["input_token_logprobs"], meta["input_token_logprobs"]);

    let batch = json!({
        "input_ids": [[1, 2], [3]], "sampling_params": {"max_new_tokens": 2, "temperature": 0, "ignore_eos": true},
    });
    let answers = server.post("/generate", &batch).json();
    assert_eq!(answers.as_array().unwrap().len(), 2);
    let mut streamed = batch;
    streamed["stream"] = true.into();
    let events = server.stream("/generate", &streamed);
    assert!(events.iter().all(|event| event["index"].is_u64()));
}

#[test]
fn structured_answers_are_what_was_asked_for() {
    let server = Running::tiny();
    let schema = json!({
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}});
    let messages = json!([{"role": "user", "content": "a"}]);
    let mut finished = 0;
    for seed in 0..10 {
        let body = json!({
            "messages": messages, "max_tokens": 100, "seed": seed, "response_format": format,
        });
        let choice = server.post("/v1/chat/completions", &body).json()["choices"][0].clone();
        if choice["finish_reason"] == "length" {
            continue;
        }
        finished += 1;
        let value: Value =
            serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(value["a"].is_number() && (value["b"] == "x" || value["b"] == "y"), "{value}");
    }
    assert!(finished > 0, "no answer of ten was whole");
    let body = json!({"prompt": "a", "structured_outputs": {"choice": ["left", "right"]}, "max_tokens": 30});
    let text = server.post("/v1/completions", &body).json()["choices"][0]["text"].clone();
    assert!(text == "left" || text == "right", "{text}");
    let body = json!({"text": "a", "sampling_params": {"regex": "[0-9]{4}", "max_new_tokens": 30}});
    let text = server.post("/generate", &body).json()["text"].as_str().unwrap().to_owned();
    assert!(text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit()), "{text:?}");
}

#[test]
fn vectors_come_as_numbers_or_in_base_64() {
    let server = Running::tiny();
    let floats = server.post("/v1/embeddings", &json!({"input": ["hello", "there"]})).json();
    assert_eq!(floats["data"].as_array().unwrap().len(), 2);
    let vector: Vec<f32> = serde_json::from_value(floats["data"][1]["embedding"].clone()).unwrap();
    let length: f32 = vector.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");
    assert!(floats["usage"]["prompt_tokens"].as_u64().unwrap() >= 2);
    let body = json!({"input": "there", "encoding_format": "base64"});
    let text = server.post("/v1/embeddings", &body).json()["data"][0]["embedding"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(text.len(), (vector.len() * 4).div_ceil(3) * 4);
}

#[test]
fn pages_of_listed_origins_may_ask() {
    let mut options = ServerOptions::default();
    options.cors = Some(Origins::Listed(vec!["https://a.example".to_owned()]));
    let server = Running::with(engine_options(), options);
    let listed = server.get_with("/v1/models", "origin: https://a.example\r\n");
    assert_eq!(listed.header("access-control-allow-origin"), Some("https://a.example"));
    let other = server.get_with("/v1/models", "origin: https://b.example\r\n");
    assert_eq!(other.header("access-control-allow-origin"), None);
}

#[test]
fn bodies_have_a_limit() {
    let mut options = ServerOptions::default();
    let mut limits = Limits::default();
    limits.body_bytes = 1000;
    options.limits = limits;
    let server = Running::with(engine_options(), options);
    let answer = server.post("/v1/completions", &json!({"prompt": "a".repeat(2000)}));
    assert_eq!(answer.status, 413);
}
