//! Prompts in which what users say is told apart from what the template says.
//!
//! A chat template writes control tokens into a prompt, and a user may write them as well. Whether
//! `<|im_end|>` came from the one or the other can't be seen in the prompt's text. So control
//! tokens in what users and tools say are put between two marks before the template sees them, as
//! transformers does for `sanitize_control_tokens`; the marks then cut the rendered text into parts.

use std::collections::BTreeSet;

use serde_json::Value;

use super::ChatMessage;

/// Marks around a control token that is text. Unicode reserves both for use within programs.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TextPart {
    /// The text.
    pub text: String,
    /// It is a control token that somebody wrote, and text like any other.
    pub is_plain: bool,
}

impl TextPart {
    pub(super) fn new(text: impl Into<String>, is_plain: bool) -> Self {
        Self { text: text.into(), is_plain }
    }
}

/// Whether a role's words are those of the service or of its model, rather than a user's or a
/// tool's.
fn is_trusted(role: &str) -> bool {
    matches!(role, "system" | "developer" | "assistant" | "model")
}

/// Finds control tokens in text.
#[derive(Debug)]
pub(super) struct ControlTokens<'a> {
    /// Longest first, so that one which another begins with is not taken for it.
    tokens: Vec<&'a str>,
    beginnings: BTreeSet<char>,
}

impl<'a> ControlTokens<'a> {
    pub(super) fn new(tokens: impl IntoIterator<Item = &'a str>) -> Self {
        let mut tokens: Vec<&str> = tokens.into_iter().filter(|text| !text.is_empty()).collect();
        tokens.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let beginnings = tokens.iter().filter_map(|text| text.chars().next()).collect();
        Self { tokens, beginnings }
    }

    /// Marks the control tokens in what users and tools say.
    pub(super) fn mark_messages(&self, messages: &mut [ChatMessage]) {
        for message in messages.iter_mut().filter(|message| !is_trusted(&message.role)) {
            message.fields.values_mut().for_each(|value| self.mark(value));
        }
    }

    /// Marks them in all texts of a value.
    pub(super) fn mark(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.marked(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.mark(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.mark(field)),
            _ => {}
        }
    }

    fn marked(&self, text: &str) -> String {
        // Nobody else may use the marks.
        let text = text.replace([OPEN, CLOSE], "");
        let mut marked = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find(|character| self.beginnings.contains(&character)) {
            marked.push_str(&rest[..at]);
            rest = &rest[at..];
            match self.tokens.iter().find(|token| rest.starts_with(**token)) {
                Some(token) => {
                    marked.push(OPEN);
                    marked.push_str(token);
                    marked.push(CLOSE);
                    rest = &rest[token.len()..];
                }
                None => {
                    let first = rest.chars().next().map_or(0, char::len_utf8);
                    marked.push_str(&rest[..first]);
                    rest = &rest[first..];
                }
            }
        }
        marked + rest
    }

    /// Cuts a rendered text at the marks. A mark that the template has torn from its token still
    /// separates what stands on its sides, so that these don't become a token.
    pub(super) fn parts(&self, rendered: &str) -> Vec<TextPart> {
        // A template that escapes what is not ASCII has escaped the marks.
        let rendered = rendered.replace("\\ufdd0", "\u{fdd0}").replace("\\ufdd1", "\u{fdd1}");
        let mut parts = Vec::new();
        for (number, piece) in rendered.split(OPEN).enumerate() {
            let (token, rest) = match piece.split_once(CLOSE) {
                Some((token, rest)) if number > 0 && self.tokens.contains(&token) => {
                    (Some(token), rest)
                }
                _ => (None, piece),
            };
            parts.extend(token.map(|token| TextPart::new(token, true)));
            let texts = rest.split(CLOSE).filter(|text| !text.is_empty());
            parts.extend(texts.map(|text| TextPart::new(text, false)));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn marks_come_back_as_parts_and_nobody_else_can_set_them() {
        let control = ControlTokens::new(["<s>", "<|end|>", "<|end|>x"]);
        let mut value = json!(["a<|end|>b<s>", { "k": "<|en\u{fdd0}d|>x<" }]);
        control.mark(&mut value);
        let text = format!("<s>{}{}", value[0].as_str().unwrap(), value[1]["k"].as_str().unwrap());
        let expected = [
            ("<s>a", false),
            ("<|end|>", true),
            ("b", false),
            ("<s>", true),
            ("<|end|>x", true),
            ("<", false),
        ];
        let parts = control.parts(&text);
        assert!(parts.iter().map(|part| (part.text.as_str(), part.is_plain)).eq(expected));
        let torn = control.parts("a\u{fdd0}<s\u{fdd1}>b");
        assert!(torn.iter().map(|part| part.text.as_str()).eq(["a", "<s", ">b"]));
    }
}
