use std::sync::LazyLock;

use models::text::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::vocabularies::{byte_level, from_json, llama2_decoder, sentence_piece};

/// The deltas of a stream, the last one from its end.
fn deltas(tokenizer: &Tokenizer, tokens: &[u32], skip_special: bool) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer(skip_special);
    let mut deltas: Vec<String> =
        tokens.iter().map(|token| detokenizer.push(*token).to_owned()).collect();
    deltas.push(detokenizer.finish().to_owned());
    deltas
}

fn bytes_of(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    text.bytes()
        .map(|byte| 3 + u32::from(byte))
        .inspect(|id| {
            assert_eq!(tokenizer.token_bytes(*id).unwrap().len(), 1);
        })
        .collect()
}

/// With words that begin and end within characters, as real vocabularies have.
static BYTE_LEVEL: LazyLock<Tokenizer> = LazyLock::new(|| {
    Tokenizer::from_gguf(&byte_level("smollm", &["Hello", " world", "né", "日本", "👩‍👧"])).unwrap()
});

#[test]
fn character_is_emitted_when_its_last_byte_has_come() {
    let tokenizer = &*BYTE_LEVEL;
    let tokens = bytes_of(tokenizer, "aé👧");
    assert_eq!(deltas(tokenizer, &tokens, false), ["a", "", "é", "", "", "", "👧", ""]);
}

#[test]
fn dangling_tail_becomes_one_replacement_character() {
    let tokenizer = &*BYTE_LEVEL;
    let tokens = &bytes_of(tokenizer, "a👧")[..4];
    assert_eq!(deltas(tokenizer, tokens, false), ["a", "", "", "", "\u{fffd}"]);
}

#[test]
fn bytes_that_cannot_become_a_character_do_not_hold_the_stream_back() {
    let tokenizer = &*BYTE_LEVEL;
    let tokens: Vec<u32> = [0x80, 0xE6, b'x', 0xFF].map(|byte| 3 + u32::from(byte)).into();
    let expected = ["\u{fffd}", "", "\u{fffd}x", "\u{fffd}", ""];
    assert_eq!(deltas(tokenizer, &tokens, false), expected);
}

#[test]
fn real_replacement_character_is_emitted_at_once() {
    let tokenizer = &*BYTE_LEVEL;
    let tokens = bytes_of(tokenizer, "\u{fffd}");
    assert_eq!(deltas(tokenizer, &tokens, false), ["", "", "\u{fffd}", ""]);
}

#[test]
fn leading_space_of_sentence_piece_is_dropped_once() {
    let tokenizer = from_json(&sentence_piece(&["▁the", "▁", "a"], &llama2_decoder()));
    assert_eq!(deltas(&tokenizer, &[258, 258], false), ["the", " the", ""]);
    assert_eq!(deltas(&tokenizer, &[259, 259, 260], false), ["", " ", "a", ""]);
    assert_eq!(deltas(&tokenizer, &[0, 258], true), ["", "the", ""]);
    assert_eq!(deltas(&tokenizer, &[0, 258], false), ["<s>", " the", ""]);
    // The space may come as a byte, too.
    assert_eq!(deltas(&tokenizer, &[2 + 0x20, 260], false), ["", "a", ""]);
}

#[test]
fn text_is_continued_after_a_token_whose_delta_is_discarded() {
    let tokenizer = from_json(&sentence_piece(&["▁the"], &llama2_decoder()));
    let mut detokenizer = tokenizer.detokenizer(true);
    detokenizer.push(258);
    assert_eq!(detokenizer.push(258), " the");
}

#[test]
fn metaspace_drops_the_leading_space_of_the_first_token() {
    let metaspace = |scheme: &str| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true });
    let first = from_json(&sentence_piece(&["▁a▁b"], &metaspace("first")));
    assert_eq!(deltas(&first, &[258, 258], false), ["ab", " a b", ""]);
    let never = from_json(&sentence_piece(&["▁a▁b"], &metaspace("never")));
    assert_eq!(deltas(&never, &[258, 258], false), [" a b", " a b", ""]);
}

#[test]
fn detokenizer_begins_anew_after_the_end() {
    let tokenizer = from_json(&sentence_piece(&["▁the"], &llama2_decoder()));
    let mut detokenizer = tokenizer.detokenizer(true);
    detokenizer.push(258);
    detokenizer.push(2 + 0xE6);
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
    assert_eq!(detokenizer.push(258), "the");
}

/// The `tokenizers` crate's own decoding of a whole list is the oracle.
fn oracle(definition: &Value) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(definition.to_string()).unwrap()
}

static BYTE_LEVEL_ORACLE: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| {
    let vocabulary: serde_json::Map<String, Value> =
        (0..).map_while(|id| Some((BYTE_LEVEL.id_to_token(id)?.to_owned(), json!(id)))).collect();
    oracle(&json!({
        "added_tokens": [],
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false,
        },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    }))
});

static SENTENCE_PIECE: LazyLock<(Tokenizer, tokenizers::Tokenizer)> = LazyLock::new(|| {
    let definition = sentence_piece(&["▁the", "▁", "a", "▁▁", "日本"], &llama2_decoder());
    (from_json(&definition), oracle(&definition))
});

