//! What each token contributes to a text.
//!
//! A tokenizer's decoder is a pipeline over a whole list of tokens. Nearly all of what such
//! pipelines do is local to a token: it stands for some bytes. Only the beginning of a text is
//! special (the space that SentencePiece put in front is dropped again), and so is the end of
//! a character whose bytes are spread over several tokens. So this table knows a token's bytes,
//! and [`super::IncrementalDetokenizer`] the rest; decoding a whole list is the same walk, and
//! streaming costs O(1) a token instead of decoding a window anew each time.

use std::borrow::Cow;

use serde_json::Value;

use super::TextError;
use crate::clip;

/// How many ids below the largest may have no token, so that a lying file cannot make us allocate a
/// huge table. The largest vocabularies in use have about 2^18 tokens, and few gaps.
const MAX_GAPS: usize = 1 << 20;

/// The tokens of a vocabulary by id, and the rule by which they become bytes.
#[derive(Debug)]
pub(crate) struct TokenTable {
    tokens: Vec<Option<Token>>,
    decoding: Decoding,
}

#[derive(Debug)]
struct Token {
    text: Box<str>,
    special: bool,
}

/// How the text of tokens becomes the bytes of the text they stand for.
#[derive(Debug, PartialEq, Eq)]
enum Decoding {
    /// Every character of a token stands for one byte (GPT-2's byte-level BPE).
    ByteLevel,
    /// `replacement` stands for a space; in the first token of a text it stands for nothing if
    /// `drop_in_first`, as the tokenizer put it there.
    Metaspace { replacement: char, drop_in_first: bool },
    /// SentencePiece's BPE as `tokenizer.json` spells it: replace, read `<0x0A>` as a byte, and
    /// drop up to `strip.1` leading characters `strip.0` from the text.
    Pieces {
        replacements: Vec<(String, String)>,
        byte_fallback: bool,
        strip: Option<(char, usize)>,
    },
}

impl TokenTable {
    /// Builds the table of the vocabulary `tokens` (text, id, whether it is special) for a
    /// decoder given as `tokenizer.json` spells it.
    ///
    /// # Errors
    ///
    /// [`TextError::UnsupportedDecoder`], and [`TextError::InvalidTokenizer`] for an absurd id.
    pub(crate) fn new(
        tokens: impl IntoIterator<Item = (String, u32, bool)>,
        decoder: &Value,
    ) -> Result<Self, TextError> {
        let decoding = Decoding::from_json(decoder)
            .ok_or_else(|| TextError::UnsupportedDecoder { decoder: decoder.to_string() })?;
        let tokens: Vec<_> = tokens.into_iter().collect();
        let largest = tokens.iter().max_by_key(|(_, id, _)| *id);
        let len = largest.map_or(0, |(_, id, _)| *id as usize + 1);
        if let Some((text, id, _)) = largest.filter(|_| len > tokens.len() + MAX_GAPS) {
            return Err(TextError::InvalidTokenizer {
                reason: format!("token {text:?} of {} has the absurd id {id}", tokens.len()),
            });
        }
        let mut table = Vec::new();
        table.resize_with(len, || None);
        for (text, id, special) in tokens {
            let token = Token { text: text.into(), special };
            if let Some(other) = table[id as usize].replace(token) {
                return Err(TextError::InvalidTokenizer {
                    reason: format!(
                        "two tokens, \"{}\" being one, have the id {id}",
                        clip(&other.text)
                    ),
                });
            }
        }
        Ok(Self { tokens: table, decoding })
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The token's text as the vocabulary writes it.
    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        Some(&self.get(id)?.text)
    }

    /// Whether the token is a special one; an id outside the vocabulary is not.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.get(id).is_some_and(|token| token.special)
    }

    /// Appends the bytes that the token contributes to a text whose first token it is or is not.
    /// Returns whether there is such a token.
    pub(crate) fn append_bytes(&self, id: u32, first: bool, bytes: &mut Vec<u8>) -> bool {
        let Some(token) = self.get(id) else { return false };
        self.decoding.append_bytes(&token.text, first, bytes);
        true
    }

    /// The character of which up to so many are dropped at the beginning of a text.
    pub(crate) fn leading_strip(&self) -> Option<(char, usize)> {
        match self.decoding {
            Decoding::Pieces { strip, .. } => strip,
            _ => None,
        }
    }

    fn get(&self, id: u32) -> Option<&Token> {
        self.tokens.get(id as usize)?.as_ref()
    }
}

impl Decoding {
    /// Reads the `decoder` of a `tokenizer.json`. `None` if it is not one of those that language
    /// models use.
    fn from_json(decoder: &Value) -> Option<Self> {
        match decoder.get("type")?.as_str()? {
            "ByteLevel" => Some(Self::ByteLevel),
            "Metaspace" => Some(Self::Metaspace {
                replacement: single_char(decoder.get("replacement")?)?,
                drop_in_first: decoder.get("prepend_scheme").and_then(Value::as_str)
                    != Some("never"),
            }),
            "Sequence" => match decoder.get("decoders")?.as_array()?.as_slice() {
                [only] => Self::from_json(only),
                steps => Self::pieces(steps),
            },
            _ => None,
        }
    }

