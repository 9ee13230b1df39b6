//! Order, counts and concatenation, whatever the events' order and however texts are cut.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;
use testkit::null::NullBackend;
use understory::engine::Engine;
use understory::request::{
    FinishReason, Finished, GenerationEvent, Request, SamplingParams, TokenLogprobs, Usage,
};
use understory::text::Tokenizer;

use super::*;
use crate::reasoning::AnswerParser;
use crate::tools::ToolChoice;

const VOCABULARY: u32 = 300;

fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama-tied")
}

fn tokenizer() -> Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_directory(&model()).unwrap()).clone()
}

/// The counts of a real request, for others to be written over.
fn usage() -> Usage {
    static USAGE: OnceLock<Usage> = OnceLock::new();
    *USAGE.get_or_init(|| {
        let engine = Engine::builder().load(model(), &NullBackend::new(), &mut ()).unwrap();
        let request = Request::new(vec![1, 2]).sampling(SamplingParams::greedy(1));
        engine.generate(request).unwrap().remove(0).usage
    })
}

/// A token, and the text that comes with it, if any does.
type Told = (u32, Option<String>);

/// What samples say, and whose turn it is.
fn scripts() -> impl Strategy<Value = (Vec<Vec<Told>>, Vec<usize>)> {
    let piece = prop_oneof![
        Just(None),
        "[a-z ]{1,4}".prop_map(Some),
        "\\PC{1,3}".prop_map(Some),
        Just(Some("\n\ndata: [DONE]\n\n".to_owned())),
    ];
    let script = vec((0..VOCABULARY, piece), 0..12);
    (vec(script, 1..4), vec(0_usize..4, 0..60))
}

/// The events of samples in an order that keeps each sample's own.
fn events(scripts: &[Vec<Told>], turns: &[usize]) -> Vec<GenerationEvent> {
    let mut own: Vec<Vec<GenerationEvent>> = scripts
        .iter()
        .zip(0..)
        .map(|(script, sample)| {
            let mut events = vec![GenerationEvent::Admitted {
                sample,
                prompt_tokens: 7,
                cached_tokens: 4,
                queue_time: Duration::ZERO,
            }];
            for (place, (token, text)) in script.iter().enumerate() {
                let top = vec![(*token, -0.5), (token + 1, -1.5)];
                let logprobs = Some(Box::new(TokenLogprobs { logprob: -0.5, top }));
                let at = Instant::now();
                events.push(GenerationEvent::Token { sample, token: *token, logprobs, at });
                let tokens = place as u32..place as u32 + 1;
                let text = text.clone();
                events.extend(text.map(|text| GenerationEvent::Text { sample, text, tokens }));
            }
            let mut usage = usage();
            usage.prompt_tokens = 7;
            usage.cached_tokens = 4;
            usage.completion_tokens = script.len() as u32;
            let (reason, matched) = (FinishReason::Length, None);
            events.push(GenerationEvent::Finished(Finished { sample, reason, matched, usage }));
            events.reverse();
            events
        })
        .collect();
    let mut all = Vec::new();
    let count = own.len();
    all.extend(turns.iter().filter_map(|turn| own[turn % count].pop()));
    own.iter_mut().for_each(|rest| all.extend(std::iter::from_fn(|| rest.pop())));
    all
}

fn run(emit: &mut dyn Emit, events: &[GenerationEvent]) -> Vec<String> {
    let mut frames = Frames::default();
    events.iter().for_each(|event| emit.event(0, event.clone(), &mut frames));
    emit.end(&mut frames);
    let frames = std::iter::from_fn(|| frames.pop());
    frames.map(|frame| String::from_utf8(frame.to_vec()).unwrap()).collect()
}

/// Events of data alone, of which the last one is the end.
fn values(frames: &[String]) -> Vec<Value> {
    let (last, frames) = frames.split_last().unwrap();
    assert_eq!(last, "data: [DONE]\n\n");
    let value = |frame: &String| {
        let data = frame.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains('\n'));
        serde_json::from_str(data).unwrap()
    };
    frames.iter().map(value).collect()
}

fn head() -> Head {
    let text = || "x".to_owned();
    Head { id: text(), created: 1, model: text(), fingerprint: text() }
}

fn chat(n: u32, stream: bool, logprobs: bool, usage: bool) -> ChatEmit {
    let shape = ChatShape {
        n,
        stream,
        logprobs,
        token_ids: true,
        usage,
        continuous_usage: false,
        tool_choice: ToolChoice::None,
        stop_token_ids: Vec::new(),
    };
    ChatEmit::new(head(), shape, tokenizer(), |_| Box::new(AnswerParser::default()))
}

fn completion(n: u32, stream: bool, logprobs: bool, usage: bool) -> CompletionEmit {
    let shape = CompletionShape {
        n,
        stream,
        echo: false,
        logprobs,
        token_ids: true,
        usage,
        continuous_usage: false,
        stop_token_ids: Vec::new(),
    };
    let prompt = EchoedPrompt { text: "p".to_owned(), tokens: vec![1] };
    CompletionEmit::new(head(), shape, tokenizer(), vec![prompt])
}

fn choices(chunks: &[Value], index: usize) -> Vec<&Value> {
    let all = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    all.filter(|choice| choice["index"] == index).collect()
}

fn ids(choices: &[&Value]) -> Vec<u64> {
    let lists = choices.iter().filter_map(|choice| choice["token_ids"].as_array());
    lists.flatten().map(|id| id.as_u64().unwrap()).collect()
}

