//! OpenAI's batch format: requests in envelopes, and answers in envelopes of their own.
//!
//! ```text
//! {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
//! {"id": "batch_req_0", "custom_id": "a", "response": {"status_code": 200, "request_id": "req_0", "body": {...}}, "error": null}
//! ```
//!
//! A request that is refused has a response with the status 400 and an error in its body; one that
//! failed on the way has no response, and an `error`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::answer::{Answer, Fault, Outcome, Sample, TokenLogprob};
use crate::json_request::Shown;

/// What an answer needs to know of the envelope in which its request came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Envelope {
    /// The caller's name of the request; null if it has none.
    custom_id: Value,
    endpoint: Endpoint,
    /// The model that the caller asked for. One engine has one model, so it is only repeated.
    model: Value,
}

/// Where a request is addressed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Chat,
    Text,
}

/// An envelope that has been opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) envelope: Envelope,
    /// The request, in the fields of a [`JsonRequest`](crate::json_request::JsonRequest).
    pub(super) body: Result<Map<String, Value>, EnvelopeError>,
    /// Fields of the envelope that have no meaning.
    pub(super) unknown: Vec<String>,
}

/// What is wrong with an envelope or the body in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EnvelopeError {
    #[error("{field} must be {expected}, not {found}")]
    Value { field: &'static str, expected: &'static str, found: Shown },
    #[error("the prompt must be in body.{expected}, not in body.{found}")]
    OtherPrompt { expected: &'static str, found: &'static str },
}

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

impl Envelope {
    /// Whether an object is an envelope rather than a request.
    pub(super) fn is_one(fields: &Map<String, Value>) -> bool {
        ["custom_id", "url", "body"].iter().any(|&name| fields.contains_key(name))
    }

    /// Takes a request out of its envelope.
    pub(super) fn open(mut fields: Map<String, Value>) -> Opened {
        let mut take = |name: &str| fields.remove(name).unwrap_or(Value::Null);
        let [custom_id, method, url, body] = ["custom_id", "method", "url", "body"].map(&mut take);
        let unknown = fields.keys().cloned().collect();
        let endpoint = if url == TEXT { Endpoint::Text } else { Endpoint::Chat };
        let model = body.get("model").cloned().unwrap_or(Value::Null);
        let is_text = custom_id.is_string();
        let shown = if is_text { custom_id.clone() } else { Value::Null };
        let body = if !is_text {
            Err(wrong("custom_id", "a text", &custom_id))
        } else if method != "POST" {
            Err(wrong("method", "\"POST\"", &method))
        } else if url != CHAT && url != TEXT {
            Err(wrong("url", "\"/v1/chat/completions\" or \"/v1/completions\"", &url))
        } else {
            match body {
                Value::Object(body) => endpoint.translated(body),
                other => Err(wrong("body", "an object", &other)),
            }
        };
        Opened { envelope: Self { custom_id: shown, endpoint, model }, body, unknown }
    }

    /// The line that answers the request.
    pub(super) fn answered(&self, index: usize, outcome: &Outcome) -> Value {
        let (status, body, error) = match outcome {
            Outcome::Answer(answer) => (200, self.body(index, answer), Value::Null),
            Outcome::Error { error, fault: Fault::Request } => {
                let error = json!({
                    "message": error, "type": "invalid_request_error", "param": null, "code": null,
                });
                (400, json!({"error": error}), Value::Null)
            }
            Outcome::Error { error, fault: Fault::Engine } => {
                (0, Value::Null, json!({"code": "engine_error", "message": error}))
            }
        };
        let response = match body {
            Value::Null => Value::Null,
            body => json!({
                "status_code": status, "request_id": format!("req_{index}"), "body": body,
            }),
        };
        json!({
            "id": format!("batch_req_{index}"), "custom_id": self.custom_id, "response": response,
            "error": error,
        })
    }

    fn body(&self, index: usize, answer: &Answer) -> Value {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (id, object) = match self.endpoint {
            Endpoint::Chat => (format!("chatcmpl-{index}"), "chat.completion"),
            Endpoint::Text => (format!("cmpl-{index}"), "text_completion"),
        };
        let choices = answer.samples().enumerate().map(|(index, sample)| match self.endpoint {
            Endpoint::Chat => chat_choice(index, sample),
            Endpoint::Text => text_choice(index, sample),
        });
        let usage = answer.usage;
        json!({
            "id": id, "object": object, "created": created, "model": self.model,
            "choices": choices.collect::<Vec<_>>(),
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
        })
    }
}