proptest! {
    #[test]
    fn byte_level_deltas_concatenate_to_the_whole_text(
        tokens in proptest::collection::vec(0_u32..280, 0..60),
        skip_special in any::<bool>(),
    ) {
        let tokenizer = &*BYTE_LEVEL;
        let all_bytes: Vec<u8> = tokens
            .iter()
            .filter(|token| !(skip_special && tokenizer.is_special(**token)))
            .filter_map(|token| tokenizer.token_bytes(*token))
            .flatten()
            .collect();
        let expected = String::from_utf8_lossy(&all_bytes);
        prop_assert_eq!(&deltas(tokenizer, &tokens, skip_special).concat(), &expected);
        prop_assert_eq!(&tokenizer.decode(&tokens, skip_special), &expected);
        if !skip_special {
            prop_assert_eq!(BYTE_LEVEL_ORACLE.decode(&tokens, false).unwrap(), expected);
        }
    }

    #[test]
    fn sentence_piece_deltas_concatenate_to_the_whole_text(
        // Byte tokens only as the whole bytes of characters: for ill-formed runs the crate
        // counts replacement characters in its own way.
        choices in proptest::collection::vec(
            prop_oneof![(0_u32..2), (258_u32..263), Just(1000)].prop_map(|id| vec![id])
                .boxed()
                .prop_union(
                    any::<char>()
                        .prop_map(|character| {
                            let text = character.to_string();
                            text.bytes().map(|byte| 2 + u32::from(byte)).collect()
                        })
                        .boxed(),
                ),
            0..30,
        ),
        skip_special in any::<bool>(),
    ) {
        let (tokenizer, oracle) = &*SENTENCE_PIECE;
        let tokens = choices.concat();
        let expected = oracle.decode(&tokens, skip_special).unwrap();
        prop_assert_eq!(deltas(tokenizer, &tokens, skip_special).concat(), expected.clone());
        prop_assert_eq!(tokenizer.decode(&tokens, skip_special), expected);
    }

    #[test]
    fn at_most_three_bytes_are_held_back(
        tokens in proptest::collection::vec(3_u32..280, 1..60),
    ) {
        let tokenizer = &*BYTE_LEVEL;
        let mut detokenizer = tokenizer.detokenizer(false);
        let (mut bytes, mut shown) = (Vec::new(), String::new());
        for token in tokens {
            shown.push_str(detokenizer.push(token));
            bytes.extend(tokenizer.token_bytes(token).unwrap());
            let certain = String::from_utf8_lossy(&bytes[..bytes.len().saturating_sub(3)]);
            prop_assert!(String::from_utf8_lossy(&bytes).starts_with(&shown));
            prop_assert!(shown.len() + 3 >= certain.len(), "{shown:?} {certain:?}");
        }
    }
}

/// The text that is certain after `tokens`, and the detokenizer that continues it.
fn continued(tokenizer: &Tokenizer, tokens: &[u32], rest: &[u32], skip: bool) -> (String, String) {
    let mut whole = tokenizer.detokenizer(skip);
    let certain = tokens.iter().map(|token| whole.push(*token).to_owned()).collect();
    let mut detokenizer = tokenizer.detokenizer(skip);
    detokenizer.continue_after(tokens);
    let mut text: String = rest.iter().map(|token| detokenizer.push(*token).to_owned()).collect();
    text.push_str(detokenizer.finish());
    (certain, text)
}

#[test]
fn continued_text_keeps_its_first_space_and_completes_a_character() {
    let tokenizer = from_json(&sentence_piece(&["▁the", "▁", "a"], &llama2_decoder()));
    assert_eq!(continued(&tokenizer, &[258], &[258], true).1, " the");
    assert_eq!(continued(&tokenizer, &[0], &[258], true).1, "the", "no text is continued");
    assert_eq!(continued(&tokenizer, &[258, 0], &[258], true).1, " the");
    let tokens = bytes_of(&BYTE_LEVEL, "a👧b");
    assert_eq!(continued(&BYTE_LEVEL, &tokens[..4], &tokens[4..], true).1, "👧b");
    assert_eq!(continued(&BYTE_LEVEL, &tokens[..4], &tokens[5..], true).1, "b");
    assert_eq!(continued(&BYTE_LEVEL, &tokens[..4], &[], true).1, "");
    assert_eq!(continued(&BYTE_LEVEL, &tokens[..3], &tokens[3..4], true).1, "\u{fffd}");
}

proptest! {
    #[test]
    fn a_text_cut_anywhere_is_the_text_that_was_certain_and_its_continuation(
        tokens in prop::collection::vec(0_u32..264, 0..20), cut in 0_usize..20, skip: bool,
    ) {
        let pieces = from_json(&sentence_piece(&["▁the", "▁", "a", "世"], &llama2_decoder()));
        for tokenizer in [&*BYTE_LEVEL, &pieces] {
            let (prompt, rest) = tokens.split_at(cut.min(tokens.len()));
            let (certain, text) = continued(tokenizer, prompt, rest, skip);
            let whole = tokenizer.decode(&tokens, skip);
            let ended = tokenizer.decode(prompt, skip);
            prop_assert!(
                whole == format!("{certain}{text}") || whole == format!("{ended}{text}"),
                "{:?} is neither {:?} nor {:?} with {:?}", whole, certain, ended, text
            );
        }
    }
}
