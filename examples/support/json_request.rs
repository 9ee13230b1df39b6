//! Requests written as JSON objects, with OpenAI's names: the lines of a batch file, and what a
//! service is sent.
//!
//! | field | value |
//! | --- | --- |
//! | `prompt` | a text |
//! | `messages` | a conversation: objects with `role`, `content`, and what else the template knows |
//! | `token_ids` | a list of token ids, taken as they are |
//! | `max_tokens`, `min_tokens` | most and fewest tokens of an answer |
//! | `temperature`, `top_p`, `top_k`, `min_p` | numbers; temperature 0 is greedy |
//! | `repetition_penalty`, `frequency_penalty`, `presence_penalty` | numbers |
//! | `logit_bias` | an object: token id to number |
//! | `seed` | a whole number |
//! | `stop` | a text or a list of texts that end an answer |
//! | `stop_token_ids` | a list of token ids that end an answer |
//! | `include_stop` | whether a stop text is part of the answer |
//! | `skip_special_tokens` | whether special tokens have no text, which is so by default |
//! | `ignore_eos` | whether to go on after the model's end tokens |
//! | `n` | answers to draw |
//! | `logprobs`, `prompt_logprobs` | alternatives to report for each token of the answer or the prompt, or `true` for none but the token's own |
//! | `tools`, `documents` | lists of objects, and |
//! | `chat_template_kwargs` | an object of variables: what a chat template may know besides messages |
//! | `priority` | a whole number: higher ones leave the queue first |
//! | `speculation` | whether tokens may be proposed and verified, where the engine does that |
//! | `namespace` | a text or a whole number: prefixes are shared within a namespace only |
//!
//! Exactly one of the first three must be there. A field that is `null` counts as absent; fields
//! that have no meaning are left to the caller. What is checked here is whether a value is of the
//! right kind; whether it makes sense is the engine's to say.

use std::fmt;

use serde_json::{Map, Value};
use understory::request::{Prompt, Request, SamplingParams};
use understory::text::{ChatMessage, ChatOptions};
use understory::{Namespace, Token};

/// A request, as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JsonRequest {
    /// What is to be continued.
    pub(crate) prompt: Prompt,
    /// What a chat template is told besides messages.
    pub(crate) chat: ChatOptions,
    /// The given defaults, with what was written in their place.
    pub(crate) sampling: SamplingParams,
    /// Higher ones leave the queue first.
    pub(crate) priority: i32,
    /// Whether tokens may be proposed and verified.
    pub(crate) speculation: bool,
    /// The namespace's name, if it has one.
    pub(crate) namespace: Option<String>,
    /// The names of fields that have no meaning.
    pub(crate) unknown: Vec<String>,
}

/// Why an object is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JsonRequestError {
    /// The text is not JSON.
    #[error("it is not JSON: {reason} (column {column})")]
    Syntax {
        /// What is wrong.
        reason: String,
        /// Where, counted in bytes from 1.
        column: usize,
    },
    /// It is JSON, but not an object.
    #[error("it must be a JSON object, not {found}")]
    NotAnObject {
        /// What it is.
        found: Shown,
    },
    /// The field has a value of the wrong kind.
    #[error("{field} must be {expected}, not {found}")]
    Value {
        /// Its name.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: Shown,
    },
    /// There is nothing to continue, or more than one thing.
    #[error("it must have exactly one of prompt, messages and token_ids, but has {count}")]
    Prompts {
        /// How many there are.
        count: usize,
    },
}

/// A JSON value in an error: as it was written, if it is short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown(String);

impl JsonRequest {
    /// Reads the fields of an object from a text.
    ///
    /// # Errors
    ///
    /// [`JsonRequestError`].
    pub(crate) fn fields(text: &str) -> Result<Map<String, Value>, JsonRequestError> {
        let value = serde_json::from_str(text).map_err(|error| {
            let message = error.to_string();
            let reason = message.rsplit_once(" at line ").map_or(&*message, |(reason, _)| reason);
            JsonRequestError::Syntax { reason: reason.to_owned(), column: error.column() }
        })?;
        match value {
            Value::Object(fields) => Ok(fields),
            other => Err(JsonRequestError::NotAnObject { found: Shown::of(&other) }),
        }
    }

