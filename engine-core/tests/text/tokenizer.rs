use engine_core::text::{GgufVocabulary, SpecialTokens, TextError, Tokenizer};
use serde_json::{Value, json};

use super::vocabularies::{byte_level, from_json, llama2_decoder, sentence_piece};

const WORDS: [&str; 12] =
    ["Hello", " world", " the", "don", "'t", "'T", " 1234", "1234", "  ", "\n\n", "!!", "ab"];

/// The pieces that a text is encoded to, with the byte alphabet undone.
fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let tokens = tokenizer.encode(text, false).unwrap();
    let pieces = tokens
        .iter()
        .map(|token| String::from_utf8_lossy(&tokenizer.token_bytes(*token).unwrap()).into_owned());
    pieces.collect()
}

fn gguf(pre: &str) -> Tokenizer {
    Tokenizer::from_gguf(&byte_level(pre, &WORDS)).unwrap()
}

#[test]
fn smollm_splits_digits_one_by_one() {
    let text = "Hello world 1234";
    assert_eq!(pieces(&gguf("smollm"), text), ["Hello", " world", " ", "1", "2", "3", "4"]);
    assert_eq!(pieces(&gguf("gpt-2"), text), ["Hello", " world", " 1234"]);
}

#[test]
fn llama_3_splits_digits_in_threes_and_keeps_contractions_in_any_case() {
    let tokenizer = gguf("llama-bpe");
    assert_eq!(pieces(&tokenizer, "don'T 1234"), ["don", "'T", " ", "123", "4"]);
    assert_eq!(pieces(&tokenizer, "!!\n\n"), ["!!", "\n\n"]);
}

#[test]
fn qwen_2_splits_digits_one_by_one_and_composes_characters() {
    let tokenizer = gguf("qwen2");
    assert_eq!(pieces(&tokenizer, "1234"), ["1", "2", "3", "4"]);
    let decomposed = tokenizer.encode("e\u{301}", false).unwrap();
    assert_eq!(tokenizer.decode(&decomposed, false), "\u{e9}");
}

#[test]
fn unnamed_pre_tokenizer_sets_punctuation_apart() {
    let mut vocabulary = byte_level("", &["!!a", "1234"]);
    vocabulary.pre = None;
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    assert_eq!(pieces(&tokenizer, "!!a1234"), ["!!", "a", "123", "4"]);
}

#[test]
fn whole_words_are_taken_before_merges_where_the_family_does() {
    // "abc" is a token that no merge leads to.
    let mut vocabulary = byte_level("llama-bpe", &["ab"]);
    vocabulary.tokens.push("abc".to_owned());
    vocabulary.token_types.push(1);
    assert_eq!(pieces(&Tokenizer::from_gguf(&vocabulary).unwrap(), "abc"), ["abc"]);
    vocabulary.pre = Some("qwen2".to_owned());
    assert_eq!(pieces(&Tokenizer::from_gguf(&vocabulary).unwrap(), "abc"), ["ab", "c"]);
}

#[test]
fn special_tokens_in_a_text_are_recognised() {
    let tokenizer = gguf("smollm");
    let tokens = tokenizer.encode("<|begin|>Hello<tool><|end|>\n", false).unwrap();
    assert_eq!(tokens[0], 0);
    assert_eq!(tokens[2..4], [2, 1]);
    assert_eq!(tokenizer.decode(&tokens, false), "<|begin|>Hello<tool><|end|>\n");
    assert_eq!(tokenizer.decode(&tokens, true), "Hello<tool>\n", "user-defined is not special");
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(2));
}

#[test]
fn beginning_and_end_are_added_where_the_file_asks_for_it() {
    let encode = |add_bos, add_eos, pre: &str| {
        let vocabulary = GgufVocabulary { add_bos, add_eos, ..byte_level(pre, &["ab"]) };
        Tokenizer::from_gguf(&vocabulary).unwrap().encode("ab", true).unwrap()
    };
    let ab = gguf("smollm").token_to_id("ab");
    assert!(ab.is_some());
    assert_eq!(encode(Some(false), false, "smollm").len(), 1);
    assert_eq!(encode(None, false, "smollm").len(), 1);
    assert_eq!(encode(None, false, "llama-bpe")[..1], [0], "the Llama 3 family begins texts");
    assert_eq!(encode(Some(false), false, "llama-bpe").len(), 1);
    let both = encode(Some(true), true, "smollm");
    assert_eq!((both.len(), both[0], both[2]), (3, 0, 1));
}

