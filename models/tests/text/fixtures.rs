//! Against what Hugging Face's libraries make of the same vocabularies and templates. See
//! `tests/fixtures/README.md` for how the files are made.

use std::path::{Path, PathBuf};

use models::model::open_model;
use models::text::{
    ChatMessage, ChatOptions, ChatTemplate, GgufVocabulary, SpecialTokens, TextError, Tokenizer,
};
use models::weights::{Array, GgufWriter, Value as Metadatum};
use serde_json::Value;

fn path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(below)
}

fn read(below: &str) -> Value {
    let path = path(below);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    serde_json::from_slice(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The fixture's GGUF-like vocabulary under the name of a pre-tokenizer.
fn small_gguf(pre: &str) -> GgufVocabulary {
    let stored = read("tokenizers/small-vocabulary.json");
    GgufVocabulary {
        model: text(&stored["model"]).to_owned(),
        pre: Some(pre.to_owned()),
        tokens: serde_json::from_value(stored["tokens"].clone()).unwrap(),
        token_types: serde_json::from_value(stored["token_types"].clone()).unwrap(),
        merges: serde_json::from_value(stored["merges"].clone()).unwrap(),
        bos: serde_json::from_value(stored["bos_token_id"].clone()).unwrap(),
        eos: vec![serde_json::from_value(stored["eos_token_id"].clone()).unwrap()],
        ..GgufVocabulary::default()
    }
}

fn check(tokenizer: &Tokenizer, expected: &Value, name: &str) {
    let encoded = expected["encode"].as_array().unwrap();
    assert!(encoded.len() >= 100);
    for case in encoded {
        let given = text(&case["text"]);
        let plain = tokenizer.encode(given, false).unwrap();
        assert_eq!(plain, ids(&case["ids"]), "{name}: {given:?}");
        let special = tokenizer.encode(given, true).unwrap();
        assert_eq!(special, ids(&case["ids_with_special"]), "{name}: {given:?}");
    }
    let decoded = expected["decode"].as_array().unwrap();
    assert!(!decoded.is_empty());
    for case in decoded {
        let given = ids(&case["ids"]);
        assert_eq!(tokenizer.decode(&given, false), text(&case["text"]), "{name}: {given:?}");
        let without = text(&case["text_without_special"]);
        assert_eq!(tokenizer.decode(&given, true), without, "{name}: {given:?}");
    }
}

#[test]
fn tokens_are_those_of_hugging_face_from_either_kind_of_file() {
    for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2"] {
        let expected = read(&format!("tokenizers/small-{pre}/expected.json"));
        let from_gguf = Tokenizer::from_gguf(&small_gguf(pre)).unwrap();
        check(&from_gguf, &expected, &format!("{pre} from GGUF"));
        let directory = path(&format!("tokenizers/small-{pre}"));
        check(&Tokenizer::from_directory(&directory).unwrap(), &expected, pre);
    }
}

#[test]
fn conversations_become_the_text_of_hugging_face() {
    let fixture = read("chat_templates.json");
    let mut cases = 0;
    for entry in fixture["templates"].as_array().unwrap() {
        let mut special = SpecialTokens::default();
        for name in ["bos_token", "eos_token"] {
            if let Some(token) = entry[name].as_str() {
                special.named.insert(name.to_owned(), token.to_owned());
            }
        }
        let template = ChatTemplate::new(text(&entry["template"]), &special).unwrap();
        for case in entry["cases"].as_array().unwrap() {
            let conversation = &fixture["conversations"][text(&case["conversation"])];
            let messages: Vec<ChatMessage> = serde_json::from_value(conversation.clone()).unwrap();
            let mut options = ChatOptions::default();
            options.add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
            options.tools = serde_json::from_value(case["tools"].clone()).unwrap();
            options.variables = serde_json::from_value(case["variables"].clone()).unwrap();
            let name = format!("{}, {}", entry["name"], case["conversation"]);
            match (template.render(&messages, &options), case["error"].as_str()) {
                (Ok(rendered), None) => assert_eq!(rendered, text(&case["text"]), "{name}"),
                (Err(TextError::TemplateRefused { message }), Some(expected)) => {
                    assert_eq!(message, expected, "{name}");
                }
                (result, _) => panic!("{name}: {result:?}"),
            }
            cases += 1;
        }
    }
    assert!(cases >= 40, "{cases}");
}

#[test]
fn model_in_either_format_comes_with_the_same_tokenizer_and_template() {
    let [from_directory, from_gguf] =
        ["tiny/llama-tied", "tiny-gguf/llama-quantized.gguf"].map(|below| {
            let model = open_model(&path(below)).unwrap();
            let tokenizer = Tokenizer::from_model(&model.files, model.config.vocab_size).unwrap();
            let special = tokenizer.special_tokens().clone();
            let template = ChatTemplate::from_model(&model.files, &special).unwrap().unwrap();
            let messages = [ChatMessage::new("user", "What are 12 and 345?")];
            let prompt = template.render(&messages, &ChatOptions::default()).unwrap();
            (tokenizer.encode(&prompt, false).unwrap(), special.bos, special.eos, prompt)
        });
    assert_eq!(from_directory, from_gguf);
    assert!(from_gguf.3.ends_with("assistant\n"), "{}", from_gguf.3);
}

#[test]
fn model_without_a_tokenizer_or_with_one_too_large_is_a_typed_error() {
    let bare = open_model(&path("tiny-gguf/qwen2-f16.gguf")).unwrap();
    let error = Tokenizer::from_model(&bare.files, bare.config.vocab_size).unwrap_err();
    assert!(matches!(error, TextError::Gguf(_)), "{error}");
    let special = SpecialTokens::default();
    assert!(ChatTemplate::from_model(&bare.files, &special).unwrap().is_none());

    let model = open_model(&path("tiny-gguf/llama-quantized.gguf")).unwrap();
    let error = Tokenizer::from_model(&model.files, 10).unwrap_err();
    assert!(matches!(error, TextError::VocabularyMismatch { model_size: 10, .. }), "{error}");
}

#[test]
fn every_key_of_a_vocabulary_is_read() {
    let strings = |texts: &[&str]| {
        Metadatum::Array(Array::String(texts.iter().map(|text| (*text).to_owned()).collect()))
    };
    let bytes = GgufWriter::new()
        .metadata("tokenizer.ggml.model", Metadatum::String("gpt2".to_owned()))
        .metadata("tokenizer.ggml.pre", Metadatum::String("smollm".to_owned()))
        .metadata("tokenizer.ggml.tokens", strings(&["a", "b", "ab", "<e>"]))
        .metadata("tokenizer.ggml.token_type", Metadatum::Array(Array::I32(vec![1, 1, 1, 3])))
        .metadata("tokenizer.ggml.merges", strings(&["a b"]))
        .metadata("tokenizer.ggml.bos_token_id", Metadatum::U32(0))
        .metadata("tokenizer.ggml.eos_token_id", Metadatum::U32(3))
        .metadata("tokenizer.ggml.eot_token_id", Metadatum::U64(2))
        .metadata("tokenizer.ggml.add_bos_token", Metadatum::Bool(true))
        .metadata("tokenizer.ggml.add_eos_token", Metadatum::Bool(true))
        .metadata("tokenizer.chat_template", Metadatum::String("t".to_owned()))
        .finish();
    let file = models::weights::GgufFile::from_bytes(bytes).unwrap();
    let vocabulary = GgufVocabulary::from_metadata(file.metadata()).unwrap();
    assert_eq!(vocabulary.chat_template.as_deref(), Some("t"));
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [0, 2, 3]);
    assert_eq!(tokenizer.special_tokens().eos, [2, 3]);

    let absurd = GgufWriter::new()
        .metadata("tokenizer.ggml.model", Metadatum::String("gpt2".to_owned()))
        .metadata("tokenizer.ggml.tokens", strings(&["a", "", ""]))
        .metadata("tokenizer.ggml.bos_token_id", Metadatum::U64(u64::MAX))
        .metadata("tokenizer.ggml.eos_token_id", Metadatum::I32(-1))
        .metadata("tokenizer.ggml.padding_token_id", Metadatum::U32(3))
        .metadata("tokenizer.ggml.unknown_token_id", Metadatum::String("a".to_owned()))
        .finish();
    let file = models::weights::GgufFile::from_bytes(absurd).unwrap();
    let vocabulary = GgufVocabulary::from_metadata(file.metadata()).unwrap();
    assert_eq!((vocabulary.bos, vocabulary.eos, vocabulary.padding), (None, vec![], None));
    assert_eq!(vocabulary.unknown, None);
    assert_eq!(vocabulary.tokens, ["a", "[EMPTY_1]", "[EMPTY_2]"]);
}