    /// Replacements, then byte fallback, then fusing, then stripping; each may be missing. In
    /// any other order the steps would mean something else, so that is refused.
    fn pieces(steps: &[Value]) -> Option<Self> {
        let (mut replacements, mut byte_fallback, mut strip) = (Vec::new(), false, None);
        let mut previous = 0;
        for step in steps {
            let place = match step.get("type")?.as_str()? {
                "Replace" => {
                    let pattern = step.get("pattern")?.get("String")?.as_str()?;
                    let content = step.get("content")?.as_str()?;
                    if pattern.is_empty() {
                        return None;
                    }
                    replacements.push((pattern.to_owned(), content.to_owned()));
                    1
                }
                "ByteFallback" => {
                    byte_fallback = true;
                    2
                }
                "Fuse" => 3,
                "Strip" if previous == 3 && step.get("stop")?.as_u64()? == 0 => {
                    let count = usize::try_from(step.get("start")?.as_u64()?).ok()?;
                    strip = Some((single_char(step.get("content")?)?, count));
                    4
                }
                _ => return None,
            };
            if place < previous {
                return None;
            }
            previous = place;
        }
        Some(Self::Pieces { replacements, byte_fallback, strip })
    }

    fn append_bytes(&self, text: &str, first: bool, bytes: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = bytes.len();
                for character in text.chars() {
                    let Some(byte) = byte_of_level_char(character) else {
                        // Not written in the byte alphabet: an added token, which is plain text.
                        bytes.truncate(start);
                        bytes.extend_from_slice(text.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
            }
            Self::Metaspace { replacement, drop_in_first } => {
                for part in text.split_inclusive(*replacement) {
                    match part.strip_suffix(*replacement) {
                        None => bytes.extend_from_slice(part.as_bytes()),
                        Some(before) => {
                            bytes.extend_from_slice(before.as_bytes());
                            if !(first && *drop_in_first) {
                                bytes.push(b' ');
                            }
                        }
                    }
                }
            }
            Self::Pieces { replacements, byte_fallback, .. } => {
                let mut text = Cow::Borrowed(text);
                for (pattern, content) in replacements {
                    if text.contains(pattern.as_str()) {
                        text = Cow::Owned(text.replace(pattern.as_str(), content));
                    }
                }
                match fallback_byte(&text).filter(|_| *byte_fallback) {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend_from_slice(text.as_bytes()),
                }
            }
        }
    }
}

/// The byte that a character of GPT-2's byte alphabet stands for: printable Latin-1 characters
/// stand for themselves, and the remaining 68 bytes are in order the characters from U+0100.
fn byte_of_level_char(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte that SentencePiece's `<0x0A>` stands for.
fn fallback_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

fn single_char(value: &Value) -> Option<char> {
    let mut characters = value.as_str()?.chars();
    characters.next().filter(|_| characters.next().is_none())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn byte_alphabet_is_a_bijection_onto_all_bytes() {
        let mut bytes: Vec<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of_level_char).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        assert!(bytes.iter().copied().eq(0..=255));
        assert_eq!(byte_of_level_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_level_char('Ċ'), Some(b'\n'));
    }

    #[test]
    fn decoders_in_an_unknown_order_are_refused() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let (fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let decoding =
            |steps: Value| Decoding::from_json(&json!({"type": "Sequence", "decoders": steps}));
        assert!(decoding(json!([replace, fallback, fuse, strip])).is_some());
        assert!(decoding(json!([replace, fallback, fuse])).is_some());
        assert_eq!(decoding(json!([fallback, replace])), None);
        assert_eq!(decoding(json!([replace, strip, fuse])), None);
        assert_eq!(decoding(json!([{"type": "WordPiece"}, fuse])), None);
        assert_eq!(Decoding::from_json(&Value::Null), None);
    }

    #[test]
    fn absurd_token_id_is_refused_before_a_table_is_allocated() {
        let decoder = json!({"type": "ByteLevel"});
        for id in [u32::MAX, (1 << 24) - 1, MAX_GAPS as u32 + 1] {
            let error = TokenTable::new([("a".to_owned(), id, false)], &decoder).unwrap_err();
            assert!(matches!(error, TextError::InvalidTokenizer { .. }), "{error}");
        }
        let table = TokenTable::new([("a".to_owned(), MAX_GAPS as u32, false)], &decoder);
        assert_eq!(table.unwrap().len(), MAX_GAPS + 1);
    }

    #[test]
    fn added_token_outside_the_byte_alphabet_is_plain_text() {
        let decoder = json!({"type": "ByteLevel"});
        let tokens = [("<｜end▁of▁turn｜>".to_owned(), 0, true), ("Ġa".to_owned(), 2, false)];
        let table = TokenTable::new(tokens, &decoder).unwrap();
        let mut bytes = Vec::new();
        assert!(table.append_bytes(0, true, &mut bytes));
        assert!(!table.append_bytes(1, false, &mut bytes));
        assert!(table.append_bytes(2, false, &mut bytes));
        assert!(!table.append_bytes(3, false, &mut bytes));
        assert_eq!(String::from_utf8(bytes).unwrap(), "<｜end▁of▁turn｜> a");
        assert_eq!(table.len(), 3);
        assert!(table.is_special(0) && !table.is_special(1) && !table.is_special(2));
    }
}
