//! The messages of a conversation, in the shapes that clients send them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation.
///
/// In JSON it is an object with `role`, usually `content`, and whatever else a template knows
/// (`tool_calls`, `reasoning_content`, `name`, ...): all fields reach the template, see
/// [`ChatTemplate`](super::ChatTemplate).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// All other fields, `content` among them.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// The names of what an assistant thought, that of templates first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl ChatMessage {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("content".to_owned(), Value::String(content.into()));
        Self { role: role.into(), fields }
    }

    /// Drops fields that are `null`, as clients of OpenAI's API send them and templates can't
    /// take them, and gives reasoning the names that templates know. `apply_chat_template` does
    /// the same.
    pub(super) fn normalize(&mut self) {
        self.fields.retain(|_, value| !value.is_null());
        let reasoning = REASONING.iter().find_map(|name| self.fields.get(*name)).cloned();
        if let Some(reasoning) = reasoning {
            self.fields.entry("thinking").or_insert_with(|| reasoning.clone());
            self.fields.insert("reasoning_content".to_owned(), reasoning);
        }
    }

    /// Whether the content is a list of texts: `[{"type": "text", "text": ..}, ..]`.
    pub(super) fn has_text_parts(&self) -> bool {
        self.text_parts().is_some()
    }

    /// Makes one text of a content that is a list of texts, a line break between them.
    pub(super) fn join_parts(&mut self) {
        if let Some(parts) = self.text_parts() {
            let text = parts.join("\n");
            self.fields.insert("content".to_owned(), Value::String(text));
        }
    }

    fn text_parts(&self) -> Option<Vec<&str>> {
        fn text(part: &Value) -> Option<&str> {
            match part.get("type")?.as_str()? {
                "text" | "input_text" | "output_text" => part.get("text")?.as_str(),
                _ => None,
            }
        }
        let parts = self.fields.get("content")?.as_array().filter(|parts| !parts.is_empty())?;
        parts.iter().map(text).collect()
    }

    /// Whether a call of a tool has its arguments as JSON in a string.
    pub(super) fn has_encoded_arguments(&self) -> bool {
        let calls = self.fields.get("tool_calls").and_then(Value::as_array);
        calls.into_iter().flatten().any(|call| decoded(call_arguments(call)).is_some())
    }

    /// Turns such arguments into the object that they stand for.
    pub(super) fn decode_arguments(&mut self) {
        let calls = self.fields.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            if let Some(object) = decoded(call_arguments(call))
                && let Some(arguments) = call.pointer_mut("/function/arguments")
            {
                *arguments = object;
            }
        }
    }
}

fn call_arguments(call: &Value) -> Option<&Value> {
    call.pointer("/function/arguments")
}

fn decoded(arguments: Option<&Value>) -> Option<Value> {
    serde_json::from_str(arguments?.as_str()?).ok().filter(Value::is_object)
}
