//! Shapes of the protocols' own: refusals by code, responses, Anthropic's messages, pages of other origins.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};
use understory_server::config::Keys;
use understory_server::{Origins, ServerOptions};

use super::support::{Answer, Running, engine_options};

#[test]
fn what_is_not_supported_has_the_code_for_it() {
    let server = Running::tiny();
    let said = |content: Value| json!([{"role": "user", "content": content}]);
    let image = json!([{"type": "image_url", "image_url": {"url": "data:,"}}]);
    let sound = json!([{"type": "input_audio", "input_audio": {}}]);
    let chat = "/v1/chat/completions";
    for (path, body) in [
        (chat, json!({"messages": said(image)})),
        (chat, json!({"messages": said(sound)})),
        (chat, json!({"messages": said("a".into()), "audio": {"voice": "b"}})),
        (chat, json!({"messages": said("a".into()), "lora_path": "b"})),
        ("/v1/completions", json!({"prompt": "a", "suffix": "b"})),
        ("/v1/completions", json!({"prompt": "a", "lora_path": "b"})),
        ("/generate", json!({"text": "a", "lora_path": "b"})),
        ("/generate", json!({"text": "a", "image_data": "b"})),
        ("/generate", json!({"text": "a", "audio_data": "b"})),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(answer.json()["error"]["code"], "unsupported", "{body}");
    }
    let broken = json!({"messages": said(json!([{"type": "text"}]))});
    let error = server.post(chat, &broken).json()["error"].clone();
    assert_eq!((&error["code"], &error["param"]), (&Value::Null, &json!("messages[0].content[0]")));
}

#[test]
fn salts_have_a_longest_length() {
    let server = Running::tiny();
    let words = json!([{"role": "user", "content": "a"}]);
    for (path, field, mut body) in [
        ("/v1/chat/completions", "cache_salt", json!({"messages": words, "max_tokens": 1})),
        ("/v1/completions", "cache_salt", json!({"prompt": "a", "max_tokens": 1})),
        ("/generate", "cache_salt", json!({"text": "a", "sampling_params": {"max_new_tokens": 1}})),
        ("/generate", "extra_key", json!({"text": "a", "sampling_params": {"max_new_tokens": 1}})),
        ("/v1/embeddings", "cache_salt", json!({"input": "a"})),
    ] {
        body[field] = "s".repeat(256).into();
        assert_eq!(server.post(path, &body).status, 200, "{path}");
        body[field] = "s".repeat(257).into();
        let refused = server.post(path, &body);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(field)));
    }
}

#[test]
fn the_texts_of_all_fields_count_before_any_is_tokenized() {
    let server = Running::tiny();
    let long = "word ".repeat(200_000);
    let words = json!([{"role": "user", "content": "a"}]);
    let function = json!({"name": "f", "description": long, "parameters": {"type": "object"}});
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": long}});
    let called =
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]);
    for body in [
        json!({"messages": words, "tools": [{"type": "function", "function": function}]}),
        json!({"messages": words, "documents": [{"title": "a", "text": long}]}),
        json!({"messages": words, "chat_template_kwargs": {"a": [long]}}),
        json!({"messages": called}),
    ] {
        let error = server.post("/v1/chat/completions", &body).json()["error"].clone();
        assert_eq!(error["code"], "context_length_exceeded", "{error}");
        assert!(error["message"].as_str().unwrap().contains("bytes of text"), "{error}");
    }
}

#[test]
fn responses_repeat_how_they_were_asked_for() {
    let server = Running::tiny();
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let format =
        json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true});
    let named = json!({"type": "function", "name": "f"});
    for choice in [json!("none"), json!("auto"), json!("required"), named] {
        let body = json!({
            "input": "a", "max_output_tokens": 2, "tools": [tool], "tool_choice": choice, "text": {"format": format},
        });
        let response = server.post("/v1/responses", &body).json();
        assert_eq!((&response["tool_choice"], &response["text"]["format"]), (&choice, &format));
    }
    let response = server.post("/v1/responses", &json!({"input": "a", "max_output_tokens": 2}));
    let response = response.json();
    let plain = json!({"type": "text"});
    assert_eq!((&response["tool_choice"], &response["text"]["format"]), (&json!("auto"), &plain));
}

