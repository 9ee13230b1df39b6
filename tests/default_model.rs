//! Fetches the default model as the examples do, and reads its tokenizer and chat template.

use std::path::{Path, PathBuf};

use engine_core::model::open_model;
use engine_core::text::{ChatMessage, ChatOptions, ChatTemplate, Tokenizer};
use serde_json::Value;
use understory::source::{FetchOptions, ModelSource};

fn default_model() -> PathBuf {
    ModelSource::Default.resolve(&FetchOptions::default(), &mut ()).unwrap()
}

fn fixture(below: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(below);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn default_model_is_fetched_and_then_found_without_a_network() {
    let path = default_model();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 98_362_432);
    let mut options = FetchOptions::default();
    options.offline = true;
    assert_eq!(ModelSource::Default.resolve(&options, &mut ()).unwrap(), path);
}

#[test]
fn path_that_is_not_there_is_an_error() {
    let source: ModelSource = "./no/such/model.gguf".parse().unwrap();
    let error = source.resolve(&FetchOptions::default(), &mut ()).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[test]
fn tokens_and_text_of_the_default_model_are_those_of_transformers() {
    let model = open_model(&default_model()).unwrap();
    let tokenizer = Tokenizer::from_model(&model.files, model.config.vocab_size).unwrap();
    let expected = fixture("tokenizers/smollm2.json");
    assert_eq!(expected["vocab_size"], tokenizer.vocab_size());
    for case in expected["encode"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{text:?}");
        let special = tokenizer.encode(text, true).unwrap();
        assert_eq!(special, ids(&case["ids_with_special"]), "{text:?}");
    }
    for case in expected["decode"].as_array().unwrap() {
        let tokens = ids(&case["ids"]);
        assert_eq!(tokenizer.decode(&tokens, false), case["text"].as_str().unwrap());
    }
    for prompt in fixture("smollm2/greedy.json")["prompts"].as_array().unwrap() {
        let text = prompt["text"].as_str().unwrap();
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokens, ids(&prompt["token_ids"]), "{}", prompt["name"]);
    }

    let special = tokenizer.special_tokens();
    assert_eq!((special.bos, special.eos.as_slice()), (Some(1), [0, 2].as_slice()));
    let template = ChatTemplate::from_model(&model.files, special).unwrap().unwrap();
    let messages = [ChatMessage::new("user", "Hi")];
    let prompt = template.render(&messages, &ChatOptions::default()).unwrap();
    assert!(prompt.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
    assert_eq!(tokenizer.encode(&prompt, false).unwrap()[0], 1, "<|im_start|> is one token");
}
