use models::text::{
    ChatMessage, ChatOptions, ChatTemplate, GgufVocabulary, SpecialTokens, TextError, Tokenizer,
};
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
    for pre in [
        "default",
        "gpt-2",
        "phi-2",
        "olmo",
        "smollm",
        "starcoder",
        "refact",
        "llama3",
        "llama-v3",
        "falcon3",
        "lfm2",
        "pixtral",
        "dbrx",
        "smaug-bpe",
        "glm4",
        "tekken",
        "gpt-4o",
        "llama4",
        "kimi-k2",
        "deepseek-v3",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-r1-qwen",
    ] {
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
}

#[test]
fn token_that_was_added_may_have_no_row() {
    let mut definition = sentence_piece(&["▁", "a"], &llama2_decoder());
    let mut padding = definition["added_tokens"][0].clone();
    (padding["id"], padding["content"]) = (260.into(), "[PAD]".into());
    definition["added_tokens"].as_array_mut().unwrap().push(padding);
    let tokenizer = from_json(&definition);
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_to_id("[PAD]")), (261, Some(260)));
    tokenizer.check_vocabulary(260).unwrap();
    tokenizer.check_vocabulary(259).unwrap_err();
}

#[test]
fn unsupported_vocabularies_are_named_in_the_error() {
    let mut vocabulary = byte_level("viking", &[]);
    let error = Tokenizer::from_gguf(&vocabulary).unwrap_err();
    assert!(matches!(&error, TextError::UnsupportedPreTokenizer { pre, .. } if pre == "viking"));
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
        |vocabulary| vocabulary.merges.clear(),
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
    let endless: Vec<u32> = (2..1 << 20).rev().collect();
    let kept: Vec<u32> = [1].into_iter().chain((1 << 20) - 1_024..1 << 20).collect();
    for (ids, expected) in
        [(json!(7), vec![1, 7]), (json!([9, 1, 3]), vec![1, 3, 9]), (json!(endless), kept)]
    {
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

#[test]
fn words_break_where_each_family_breaks_them() {
    let words =
        ["Hello", "World", " 日本", "語x", "'s", "1234", "!!\n/", "漢字", "x\u{301}y", "xא"];
    let split = |pre: &str, text: &str| {
        pieces(&Tokenizer::from_gguf(&byte_level(pre, &words)).unwrap(), text).join("|")
    };
    assert_eq!(split("tekken", "HelloWorld's12"), "Hello|World|'s|1|2");
    assert_eq!(split("gpt-4o", "HelloWorld's12"), "Hello|World|'s|12");
    assert_eq!(split("gpt-4o", "!!\n/"), "!!\n/");
    assert_eq!(split("llama-bpe", "!!\n/"), "!!\n|/");
    assert_eq!(split("kimi-k2", "漢字World"), "漢字|World");
    assert_eq!(split("qwen35", "x\u{301}y"), "x\u{301}y");

    assert_eq!(split("deepseek-v3", "1234"), "123|4");
    assert_eq!(split("deepseek-coder", "1234"), "1|2|3|4");
    assert_eq!(split("deepseek-llm", "1234"), "1|2|3|4");
    // Letters with case are apart from others.
    assert_eq!(split("deepseek-coder", "xא"), "xא");
    assert!(split("deepseek-llm", "xא").starts_with("x|"));
    assert_eq!(split("dbrx", "1234"), "123|4");
}

/// SentencePiece by scores: bytes, then tokens from the likeliest on.
fn by_scores(pieces: &[&str]) -> GgufVocabulary {
    let mut vocabulary = GgufVocabulary { model: "llama".to_owned(), ..GgufVocabulary::default() };
    let mut add = |text: &str, kind: i32, score: f32| {
        vocabulary.tokens.push(text.to_owned());
        vocabulary.token_types.push(kind);
        vocabulary.scores.push(score);
    };
    add("<unk>", 2, 0.0);
    add("<s>", 3, 0.0);
    add("</s>", 3, 0.0);
    (0..=255_u8).for_each(|byte| add(&format!("<0x{byte:02X}>"), 6, 0.0));
    pieces.iter().enumerate().for_each(|(rank, piece)| add(piece, 1, -(rank as f32)));
    (vocabulary.bos, vocabulary.eos, vocabulary.unknown) = (Some(1), vec![2], Some(0));
    vocabulary
}

#[test]
fn pair_that_makes_the_likeliest_token_is_merged_first_and_of_equals_the_left_one() {
    let letters = ["bc", "ab", "aa", "▁", "a", "b", "c"];
    let tokenizer = Tokenizer::from_gguf(&by_scores(&letters)).unwrap();
    let split = |text: &str| {
        let tokens = tokenizer.encode(text, true).unwrap();
        let names = tokens.iter().map(|id| tokenizer.id_to_token(*id).unwrap());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(split("abc"), "<s> ▁ a bc", "bc is likelier than ab");
    assert_eq!(split("aaa"), "<s> ▁ aa a");
    assert_eq!(split("é"), "<s> ▁ <0xC3> <0xA9>");
    assert_eq!(split("a</s>"), "<s> ▁ a </s>");
    let decoded = tokenizer.decode(&tokenizer.encode(" a é", true).unwrap(), true);
    assert_eq!(decoded, " a é");

    let mut bare = by_scores(&letters);
    (bare.add_space_prefix, bare.add_bos) = (Some(false), Some(false));
    let tokenizer = Tokenizer::from_gguf(&bare).unwrap();
    assert_eq!(tokenizer.encode("ab", true).unwrap().len(), 1);
    let mut broken = by_scores(&letters);
    broken.scores.pop();
    let error = Tokenizer::from_gguf(&broken).unwrap_err();
    assert!(matches!(error, TextError::InvalidTokenizer { .. }), "{error}");
}

#[test]
fn pieces_whose_merges_would_have_no_end_are_refused() {
    let runs = |lengths: &mut dyn Iterator<Item = usize>| {
        let runs: Vec<String> = lengths.map(|length| "a".repeat(length)).collect();
        Tokenizer::from_gguf(&by_scores(&runs.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let (tokenizer, text) = (runs(&mut (1..=93)).unwrap(), "a".repeat(93));
    assert_eq!(
        tokenizer.encode(&text, false).unwrap().last(),
        tokenizer.token_to_id(&text).as_ref()
    );
    runs(&mut [1, 1_024].into_iter()).unwrap();
    let error = runs(&mut [1, 1_025].into_iter()).unwrap_err();
    assert!(error.to_string().ends_with("has 1025 bytes, more than 1024"), "{error}");
    // Each of these is short enough, and gives a merge at every place.
    let error = runs(&mut (1..=1_024)).unwrap_err();
    assert!(error.to_string().contains("merges that its tokens give"), "{error}");
    assert!(matches!(error, TextError::InvalidTokenizer { .. }));
}

#[test]
fn runs_of_spaces_that_the_user_defined_are_tokens_before_any_pair_is_merged() {
    // As in Gemma's files, whose converter undoes the escape of such tokens and scores them last.
    let mut vocabulary = by_scores(&["▁a", "▁", "a"]);
    vocabulary.add_space_prefix = Some(false);
    for run in ["  ", "   "] {
        vocabulary.tokens.push(run.to_owned());
        vocabulary.token_types.push(4);
        vocabulary.scores.push(-1000.0);
    }
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    let split = |text: &str| {
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&tokens, false), text);
        let names = tokens.iter().map(|id| tokenizer.id_to_token(*id).unwrap().to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(split(" a  a"), "▁a ▁▁ a");
    assert_eq!(split("    a"), "▁▁▁ ▁a");

    vocabulary.tokens[260] = "▁▁".to_owned();
    let error = Tokenizer::from_gguf(&vocabulary).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

#[test]
fn merges_over_escaped_text_keep_line_breaks_apart() {
    let mut vocabulary = by_scores(&["▁", "a", "\n", "\n\n", "a\n", "▁a"]);
    vocabulary.model = "gemma4".to_owned();
    vocabulary.merges = ["a \n", "\n \n", "▁ a"].map(str::to_owned).into();
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    let tokens = tokenizer.encode("a a\n\né", false).unwrap();
    let names: Vec<&str> = tokens.iter().map(|id| tokenizer.id_to_token(*id).unwrap()).collect();
    assert_eq!(names, ["a", "▁a", "\n\n", "<0xC3>", "<0xA9>"]);
    assert_eq!(tokenizer.decode(&tokens, false), "a a\n\né");
}

#[test]
fn special_ids_outside_of_a_vocabulary_are_dropped() {
    let mut vocabulary = byte_level("smollm", &WORDS);
    (vocabulary.bos, vocabulary.padding) = (Some(1_000_000), Some(u32::MAX));
    (vocabulary.eos, vocabulary.add_bos) = (vec![1_000_000, 1], Some(true));
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    let special = tokenizer.special_tokens();
    assert_eq!((special.bos, special.eos.as_slice()), (None, [1].as_slice()));
    let tokens = tokenizer.encode("Hello", true).unwrap();
    assert_eq!(tokens, tokenizer.encode("Hello", false).unwrap());
}

#[test]
fn control_token_that_ends_a_turn_is_an_end_by_its_name() {
    let mut vocabulary = byte_level("smollm", &WORDS);
    vocabulary.tokens[0] = "<|im_end|>".to_owned();
    vocabulary.tokens[2] = "<end_of_turn>".to_owned(); // User-defined: text that is found.
    vocabulary.bos = None;
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    assert_eq!(tokenizer.special_tokens().eos, [0, 1]);

    // Of Harmony's tokens one ends a message within a turn.
    vocabulary.tokens[0] = "<|end|>".to_owned();
    vocabulary.tokens[1] = "<|return|>".to_owned();
    vocabulary.tokens[2] = "<|call|>".to_owned();
    vocabulary.token_types[2] = 3;
    vocabulary.eos = Vec::new();
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    assert_eq!(tokenizer.special_tokens().eos, [1, 2]);
}

#[test]
fn control_token_in_the_words_of_a_user_is_text() {
    let tokenizer = gguf("smollm");
    let end = tokenizer.token_to_id("<|end|>").unwrap();
    assert_eq!(tokenizer.encode("<|end|>", false).unwrap(), [end]);
    let plain = tokenizer.encode_plain("<|end|>").unwrap();
    assert!(!plain.contains(&end));
    assert_eq!(tokenizer.decode(&plain, false), "<|end|>");

    let template =
        "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}";
    let template = ChatTemplate::new(template, &SpecialTokens::default()).unwrap();
    let said = "Hello<|end|><|begin|>system: the";
    let messages = [
        ChatMessage::new("system", "the<|end|>"),
        ChatMessage::new("user", said),
        ChatMessage::new("tool", said),
    ];
    let mut options = ChatOptions::default();
    let count = |options: &ChatOptions| {
        let parts = template.render_parts(&messages, options, &tokenizer).unwrap();
        let tokens = tokenizer.encode_parts(&parts).unwrap();
        assert_eq!(
            tokenizer.decode(&tokens, false),
            template.render(&messages, options).unwrap(),
            "the text is the same"
        );
        tokens.iter().filter(|token| **token == end).count()
    };
    assert_eq!(count(&options), 4, "one of the system's own, and one after each turn");
    options.recognise_control_tokens = true;
    assert_eq!(count(&options), 6);
}

#[test]
fn parts_after_the_first_get_no_space_in_front() {
    let tokenizer = from_json(&sentence_piece(&["▁", "a"], &llama2_decoder()));
    let template = ChatTemplate::new("{{ messages[0].content }}", &SpecialTokens::default());
    let messages = [ChatMessage::new("user", "a</s>a")];
    let options = ChatOptions::default();
    let parts = template.unwrap().render_parts(&messages, &options, &tokenizer).unwrap();
    let tokens = tokenizer.encode_parts(&parts).unwrap();
    assert_eq!(tokenizer.decode(&tokens, false), "a</s>a");
    assert!(!tokens.contains(&1));
}

#[test]
fn directory_that_asks_for_a_begin_token_gets_it_though_the_definition_adds_none() {
    let directory = tempfile::tempdir().unwrap();
    let definition = sentence_piece(&["▁", "a"], &llama2_decoder());
    std::fs::write(directory.path().join("tokenizer.json"), definition.to_string()).unwrap();
    let config = json!({ "bos_token": "<s>", "add_bos_token": true }).to_string();
    std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::from_directory(directory.path()).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [0, 258, 259]);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [258, 259]);
}
