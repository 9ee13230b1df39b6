//! Calls of tools, and the other protocols that have them.

use serde_json::{Value, json};

use super::support::{Running, said};

const CHAT: &str = "/v1/chat/completions";

fn asked(choice: Value, more: Value) -> Value {
    let parameters = json!({
        "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false,
    });
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let mut body = json!({
        "messages": [{"role": "user", "content": "hello"}], "tools": [tool("f"), tool("g")],
        "tool_choice": choice, "max_tokens": 300, "temperature": 0,
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The calls of a stream, put together, after checking what each delta carries.
fn called(events: &[Value]) -> Vec<(String, String)> {
    let mut calls: Vec<(String, String)> = Vec::new();
    for event in events {
        let choice = &event["choices"][0];
        assert!(choice["delta"]["content"].as_str().is_none_or(str::is_empty), "{event}");
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let arguments = call["function"]["arguments"].as_str().unwrap();
            if index == calls.len() {
                assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
                assert_eq!((&call["type"], arguments), (&json!("function"), ""));
                calls.push((call["function"]["name"].as_str().unwrap().to_owned(), String::new()));
            } else {
                assert_eq!(index + 1, calls.len(), "{call}");
                assert!(
                    call.get("id").is_none() && call["function"].get("name").is_none(),
                    "{call}"
                );
                calls[index].1.push_str(arguments);
            }
        }
    }
    calls
}

/// vllm-project/vllm#25054, #9209, sgl-project/sglang-jax#1275, openai/openai-python#3246, openai/codex#7517,
/// InternLM/lmdeploy#3412.
#[test]
fn calls_that_were_asked_for_come_as_calls() {
    let server = Running::tiny();
    let named = json!({"type": "function", "function": {"name": "g"}});
    for (choice, reason) in [(json!("required"), "tool_calls"), (named, "stop")] {
        let body = asked(choice, json!({"parallel_tool_calls": false}));
        let whole = server.post(CHAT, &body).json()["choices"][0].clone();
        assert_eq!(whole["finish_reason"], reason, "{whole}");
        assert_eq!(whole["message"]["content"], Value::Null);
        let calls = whole["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
        let value: Value = serde_json::from_str(arguments).unwrap();
        assert!(value["a"] == 1 || value["a"] == 2, "{value}");

        let mut streamed = body;
        streamed["stream"] = true.into();
        let events = server.stream(CHAT, &streamed);
        let name = calls[0]["function"]["name"].as_str().unwrap();
        assert_eq!(called(&events), [(name.to_owned(), arguments.to_owned())]);
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], reason);
    }
}

#[test]
fn several_calls_have_indices_of_their_own() {
    let server = Running::tiny();
    let mut most = 0;
    for seed in 0..12 {
        let body =
            asked(json!("required"), json!({"stream": true, "seed": seed, "temperature": 1.5}));
        let events = server.stream(CHAT, &body);
        let calls = called(&events);
        most = most.max(calls.len());
        if events.last().unwrap()["choices"][0]["finish_reason"] == "tool_calls" {
            for (_, arguments) in calls {
                assert!(serde_json::from_str::<Value>(&arguments).unwrap()["a"].is_u64());
            }
        }
    }
    assert!(most > 1, "no answer of twelve had two calls");
}

/// vllm-project/vllm#53269.
#[test]
fn a_call_that_is_cut_ends_by_length() {
    let server = Running::tiny();
    for stream in [false, true] {
        let body = asked(json!("required"), json!({"max_tokens": 4, "stream": stream}));
        let reason = if stream {
            server.stream(CHAT, &body).last().unwrap()["choices"][0]["finish_reason"].clone()
        } else {
            server.post(CHAT, &body).json()["choices"][0]["finish_reason"].clone()
        };
        assert_eq!(reason, "length");
    }
}

/// vllm-project/vllm#42747.
#[test]
fn without_a_choice_of_tools_their_text_stays_text() {
    let server = Running::tiny();
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    let quoted: String = text
        .chars()
        .map(|c| if "{}".contains(c) { format!("\\{c}") } else { c.to_string() })
        .collect();
    let none = asked(json!("none"), json!({"regex": quoted}));
    let choice = server.post(CHAT, &none).json()["choices"][0].clone();
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!(text), &json!("stop"))
    );
    assert_eq!(choice["message"].get("tool_calls"), None);

    // The same text is a call where the model may choose.
    let auto = asked(json!("auto"), json!({"regex": quoted}));
    let choice = server.post(CHAT, &auto).json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "f");
    let mut streamed = auto;
    streamed["stream"] = true.into();
    let events = server.stream(CHAT, &streamed);
    assert_eq!(called(&events), [("f".to_owned(), "{\"a\": 1}".to_owned())]);
    assert_eq!(said(&events, 0), "");
}

#[test]
fn responses_and_messages_say_what_a_chat_says() {
    let server = Running::tiny();
    let chat = json!({
        "messages": [{"role": "system", "content": "b"}, {"role": "user", "content": "hello"}], "max_tokens": 12,
        "temperature": 0,
    });
    let text = server.post(CHAT, &chat).json()["choices"][0]["message"]["content"].clone();
    let response =
        json!({"input": "hello", "instructions": "b", "max_output_tokens": 12, "temperature": 0});
    let answer = server.post("/v1/responses", &response).json();
    assert_eq!(answer["output"][0]["content"][0]["text"], text, "{answer}");
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(answer["incomplete_details"]["reason"], "max_output_tokens");
    let message = json!({
        "system": [{"type": "text", "text": "b"}], "messages": [{"role": "user", "content": [
            {"type": "text", "text": "hello"}]}], "max_tokens": 12, "temperature": 0,
    });
    let answer = server.post("/v1/messages", &message).json();
    assert_eq!(answer["content"][0]["text"], text, "{answer}");
    assert_eq!(
        (&answer["type"], &answer["stop_reason"]),
        (&json!("message"), &json!("max_tokens"))
    );
    let counted =
        server.post("/v1/messages/count_tokens", &message).json()["input_tokens"].as_u64().unwrap();
    let usage = &answer["usage"];
    let read = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted, usage["input_tokens"].as_u64().unwrap() + read);
    let wrong = server.post("/v1/messages", &json!({"messages": []}));
    assert_eq!((wrong.status, &wrong.json()["type"]), (400, &json!("error")));
    assert_eq!(wrong.json()["error"]["type"], "invalid_request_error");
    let stored = json!({"input": "a", "previous_response_id": "resp_1"});
    assert_eq!(
        server.post("/v1/responses", &stored).json()["error"]["param"],
        "previous_response_id"
    );
}
