//! Vocabularies whose decoder drops the first space of a text, and what is the first one.

use engine_core::engine::Engine;
use engine_core::request::{FinishReason, Request};
use engine_core::text::{ChatMessage, ChatTemplate, SpecialTokens, Tokenizer};
use serde_json::{Value, json};
use testkit::shadow::ShadowBackend;

use crate::support::*;

/// As in Llama 2: each token but the first two is a word with the space before it.
fn tokenizer() -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    for (id, name) in ["<s>", "\u{2581}"].into_iter().enumerate() {
        vocabulary.insert(name.to_owned(), id.into());
    }
    for id in 2..VOCABULARY {
        vocabulary.insert(format!("\u{2581}w{id}"), id.into());
    }
    let begin = json!({ "id": 0, "content": "<s>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false });
    let step = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let definition = json!({
        "version": "1.0",
        "added_tokens": [begin],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            step(r#"{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}"#),
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            step(r#"{"type": "Strip", "content": " ", "start": 1, "stop": 0}"#),
        ] },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "\u{2581}w2" },
    });
    Tokenizer::from_json(definition.to_string().as_bytes()).unwrap()
}

fn engine(backend: &ShadowBackend) -> Engine {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let template = ChatTemplate::new(template, &SpecialTokens::default()).unwrap();
    Engine::builder()
        .options(small())
        .tokenizer(tokenizer())
        .chat_template(template)
        .load(model(), backend, &mut ())
        .unwrap()
}

#[test]
fn a_text_is_continued_with_its_space_and_a_conversation_is_answered_without() {
    let backend = ShadowBackend::new();
    let engine = engine(&backend);
    let text = |request: Request| engine.generate(request).unwrap().remove(0).text;
    let words = |tokens: &[u32]| tokens.iter().map(|id| format!(" w{id}")).collect::<String>();
    // Prompt tokens from 2 on, and answers too: the others are not words.
    for number in 3..40 {
        let answer = foretold(&[number], 6);
        if answer.iter().any(|&id| id < 2) {
            continue;
        }
        let prompt = format!("\u{2581}w{number}");
        let sampling = greedy(6);
        let continued = words(&answer);
        assert_eq!(text(Request::new(vec![number]).sampling(sampling.clone())), continued);
        assert_eq!(text(Request::new(prompt.as_str()).sampling(sampling.clone())), continued);
        let messages = vec![ChatMessage::new("user", prompt.as_str())];
        let answered = text(Request::new(messages).sampling(sampling.clone()));
        assert_eq!(answered, continued[1..]);

        // A stop string that begins with the space is met where the text has it.
        let mut sampling = sampling;
        sampling.stop = vec![format!(" w{}", answer[0])];
        let request = Request::new(vec![number]).sampling(sampling);
        let output = engine.generate(request).unwrap().remove(0);
        assert_eq!((output.text.as_str(), output.reason), ("", FinishReason::Stop));
    }
    // A prompt without text: what follows begins one.
    let answer = foretold(&[0], 6);
    let output = text(Request::new(vec![0]).sampling(greedy(6)));
    assert_eq!(output, tokenizer().decode(&answer, true));
}