    /// Reads a request from the fields of an object.
    ///
    /// # Errors
    ///
    /// [`JsonRequestError`].
    pub(crate) fn from_fields(
        fields: Map<String, Value>,
        defaults: &SamplingParams,
    ) -> Result<Self, JsonRequestError> {
        let mut request = Self {
            prompt: Prompt::Tokens(Vec::new()),
            chat: ChatOptions::default(),
            sampling: defaults.clone(),
            priority: 0,
            speculation: true,
            namespace: None,
            unknown: Vec::new(),
        };
        let mut prompts = Vec::new();
        for (name, value) in fields {
            if value.is_null() {
                continue;
            }
            match name.as_str() {
                "prompt" => prompts.push(Prompt::Text(text("prompt", value)?)),
                "messages" => prompts.push(messages(value)?),
                "token_ids" => prompts.push(Prompt::Tokens(token_ids("token_ids", value)?)),
                "tools" => request.chat.tools = Some(objects("tools", value)?),
                "documents" => request.chat.documents = Some(objects("documents", value)?),
                "chat_template_kwargs" => match value {
                    Value::Object(variables) => request.chat.variables = variables,
                    other => return Err(wrong("chat_template_kwargs", "an object", &other)),
                },
                "priority" => {
                    let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
                    let expected = "a whole number of 32 bits";
                    request.priority = number.ok_or_else(|| wrong("priority", expected, &value))?;
                }
                "speculation" => request.speculation = flag("speculation", &value)?,
                "namespace" => request.namespace = Some(name_of_namespace(value)?),
                _ if set_sampling(&mut request.sampling, &name, value)? => {}
                _ => request.unknown.push(name),
            }
        }
        let count = prompts.len();
        match prompts.pop() {
            Some(prompt) if count == 1 => Ok(Self { prompt, ..request }),
            _ => Err(JsonRequestError::Prompts { count }),
        }
    }

    /// The request for an engine, in the namespace that has the name.
    pub(crate) fn into_request(self, namespace: Namespace) -> Request {
        Request::new(self.prompt)
            .chat(self.chat)
            .sampling(self.sampling)
            .priority(self.priority)
            .speculation(self.speculation)
            .namespace(namespace)
    }
}

impl Shown {
    /// Longest value that is shown whole, in characters.
    const LONGEST: usize = 40;