#[test]
fn special_tokens_of_a_gguf_file_have_ids_and_names() {
    let mut vocabulary = byte_level("smollm", &[]);
    vocabulary.eos = vec![2, 1, 2];
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    let special = tokenizer.special_tokens();
    assert_eq!((special.bos, special.eos.as_slice()), (Some(0), [1, 2].as_slice()));
    assert_eq!(special.named["bos_token"], "<|begin|>");
    assert_eq!(special.named["eos_token"], "<tool>");
}

#[test]
fn any_text_survives_a_round_trip_through_byte_level_tokens() {
    let text = "naïve 👩‍👩‍👧 日本語\u{0}\t\r\n  १२३ ﷽ ½ <|end|> e\u{301}";
    for pre in ["default", "gpt-2", "smollm", "starcoder", "refact", "llama3", "llama-v3"] {
        let tokenizer = gguf(pre);
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&tokens, false), text, "{pre}");
    }
}

#[test]
fn long_runs_of_white_space_are_split_right_or_refused() {
    let tokenizer = gguf("smollm");
    let longest = format!("{} the", " ".repeat(499_999));
    let tokens = tokenizer.encode(&longest, false).unwrap();
    assert_eq!(tokens.last().copied(), tokenizer.token_to_id("Ġthe"));
    let error = tokenizer.encode(&format!(" {longest}"), false).unwrap_err();
    assert!(matches!(error, TextError::WhiteSpace { limit: 500_000 }), "{error}");
}

#[test]
fn model_without_a_row_for_every_token_is_refused() {
    let tokenizer = gguf("smollm");
    let size = tokenizer.vocab_size();
    tokenizer.check_vocabulary(size).unwrap();
    tokenizer.check_vocabulary(size + 100).unwrap();
    let error = tokenizer.check_vocabulary(size - 1).unwrap_err();
    assert!(
        matches!(error, TextError::VocabularyMismatch { model_size, .. } if model_size == size - 1),
        "{error}"
    );
    let mut special = SpecialTokens::default();
    special.add_eos(9_999);
    let tokenizer = tokenizer.with_special_tokens(special);
    tokenizer.check_vocabulary(size).unwrap_err();
}

#[test]
fn unsupported_vocabularies_are_named_in_the_error() {
    let mut vocabulary = byte_level("tekken", &[]);
    let error = Tokenizer::from_gguf(&vocabulary).unwrap_err();
    assert!(matches!(&error, TextError::UnsupportedPreTokenizer { pre, .. } if pre == "tekken"));
    assert!(error.to_string().contains("smollm"), "{error}");
    vocabulary.model = "t5".to_owned();
    let error = Tokenizer::from_gguf(&vocabulary).unwrap_err();
    assert!(matches!(&error, TextError::UnsupportedTokenizerModel { model } if model == "t5"));
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused() {
    let broken: [fn(&mut GgufVocabulary); 7] = [
        |vocabulary| vocabulary.tokens.clear(),
        |vocabulary| vocabulary.tokens[5] = vocabulary.tokens[6].clone(),
        |vocabulary| vocabulary.token_types.truncate(3),
        |vocabulary| vocabulary.merges[0] = "a".to_owned(),
        |vocabulary| vocabulary.merges[0] = "a zzz".to_owned(),
        |vocabulary| vocabulary.merges[0] = "z z".to_owned(),
        |vocabulary| vocabulary.eos = vec![1_000_000],
    ];
    for breakage in broken {
        let mut vocabulary = byte_level("smollm", &["ab"]);
        breakage(&mut vocabulary);
        let error = Tokenizer::from_gguf(&vocabulary).unwrap_err();
        assert!(matches!(error, TextError::InvalidTokenizer { .. }), "{error}");
    }
}

#[test]
fn truncation_and_padding_left_in_the_file_are_ignored() {
    let mut definition = sentence_piece(&["▁", "a"], &llama2_decoder());
    definition["truncation"] = json!({
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    });
    definition["padding"] = json!({
        "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>",
    });
    let tokens = from_json(&definition).encode("aaaa", false).unwrap();
    assert_eq!(tokens, [258, 259, 259, 259, 259]);
}

#[test]
fn directory_names_the_special_tokens_in_either_spelling() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let error = Tokenizer::from_directory(path).unwrap_err();
    assert!(matches!(error, TextError::Read { .. }), "{error}");

    let definition = sentence_piece(&["▁", "a"], &llama2_decoder());
    std::fs::write(path.join("tokenizer.json"), definition.to_string()).unwrap();
    let plain = Tokenizer::from_directory(path).unwrap();
    assert_eq!(plain.special_tokens(), &SpecialTokens::default());

    let config = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>", "lstrip": false } });
    std::fs::write(path.join("tokenizer_config.json"), config.to_string()).unwrap();
    for (ids, expected) in [(json!(7), vec![1, 7]), (json!([9, 1, 3]), vec![1, 3, 9])] {
        let generation = json!({ "eos_token_id": ids }).to_string();
        std::fs::write(path.join("generation_config.json"), generation).unwrap();
        let tokenizer = Tokenizer::from_directory(path).unwrap();
        assert_eq!(tokenizer.special_tokens().bos, Some(0));
        assert_eq!(tokenizer.special_tokens().eos, expected);
    }

    std::fs::write(path.join("tokenizer_config.json"), "[]").unwrap();
    let error = Tokenizer::from_directory(path).unwrap_err();
    assert!(matches!(error, TextError::Malformed { .. }), "{error}");
}