#[test]
fn answers_that_were_aborted_are_errors_to_who_has_no_word_for_them() {
    let server =
        Running::endless(Duration::from_millis(2), engine_options(), ServerOptions::default());
    let aborted = |path: &str, body: &Value, stream: bool| {
        let mut body = body.clone();
        body["stream"] = stream.into();
        let asked = server.send(path, &body);
        while server.engine.snapshot().scheduler.running == 0 {
            std::thread::yield_now();
        }
        // It runs a moment before its id is known.
        while server.engine.snapshot().scheduler.running > 0 {
            server.post("/abort_request", &json!({"abort_all": true}));
        }
        let answer = Answer::read(asked);
        server.wait_until_idle(Duration::from_secs(1));
        answer
    };
    let last = |answer: &Answer| -> (String, Value) {
        let event = answer.body.trim_end().rsplit("\n\n").next().unwrap().to_owned();
        let (name, data) = event.split_once("\ndata: ").unwrap();
        (name.to_owned(), serde_json::from_str(data).unwrap())
    };
    let words = json!([{"role": "user", "content": "a"}]);
    let body = json!({"messages": words, "max_tokens": 1900});
    let whole = aborted("/v1/messages", &body, false);
    assert_eq!((whole.status, &whole.json()["type"]), (503, &json!("error")));
    let streamed = aborted("/v1/messages", &body, true);
    let (name, event) = last(&streamed);
    assert_eq!((&*name, &event["type"]), ("event: error", &json!("error")));
    assert!(!streamed.body.contains("message_stop"));

    let body = json!({"input": "a", "max_output_tokens": 1900});
    let whole = aborted("/v1/responses", &body, false).json();
    assert_eq!(
        (&whole["status"], &whole["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    let (name, event) = last(&aborted("/v1/responses", &body, true));
    assert_eq!(name, "event: response.failed");
    assert_eq!(event["response"]["status"], "failed");
    assert_eq!(event["response"]["error"]["code"], "server_error");
}

#[test]
fn every_refusal_of_messages_has_its_protocols_form() {
    let mut options = ServerOptions::default();
    options.keys = Keys::new(&["key".to_owned()], None).unwrap();
    let server = Running::with(engine_options(), options);
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        for (key, status, kind) in
            [("wrong", 401, "authentication_error"), ("key", 400, "invalid_request_error")]
        {
            let refused = server.post_as(key, path, &json!({"messages": []}));
            assert_eq!(refused.status, status);
            let body = refused.json();
            assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)));
        }
    }
    let refused = server.post_as("wrong", "/v1/completions", &json!({}));
    assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
}

#[test]
fn pages_may_send_the_headers_that_they_ask_for() {
    let mut options = ServerOptions::default();
    options.cors = Some(Origins::Any);
    let server = Running::with(engine_options(), options);
    let wanted = "authorization,content-type,x-stainless-lang,x-stainless-retry-count";
    let mut stream = server.connect();
    let head = format!(
        "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\norigin: https://a.example\r\n\
         access-control-request-method: POST\r\naccess-control-request-headers: {wanted}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let answer = Answer::read(stream);
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-headers"), Some(wanted));
    assert_eq!(answer.header("vary"), Some("access-control-request-headers"));
}

#[test]
fn every_protocol_takes_the_extensions_of_sampling() {
    let server = Running::tiny();
    let words = json!([{"role": "user", "content": "a"}]);
    for (path, mut body, counted) in [
        ("/v1/responses", json!({"input": "a", "max_output_tokens": 4}), "output_tokens"),
        ("/v1/messages", json!({"messages": words, "max_tokens": 4}), "output_tokens"),
        ("/v1/chat/completions", json!({"messages": words, "max_tokens": 4}), "completion_tokens"),
    ] {
        // The token that ends answers is all but certain.
        body["logit_bias"] = json!({"2": 100});
        for (ignore, tokens) in [(false, 1), (true, 4)] {
            body["ignore_eos"] = ignore.into();
            let answer = server.post(path, &body).json();
            assert_eq!(answer["usage"][counted], tokens, "{path} {answer}");
        }
    }
}