impl Endpoint {
    /// A body in the fields of a request as this program writes it.
    fn translated(self, mut body: Map<String, Value>) -> Result<Map<String, Value>, EnvelopeError> {
        body.remove("model");
        match self {
            Self::Chat => {
                let newer = body.remove("max_completion_tokens").filter(|value| !value.is_null());
                if let Some(most) = newer {
                    body.insert("max_tokens".to_owned(), most);
                }
                let top = body.remove("top_logprobs").filter(|value| !value.is_null());
                match (body.get("logprobs"), top) {
                    (_, None) => {}
                    (Some(Value::Bool(true)), Some(top)) => {
                        body.insert("logprobs".to_owned(), top);
                    }
                    (other, Some(_)) => {
                        let found = other.unwrap_or(&Value::Null);
                        return Err(wrong("body.logprobs", "true beside top_logprobs", found));
                    }
                }
                if let Some(Value::Array(messages)) = body.get_mut("messages") {
                    messages.iter_mut().try_for_each(join_parts)?;
                }
                only(&body, "messages", ["prompt", "token_ids"])?;
            }
            Self::Text => {
                only(&body, "prompt", ["messages", "token_ids"])?;
                if let Some(prompt @ Value::Array(_)) = body.get_mut("prompt") {
                    let prompt = prompt.take();
                    body.remove("prompt");
                    let (field, value) = one_prompt(prompt)?;
                    body.insert(field.to_owned(), value);
                }
            }
        }
        Ok(body)
    }
}

/// An endpoint has one way to write a prompt.
fn only(
    body: &Map<String, Value>,
    expected: &'static str,
    others: [&'static str; 2],
) -> Result<(), EnvelopeError> {
    let is_there = |name: &&str| body.get(*name).is_some_and(|value| !value.is_null());
    match others.into_iter().find(is_there) {
        Some(found) => Err(EnvelopeError::OtherPrompt { expected, found }),
        None => Ok(()),
    }
}

/// A content in parts, if all are text, as the text that templates know.
fn join_parts(message: &mut Value) -> Result<(), EnvelopeError> {
    let Some(content) = message.get_mut("content") else { return Ok(()) };
    let Value::Array(parts) = &*content else { return Ok(()) };
    let texts = parts.iter().map(|part| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        _ => Err(wrong("body.messages", "texts, or parts of the type `text`", part)),
    });
    *content = texts.collect::<Result<Vec<_>, _>>()?.join("\n").into();
    Ok(())
}

/// A prompt in an array: token ids, or the only prompt of a list.
fn one_prompt(prompt: Value) -> Result<(&'static str, Value), EnvelopeError> {
    match prompt {
        Value::Array(mut prompts) if prompts.len() == 1 && !prompts[0].is_number() => {
            match prompts.remove(0) {
                text @ Value::String(_) => Ok(("prompt", text)),
                tokens => Ok(("token_ids", tokens)),
            }
        }
        tokens if tokens[0].is_number() => Ok(("token_ids", tokens)),
        other => Err(wrong("body.prompt", "one text or one list of token ids", &other)),
    }
}

fn chat_choice(index: usize, sample: &Sample) -> Value {
    let tokens = sample.logprobs.iter().map(|token| {
        let mut described = chat_token(token);
        described["top_logprobs"] = token.top.iter().map(chat_token).collect();
        described
    });
    let tokens: Vec<Value> = tokens.collect();
    let logprobs = if tokens.is_empty() { Value::Null } else { json!({"content": tokens}) };
    json!({
        "index": index, "message": {"role": "assistant", "content": sample.text},
        "logprobs": logprobs, "finish_reason": sample.finish_reason,
    })
}

fn chat_token(token: &TokenLogprob) -> Value {
    json!({"token": token.text, "logprob": token.logprob, "bytes": null})
}

fn text_choice(index: usize, sample: &Sample) -> Value {
    let tokens = &sample.logprobs;
    let logprobs = if tokens.is_empty() {
        Value::Null
    } else {
        let top = tokens.iter().map(|token| {
            let pairs = token.top.iter().map(|top| (top.text.clone(), json!(top.logprob)));
            Value::Object(pairs.collect())
        });
        let offsets = tokens.iter().scan(0, |end, token| {
            let start = *end;
            *end += token.text.chars().count();
            Some(start)
        });
        json!({
            "tokens": tokens.iter().map(|token| &token.text).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": top.collect::<Vec<_>>(),
            "text_offset": offsets.collect::<Vec<_>>(),
        })
    };
    json!({
        "index": index, "text": sample.text, "logprobs": logprobs,
        "finish_reason": sample.finish_reason,
    })
}

fn wrong(field: &'static str, expected: &'static str, found: &Value) -> EnvelopeError {
    EnvelopeError::Value { field, expected, found: Shown::of(found) }
}