/// The value with one node replaced: the one that is `place` nodes further on, counted from the
/// top. Takes `place` when it gets there.
fn with_replaced_node(value: &Value, place: &mut Option<usize>, replacement: &Value) -> Value {
    match place {
        Some(0) => {
            *place = None;
            return replacement.clone();
        }
        Some(left) => *left -= 1,
        None => return value.clone(),
    }
    match value {
        Value::Array(items) => {
            items.iter().map(|item| with_replaced_node(item, place, replacement)).collect()
        }
        Value::Object(fields) => fields
            .iter()
            .map(|(key, item)| (key.clone(), with_replaced_node(item, place, replacement)))
            .collect(),
        leaf => leaf.clone(),
    }
}

#[test]
fn tokenizer_json_with_any_part_replaced_never_panics() {
    let mut definition = sentence_piece(&["▁", "a", "▁a"], &llama2_decoder());
    definition["model"]["merges"] = json!([["▁", "a"]]);
    definition["model"]["continuing_subword_prefix"] = json!(null);
    definition["model"]["end_of_word_suffix"] = json!(null);
    definition["pre_tokenizer"] = json!({
        "type": "Split", "pattern": { "Regex": "a+" }, "behavior": "Isolated", "invert": false,
    });
    definition["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } },
                   { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                 { "Sequence": { "id": "B", "type_id": 0 } }],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } },
    });
    // Most of the vocabulary is alike; without it every node can be tried.
    let vocabulary = definition["model"]["vocab"].as_object_mut().unwrap();
    vocabulary.retain(|token, _| !token.starts_with("<0x") || token.starts_with("<0x0"));
    let junk = [
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("("),
        json!("▁▁▁▁"),
        json!([]),
        json!({}),
        json!([[]]),
        json!({ "type": "Fuse" }),
    ];
    let mut tried = 0;
    for replacement in &junk {
        for node in 0.. {
            let mut place = Some(node);
            let changed = with_replaced_node(&definition, &mut place, replacement);
            if place.is_some() {
                break;
            }
            tried += 1;
            if let Ok(tokenizer) = Tokenizer::from_json(changed.to_string().as_bytes()) {
                let tokens = tokenizer.encode("a <s> aab\n", true).unwrap_or_default();
                assert!(tokenizer.decode(&tokens, false).len() < 1_000);
            }
        }
    }
    assert!(tried > 100 * junk.len(), "{tried}");
}

#[test]
fn damaged_tokenizer_json_is_an_error_at_every_length() {
    let definition = sentence_piece(&["▁", "a"], &llama2_decoder()).to_string();
    for length in (0..definition.len()).step_by(37) {
        let cut = &definition.as_bytes()[..length];
        let error = Tokenizer::from_json(cut).unwrap_err();
        assert!(matches!(error, TextError::InvalidTokenizer { .. }), "{length}: {error}");
    }
    let mut definition = sentence_piece(&["▁"], &llama2_decoder());
    definition["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let error = Tokenizer::from_json(definition.to_string().as_bytes()).unwrap_err();
    assert!(matches!(error, TextError::UnsupportedDecoder { .. }), "{error}");
}

#[test]
fn vocabulary_in_which_two_tokens_have_one_id_is_refused() {
    let mut definition = sentence_piece(&["a", "b"], &llama2_decoder());
    definition["model"]["vocab"]["b"] = definition["model"]["vocab"]["a"].clone();
    let error = Tokenizer::from_json(definition.to_string().as_bytes()).unwrap_err();
    assert!(matches!(&error, TextError::InvalidTokenizer { .. }), "{error}");
    assert!(error.to_string().ends_with("have the id 258"), "{error}");
}

#[test]
fn message_about_a_name_of_a_megabyte_is_short() {
    let mut vocabulary = byte_level("smollm", &WORDS);
    vocabulary.pre = Some("x".repeat(1 << 20));
    let error = Tokenizer::from_gguf(&vocabulary).unwrap_err();
    assert!(error.to_string().len() < 1000);
}