    /// The value as an error shows it.
    pub(crate) fn of(value: &Value) -> Self {
        let text = value.to_string();
        match text.char_indices().nth(Self::LONGEST) {
            None => Self(text),
            Some((end, _)) => Self(format!("{}...", &text[..end])),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whether the field is one of sampling.
fn set_sampling(
    sampling: &mut SamplingParams,
    name: &str,
    value: Value,
) -> Result<bool, JsonRequestError> {
    match name {
        "max_tokens" => sampling.max_tokens = Some(count("max_tokens", &value)?),
        "min_tokens" => sampling.min_tokens = count("min_tokens", &value)?,
        "temperature" => sampling.temperature = number("temperature", &value)?,
        "top_p" => sampling.top_p = number("top_p", &value)?,
        "top_k" => sampling.top_k = count("top_k", &value)?,
        "min_p" => sampling.min_p = number("min_p", &value)?,
        "repetition_penalty" => {
            sampling.repetition_penalty = number("repetition_penalty", &value)?;
        }
        "frequency_penalty" => sampling.frequency_penalty = number("frequency_penalty", &value)?,
        "presence_penalty" => sampling.presence_penalty = number("presence_penalty", &value)?,
        "logit_bias" => sampling.logit_bias = logit_bias(&value)?,
        "seed" => {
            let expected = "a whole number from 0 to 2^64 - 1";
            sampling.seed = Some(value.as_u64().ok_or_else(|| wrong("seed", expected, &value))?);
        }
        "stop" => sampling.stop = stop(value)?,
        "stop_token_ids" => sampling.stop_token_ids = token_ids("stop_token_ids", value)?,
        "include_stop" => sampling.include_stop = flag("include_stop", &value)?,
        "skip_special_tokens" => {
            sampling.skip_special_tokens = flag("skip_special_tokens", &value)?;
        }
        "ignore_eos" => sampling.ignore_eos = flag("ignore_eos", &value)?,
        "n" => sampling.n = count("n", &value)?,
        "logprobs" => sampling.logprobs = logprobs("logprobs", &value)?,
        "prompt_logprobs" => sampling.prompt_logprobs = logprobs("prompt_logprobs", &value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn wrong(field: &'static str, expected: &'static str, value: &Value) -> JsonRequestError {
    JsonRequestError::Value { field, expected, found: Shown::of(value) }
}

fn text(field: &'static str, value: Value) -> Result<String, JsonRequestError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong(field, "a text", &other)),
    }
}

fn count(field: &'static str, value: &Value) -> Result<u32, JsonRequestError> {
    let whole = value.as_u64().and_then(|number| u32::try_from(number).ok());
    whole.ok_or_else(|| wrong(field, "a whole number from 0 to 2^32 - 1", value))
}

fn number(field: &'static str, value: &Value) -> Result<f32, JsonRequestError> {
    let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
    number.ok_or_else(|| wrong(field, "a number of 32 bits", value))
}

fn token_ids(field: &'static str, value: Value) -> Result<Vec<Token>, JsonRequestError> {
    serde_json::from_value(value.clone()).map_err(|_| wrong(field, "a list of token ids", &value))
}

fn messages(value: Value) -> Result<Prompt, JsonRequestError> {
    match serde_json::from_value::<Vec<ChatMessage>>(value.clone()) {
        Ok(messages) if !messages.is_empty() => Ok(Prompt::Messages(messages)),
        _ => Err(wrong("messages", "a list of objects with a role, one at least", &value)),
    }
}

fn stop(value: Value) -> Result<Vec<String>, JsonRequestError> {
    match value {
        Value::String(text) => Ok(vec![text]),
        other => serde_json::from_value(other.clone())
            .map_err(|_| wrong("stop", "a text or a list of texts", &other)),
    }
}

fn logit_bias(value: &Value) -> Result<Vec<(Token, f32)>, JsonRequestError> {
    let wrong = || wrong("logit_bias", "an object of token ids and numbers", value);
    let entries = value.as_object().ok_or_else(wrong)?.iter().map(|(token, bias)| {
        let bias = bias.as_f64().map(|bias| bias as f32).filter(|bias| bias.is_finite());
        Ok((token.parse().map_err(|_| wrong())?, bias.ok_or_else(wrong)?))
    });
    entries.collect()
}

fn flag(field: &'static str, value: &Value) -> Result<bool, JsonRequestError> {
    value.as_bool().ok_or_else(|| wrong(field, "true or false", value))
}

fn objects(field: &'static str, value: Value) -> Result<Vec<Value>, JsonRequestError> {
    match value {
        Value::Array(objects) if objects.iter().all(Value::is_object) => Ok(objects),
        other => Err(wrong(field, "a list of objects", &other)),
    }
}

fn logprobs(field: &'static str, value: &Value) -> Result<Option<u8>, JsonRequestError> {
    let count = value.as_u64().and_then(|count| u8::try_from(count).ok());
    match (value.as_bool(), count) {
        (Some(false), _) => Ok(None),
        (Some(true), _) => Ok(Some(0)),
        (None, Some(count)) => Ok(Some(count)),
        (None, None) => Err(wrong(field, "true, false or a whole number from 0 to 255", value)),
    }
}

fn name_of_namespace(value: Value) -> Result<String, JsonRequestError> {
    match value {
        Value::String(name) => Ok(name),
        Value::Number(number) if number.is_u64() => Ok(number.to_string()),
        other => Err(wrong("namespace", "a text or a whole number", &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<JsonRequest, JsonRequestError> {
        JsonRequest::from_fields(JsonRequest::fields(text)?, &SamplingParams::default())
    }

    #[test]
    fn every_field_reaches_its_parameter() {
        let request = parse(
            r#"{"token_ids": [3, 4], "max_tokens": 9, "min_tokens": 2, "temperature": 0.5,
                "top_p": 0.9, "top_k": 5, "min_p": 0.25, "repetition_penalty": 1.5,
                "frequency_penalty": -1, "presence_penalty": 2, "logit_bias": {"7": -2.5},
                "seed": 18446744073709551615, "stop": ["a", "b"], "stop_token_ids": [8],
                "ignore_eos": true, "include_stop": true, "skip_special_tokens": false, "n": 3,
                "logprobs": 4, "prompt_logprobs": true, "priority": -7, "speculation": false,
                "tools": [{"type": "function"}], "documents": [{"title": "a"}],
                "chat_template_kwargs": {"enable_thinking": false}, "namespace": 12}"#,
        );
        let sampling = SamplingParams::default()
            .max_tokens(9)
            .min_tokens(2)
            .temperature(0.5)
            .top_p(0.9)
            .top_k(5)
            .min_p(0.25)
            .repetition_penalty(1.5)
            .frequency_penalty(-1.0)
            .presence_penalty(2.0)
            .logit_bias([(7, -2.5)])
            .seed(u64::MAX)
            .stop(["a".to_owned(), "b".to_owned()])
            .stop_token_ids([8])
            .ignore_eos(true)
            .include_stop(true)
            .skip_special_tokens(false)
            .n(3)
            .logprobs(4)
            .prompt_logprobs(0);
        let mut chat = ChatOptions::default();
        chat.tools = Some(vec![serde_json::json!({"type": "function"})]);
        chat.documents = Some(vec![serde_json::json!({"title": "a"})]);
        chat.variables.insert("enable_thinking".to_owned(), Value::Bool(false));
        let expected = JsonRequest {
            prompt: Prompt::Tokens(vec![3, 4]),
            chat: chat.clone(),
            sampling: sampling.clone(),
            priority: -7,
            speculation: false,
            namespace: Some("12".to_owned()),
            unknown: vec![],
        };
        assert_eq!(request, Ok(expected.clone()));
        let request = expected.into_request(Namespace::tenant(1));
        assert_eq!((&request.chat, &request.sampling), (&chat, &sampling));
        assert_eq!((request.priority, request.speculation), (-7, false));
        assert_eq!(request.namespace, Namespace::tenant(1));
    }

    #[test]
    fn absent_and_null_fields_keep_their_defaults() {
        let mut defaults = SamplingParams::default();
        defaults.temperature = 0.25;
        let text = r#"{"prompt": "a", "messages": null, "temperature": null, "stop": "end"}"#;
        let request =
            JsonRequest::from_fields(JsonRequest::fields(text).unwrap(), &defaults).unwrap();
        assert_eq!(request.prompt, Prompt::Text("a".to_owned()));
        assert_eq!(request.sampling.temperature, 0.25);
        assert_eq!(request.sampling.stop, ["end"]);
        assert_eq!(request.namespace, None);
    }

    #[test]
    fn logprobs_may_be_a_flag() {
        let logprobs = |value: &str| {
            let text = format!(r#"{{"prompt": "a", "logprobs": {value}}}"#);
            parse(&text).unwrap().sampling.logprobs
        };
        assert_eq!((logprobs("true"), logprobs("false")), (Some(0), None));
        assert_eq!((logprobs("0"), logprobs("20")), (Some(0), Some(20)));
    }

    #[test]
    fn fields_of_messages_are_kept() {
        let request = parse(r#"{"messages": [{"role": "tool", "content": "1", "name": "f"}]}"#);
        let Prompt::Messages(messages) = request.unwrap().prompt else { panic!("not messages") };
        assert_eq!(messages[0].role, "tool");
        assert_eq!(messages[0].fields["name"], "f");
    }

    #[test]
    fn bad_values_name_their_field() {
        for (field, value) in [
            ("max_tokens", "-1"),
            ("max_tokens", "1.5"),
            ("max_tokens", "4294967296"),
            ("temperature", "\"hot\""),
            ("temperature", "1e40"),
            ("top_p", "[]"),
            ("top_k", "true"),
            ("seed", "-3"),
            ("stop", "7"),
            ("stop", "[7]"),
            ("stop_token_ids", "[-1]"),
            ("ignore_eos", "1"),
            ("include_stop", "\"yes\""),
            ("skip_special_tokens", "0"),
            ("speculation", "[]"),
            ("priority", "1.5"),
            ("priority", "2147483648"),
            ("tools", "{}"),
            ("documents", "[1]"),
            ("chat_template_kwargs", "[]"),
            ("prompt_logprobs", "256"),
            ("n", "\"2\""),
            ("logprobs", "256"),
            ("logprobs", "\"yes\""),
            ("logit_bias", "[1]"),
            ("logit_bias", r#"{"x": 1}"#),
            ("logit_bias", r#"{"1": "x"}"#),
            ("logit_bias", r#"{"1": 1e40}"#),
            ("namespace", "1.5"),
        ] {
            let error = parse(&format!(r#"{{"prompt": "a", "{field}": {value}}}"#)).unwrap_err();
            let JsonRequestError::Value { field: named, .. } = error else {
                panic!("{field}: {value} gave {error:?}");
            };
            assert_eq!(named, field);
        }
        for (field, value) in
            [("prompt", "[1]"), ("messages", "[{}]"), ("messages", "[]"), ("token_ids", "\"a\"")]
        {
            let error = parse(&format!(r#"{{"{field}": {value}}}"#)).unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        let request = parse(r#"{"prompt": "a", "max_token": 3, "x": {}, "y": null}"#).unwrap();
        assert_eq!(request.unknown, ["max_token", "x"]);
        assert_eq!(parse("{}"), Err(JsonRequestError::Prompts { count: 0 }));
        let both = parse(r#"{"prompt": "a", "token_ids": [1]}"#);
        assert_eq!(both, Err(JsonRequestError::Prompts { count: 2 }));
        assert!(matches!(parse("[1]"), Err(JsonRequestError::NotAnObject { .. })));
        let cut = parse(r#"{"prompt": "a"#);
        assert!(matches!(cut, Err(JsonRequestError::Syntax { column: 13, .. })), "{cut:?}");
    }

    #[test]
    fn long_values_are_cut_in_errors_between_characters() {
        let text = format!(r#"{{"prompt": "a", "n": "{}"}}"#, "ö".repeat(500));
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.len() < 200 && error.ends_with("..."), "{error}");
    }
}
