//! The tokens that a model gives a meaning beyond text.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The tokens that begin and end a text, and all the others that have a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecialTokens {
    /// The token that begins a text, if the model has one. Whether the tokenizer puts it in
    /// front of a prompt by itself is another matter: that is what `encode` with
    /// `add_special_tokens` does where the tokenizer definition says so.
    pub bos: Option<u32>,
    /// The tokens that end a text or a turn, in ascending order. Generation stops at any of them.
    pub eos: Vec<u32>,
    /// Names, as chat templates use them (`bos_token`, `eos_token`, `pad_token`, ...), to the
    /// text of the token.
    pub named: BTreeMap<String, String>,
}

impl SpecialTokens {
    /// Reads `bos_token`, `eos_token` and their kin from a `tokenizer_config.json`. The ids are
    /// looked up by `token_to_id`; a name whose token is not in the vocabulary keeps its text
    /// (templates may use it) but gives no id.
    pub(crate) fn from_tokenizer_config(
        config: &Map<String, Value>,
        token_to_id: impl Fn(&str) -> Option<u32>,
    ) -> Self {
        let named: BTreeMap<String, String> = config
            .iter()
            .filter(|(key, _)| key.ends_with("_token"))
            .filter_map(|(key, value)| Some((key.clone(), token_text(value)?.to_owned())))
            .collect();
        let id_of = |name: &str| named.get(name).and_then(|text| token_to_id(text));
        let bos = id_of("bos_token");
        let eos = id_of("eos_token").into_iter().collect();
        Self { bos, eos, named }
    }

    /// Adds a token that ends a text. Adding one twice changes nothing.
    pub fn add_eos(&mut self, token: u32) {
        if let Err(place) = self.eos.binary_search(&token) {
            self.eos.insert(place, token);
        }
    }
}

/// A special token is written as its text, or as an object that has it under `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
