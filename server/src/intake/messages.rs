//! Messages as clients send them into messages that chat templates take.

use serde_json::{Map, Value};
use understory::text::{ChatMessage, ChatOptions};

use crate::protocol::{Message, Refused};

/// The conversation, with the text parts of each content joined by line breaks.
pub(crate) fn messages(messages: Vec<Message>) -> Result<Vec<ChatMessage>, Refused> {
    if messages.is_empty() {
        return Err(Refused::invalid(Some("messages"), "there must be a message at least"));
    }
    messages.into_iter().enumerate().map(|(index, message)| one(index, message)).collect()
}

/// Bytes of all texts that a template may write: of the conversation, its tools, its documents and its variables.
pub(crate) fn length(messages: &[ChatMessage], options: &ChatOptions) -> usize {
    let fields = messages.iter().flat_map(|message| message.fields.values());
    let lists = [&options.tools, &options.documents].into_iter().flatten().flatten();
    fields.chain(lists).chain(options.variables.values()).map(texts).sum()
}

fn texts(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(texts).sum(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| name.len() + texts(value)).sum()
        }
        _ => 0,
    }
}

fn one(index: usize, message: Message) -> Result<ChatMessage, Refused> {
    let Message { role, mut fields } = message;
    let role = match &*role {
        "developer" => "system".to_owned(),
        "function" => "tool".to_owned(),
        "system" | "user" | "assistant" | "tool" => role,
        _ => {
            let roles = "system, developer, user, assistant, tool or function";
            let message = format!("the role {role:?} is not one of {roles}");
            return Err(Refused::invalid(Some(&format!("messages[{index}].role")), message));
        }
    };
    let content = content(index, fields.get("content"))?;
    let may_be_silent = role == "assistant"
        && ["tool_calls", "function_call", "reasoning_content", "refusal"]
            .iter()
            .any(|name| fields.get(*name).is_some_and(|value| !value.is_null()));
    let content = match content {
        None if !may_be_silent => {
            let param = format!("messages[{index}].content");
            return Err(Refused::invalid(Some(&param), format!("{param} is missing")));
        }
        content => content.unwrap_or_default(),
    };
    fields.insert("content".to_owned(), Value::String(content));
    let mut message = ChatMessage::new(role, "");
    message.fields = fields;
    Ok(message)
}

fn content(index: usize, content: Option<&Value>) -> Result<Option<String>, Refused> {
    match content {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (place, part) in parts.iter().enumerate() {
                match part_text(part) {
                    Some(text) => texts.push(text),
                    None => {
                        let param = format!("messages[{index}].content[{place}]");
                        return Err(match part.get("type").and_then(Value::as_str) {
                            Some("text" | "input_text" | "output_text" | "refusal") | None => {
                                Refused::invalid(Some(&param), format!("{param} has no text"))
                            }
                            Some(kind) => {
                                let message =
                                    format!("{param}: parts of type {kind:?} are not supported");
                                Refused::invalid(Some(&param), message).code("unsupported")
                            }
                        });
                    }
                }
            }
            Ok(Some(texts.join("\n")))
        }
        Some(_) => {
            let param = format!("messages[{index}].content");
            let message = format!("{param}: must be a text or a list of parts");
            Err(Refused::invalid(Some(&param), message))
        }
    }
}

fn part_text(part: &Value) -> Option<&str> {
    let text = |part: &Map<String, Value>| match part.get("type")?.as_str()? {
        "text" | "input_text" | "output_text" => Some("text"),
        "refusal" => Some("refusal"),
        _ => None,
    };
    let part = part.as_object()?;
    part.get(text(part)?)?.as_str()
}
