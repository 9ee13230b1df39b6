//! Small vocabularies to test with.

use std::collections::HashSet;

use models::text::{GgufVocabulary, Tokenizer};
use serde_json::{Value, json};

pub(crate) const NORMAL: i32 = 1;
pub(crate) const CONTROL: i32 = 3;
pub(crate) const USER_DEFINED: i32 = 4;

/// GPT-2's byte alphabet, derived as its authors did: printable bytes stand for themselves, the
/// others are counted up from U+0100.
pub(crate) fn byte_alphabet() -> Vec<char> {
    let mut next = 0x100;
    (0..=255_u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap()
            }
        })
        .collect()
}

/// A byte-level vocabulary: `<|begin|>` 0, `<|end|>` 1, the user-defined `<tool>` 2, the 256
/// bytes, and `words` (as text), each built by merges from left to right.
pub(crate) fn byte_level(pre: &str, words: &[&str]) -> GgufVocabulary {
    let alphabet = byte_alphabet();
    let mut tokens = vec!["<|begin|>".to_owned(), "<|end|>".to_owned(), "<tool>".to_owned()];
    tokens.extend(alphabet.iter().map(char::to_string));
    let mut merges = Vec::new();
    let mut seen: HashSet<String> = tokens.iter().cloned().collect();
    // A vocabulary without merges would be refused.
    for word in words.iter().chain(&["~~"]) {
        let letters: Vec<char> = word.bytes().map(|byte| alphabet[usize::from(byte)]).collect();
        let mut left = letters[0].to_string();
        for letter in &letters[1..] {
            let merged = format!("{left}{letter}");
            if seen.insert(merged.clone()) {
                merges.push(format!("{left} {letter}"));
                tokens.push(merged.clone());
            }
            left = merged;
        }
    }
    let mut token_types = vec![CONTROL, CONTROL, USER_DEFINED];
    token_types.resize(tokens.len(), NORMAL);
    GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        tokens,
        token_types,
        merges,
        bos: Some(0),
        eos: vec![1],
        add_bos: Some(false),
        ..GgufVocabulary::default()
    }
}

/// The `tokenizer.json` of a SentencePiece BPE vocabulary with byte fallback, with the decoder
/// given: `<s>` 0, `</s>` 1, the 256 byte tokens from 2, then `pieces` from 258.
pub(crate) fn sentence_piece(pieces: &[&str], decoder: &Value) -> Value {
    let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = ["<s>".to_owned(), "</s>".to_owned()]
        .into_iter()
        .chain(bytes)
        .chain(pieces.iter().map(|piece| (*piece).to_owned()));
    let vocabulary: serde_json::Map<String, Value> =
        tokens.zip((0_u32..).map(Value::from)).collect();
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ]},
        "decoder": decoder,
        "model": {
            "type": "BPE", "byte_fallback": true, "unk_token": null, "fuse_unk": true,
            "vocab": vocabulary, "merges": [],
        },
    })
}

/// The decoder of Llama 2's `tokenizer.json`.
pub(crate) fn llama2_decoder() -> Value {
    json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ]})
}

pub(crate) fn from_json(definition: &Value) -> Tokenizer {
    Tokenizer::from_json(definition.to_string().as_bytes()).unwrap()
}
