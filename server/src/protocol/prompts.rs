//! Texts or tokens that are to be continued.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What is to be continued: texts or tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// One text or list of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PromptInput {
    Text(String),
    Tokens(Vec<u32>),
}

/// Most entries of a list: each takes more memory than its few bytes of JSON.
pub(crate) const MOST_ENTRIES: usize = 1 << 20;

impl Prompts {
    pub(crate) fn into_list(self) -> Vec<PromptInput> {
        match self {
            Self::Text(text) => vec![PromptInput::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(PromptInput::Text).collect(),
            Self::Tokens(tokens) => vec![PromptInput::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(PromptInput::Tokens).collect(),
        }
    }

    /// It is a list of prompts, rather than one.
    pub(crate) fn is_batch(&self) -> bool {
        matches!(self, Self::Texts(_) | Self::TokenLists(_))
    }
}

/// Reads every element into its place at once: an untagged enum would keep a copy of each that is eight times as large.
impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text, a list of texts, a list of token ids or a list of such lists")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Prompts, E> {
        Ok(Prompts::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts, A::Error> {
        let mut prompts = Prompts::Texts(Vec::new());
        let mut is_first = true;
        while let Some(element) = list.next_element()? {
            if is_first {
                match element {
                    Element::Token(_) => prompts = Prompts::Tokens(Vec::new()),
                    Element::Tokens(_) => prompts = Prompts::TokenLists(Vec::new()),
                    Element::Text(_) | Element::Other => {}
                }
                is_first = false;
            }
            let entries = match (&mut prompts, element) {
                (Prompts::Tokens(tokens), Element::Token(token)) => {
                    tokens.push(token);
                    1
                }
                (Prompts::Texts(texts), Element::Text(text)) => {
                    texts.push(text);
                    texts.len()
                }
                (Prompts::TokenLists(lists), Element::Tokens(tokens)) => {
                    lists.push(tokens);
                    lists.len()
                }
                _ => {
                    return Err(A::Error::custom(
                        "must be a text, a list of texts, a list of token ids or a list of such lists",
                    ));
                }
            };
            if entries > MOST_ENTRIES {
                let message = format_args!("a list has at most {MOST_ENTRIES} entries");
                return Err(A::Error::custom(message));
            }
        }
        Ok(prompts)
    }
}

/// An element of a list. One of a wrong kind is not an error yet, so that the list is what the error names.
enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
    Other,
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text, a token id or a list of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Text(text))
    }

    fn visit_u64<E: Error>(self, token: u64) -> Result<Element, E> {
        Ok(u32::try_from(token).map_or(Element::Other, Element::Token))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Element, E> {
        Ok(Element::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Element, E> {
        Ok(Element::Other)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Element, E> {
        Ok(Element::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Element, E> {
        Ok(Element::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Element, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Element::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
        let mut tokens = Vec::new();
        let mut is_right = true;
        while let Some(element) = list.next_element()? {
            match element {
                Element::Token(token) => tokens.push(token),
                _ => is_right = false,
            }
        }
        Ok(if is_right { Element::Tokens(tokens) } else { Element::Other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_texts_or_tokens_or_lists_of_either() {
        let read = |json: &str| serde_json::from_str::<Prompts>(json).ok();
        assert_eq!(read("\"a\""), Some(Prompts::Text("a".to_owned())));
        assert_eq!(read("[\"a\", \"\\n\"]"), Some(Prompts::Texts(vec!["a".into(), "\n".into()])));
        assert_eq!(read("[1, 4294967295]"), Some(Prompts::Tokens(vec![1, u32::MAX])));
        assert_eq!(read("[[1], []]"), Some(Prompts::TokenLists(vec![vec![1], vec![]])));
        assert_eq!(read("[]"), Some(Prompts::Texts(vec![])));
        for wrong in [
            "1",
            "null",
            "{}",
            "[1, \"a\"]",
            "[\"a\", 1]",
            "[[1], 1]",
            "[[1], [\"a\"]]",
            "[-1]",
            "[4294967296]",
            "[1.5]",
            "[true]",
            "[null]",
            "[{\"a\": [1]}]",
            "[[[1]]]",
            "[1",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lists_of_little_have_an_end() {
        let list = |entries: usize| format!("[{}[]]", "[],".repeat(entries - 1));
        let read = |entries| serde_json::from_str::<Prompts>(&list(entries));
        assert!(read(MOST_ENTRIES).is_ok());
        assert!(read(MOST_ENTRIES + 1).unwrap_err().to_string().contains("at most 1048576"));
    }
}