proptest! {
    #[test]
    fn chats_lose_nothing_and_end_once(
        (scripts, turns) in scripts(), logprobs in any::<bool>(), usage in any::<bool>(),
    ) {
        let n = scripts.len() as u32;
        let events = events(&scripts, &turns);
        let mut chunks = values(&run(&mut chat(n, true, logprobs, usage), &events));
        if usage {
            let last = chunks.pop().unwrap();
            prop_assert_eq!(&last["choices"], &Value::Array(Vec::new()));
            let completion: usize = scripts.iter().map(Vec::len).sum();
            prop_assert_eq!(&last["usage"]["completion_tokens"], completion);
            prop_assert_eq!(&last["usage"]["prompt_tokens"], 7);
        }
        for chunk in &chunks {
            prop_assert_eq!(chunk["choices"].as_array().unwrap().len(), 1);
            prop_assert_eq!(chunk.get("usage").is_some(), usage);
        }
        let mut whole = chat(n, false, logprobs, false);
        prop_assert_eq!(run(&mut whole, &events).len(), 1, "nothing but the end is streamed");
        let whole: Value = serde_json::from_str(&whole.whole()).unwrap();
        for (index, script) in scripts.iter().enumerate() {
            let own = choices(&chunks, index);
            let roles = own.iter().filter(|choice| choice["delta"].get("role").is_some()).count();
            prop_assert_eq!((roles, own[0]["delta"]["role"].as_str()), (1, Some("assistant")));
            let ends = own.iter().filter(|choice| !choice["finish_reason"].is_null()).count();
            prop_assert_eq!((ends, own[own.len() - 1]["finish_reason"].as_str()), (1, Some("length")));
            let said: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
            let expected: String = script.iter().filter_map(|(_, text)| text.as_deref()).collect();
            prop_assert_eq!(&said, &expected);
            prop_assert_eq!(whole["choices"][index]["message"]["content"].as_str(), Some(&*expected));
            let tokens: Vec<u64> = script.iter().map(|(token, _)| u64::from(*token)).collect();
            prop_assert_eq!(ids(&own), tokens);
            if logprobs {
                let scored = own.iter().filter_map(|choice| choice["logprobs"]["content"].as_array());
                let scored: Vec<Value> = scored.flatten().cloned().collect();
                prop_assert_eq!(scored.len(), script.len());
                prop_assert_eq!(&Value::Array(scored), &whole["choices"][index]["logprobs"]["content"]);
            }
        }
    }

    #[test]
    fn completions_lose_nothing_and_end_once(
        (scripts, turns) in scripts(), logprobs in any::<bool>(), usage in any::<bool>(),
    ) {
        let n = scripts.len() as u32;
        let events = events(&scripts, &turns);
        let mut chunks = values(&run(&mut completion(n, true, logprobs, usage), &events));
        if usage {
            let last = chunks.pop().unwrap();
            prop_assert_eq!(&last["choices"], &Value::Array(Vec::new()));
        }
        let mut whole = completion(n, false, logprobs, false);
        run(&mut whole, &events);
        let whole: Value = serde_json::from_str(&whole.whole()).unwrap();
        for (index, script) in scripts.iter().enumerate() {
            let own = choices(&chunks, index);
            let ends = own.iter().filter(|choice| !choice["finish_reason"].is_null()).count();
            prop_assert_eq!((ends, own[own.len() - 1]["finish_reason"].as_str()), (1, Some("length")));
            let said: String = own.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
            let expected: String = script.iter().filter_map(|(_, text)| text.as_deref()).collect();
            prop_assert_eq!(&said, &expected);
            prop_assert_eq!(whole["choices"][index]["text"].as_str(), Some(&*expected));
            if logprobs {
                for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                    let lists = own.iter().filter_map(|choice| choice["logprobs"][list].as_array());
                    let all: Vec<Value> = lists.flatten().cloned().collect();
                    prop_assert_eq!(all.len(), script.len());
                    prop_assert_eq!(&Value::Array(all), &whole["choices"][index]["logprobs"][list]);
                }
            }
        }
    }

    #[test]
    fn named_events_open_and_close_their_blocks(scripts in vec((0..VOCABULARY, "[a-z<>]{1,6}".prop_map(Some)), 0..12)) {
        let events = events(&[scripts.clone()], &[]);
        let mut emit = MessageEmit::new(head(), MessageShape { stream: true }, Box::new(AnswerParser::default()));
        let frames = run(&mut emit, &events);
        let names: Vec<&str> = frames
            .iter()
            .map(|frame| frame.lines().next().unwrap().strip_prefix("event: ").unwrap())
            .collect();
        prop_assert_eq!(names[0], "message_start");
        prop_assert_eq!(&names[names.len() - 2..], ["message_delta", "message_stop"]);
        let count = |name: &str| names.iter().filter(|own| **own == name).count();
        prop_assert_eq!(count("content_block_start"), usize::from(!scripts.is_empty()));
        prop_assert_eq!(count("content_block_start"), count("content_block_stop"));
        prop_assert_eq!(count("content_block_delta"), scripts.len());

        let shape = ResponseShape { stream: true, settings: Value::Object(Default::default()) };
        let mut emit = ResponseEmit::new(head(), shape, Box::new(AnswerParser::default()));
        let frames = run(&mut emit, &events);
        let ends = ["response.completed", "response.incomplete", "response.failed"];
        let is_end = |frame: &&String| ends.iter().any(|end| frame.starts_with(&format!("event: {end}\n")));
        prop_assert_eq!(frames.iter().filter(is_end).count(), 1);
        prop_assert!(is_end(&frames.last().unwrap()));
        for (number, frame) in frames.iter().enumerate() {
            let data = frame.lines().nth(1).unwrap().strip_prefix("data: ").unwrap();
            let value: Value = serde_json::from_str(data).unwrap();
            prop_assert_eq!(&value["sequence_number"], number);
        }
    }
}
