//! What is refused at the door, and what the door leaves unchanged.

use engine_core::engine::{Engine, EngineOptions, KvMemory, LimitWarning};
use engine_core::error::{EngineError, SubmitError};
use engine_core::model::open_model;
use engine_core::request::{ParamsError, Request};
use engine_core::schedule::Refusal;
use engine_core::text::ChatMessage;
use testkit::shadow::ShadowBackend;

use crate::support::*;

#[test]
fn what_can_never_run_is_refused_by_name_and_others_are_served() {
    let engine = Shadowed::new(small());
    let refused = |request: Request| engine.submit(request).unwrap_err();
    let sampling = |change: fn(&mut engine_core::request::SamplingParams)| {
        let mut sampling = greedy(4);
        change(&mut sampling);
        Request::new(prompt(1, 5)).sampling(sampling)
    };

    let error = refused(request(&[], 4));
    assert!(matches!(error, SubmitError::Refused(Refusal::EmptyPrompt)), "{error}");
    let error = refused(request(&prompt(1, 512), 4));
    assert!(matches!(error, SubmitError::Refused(Refusal::PromptTooLong { .. })), "{error}");
    let error = refused(request(&[1, 2, VOCABULARY], 4));
    let expected = matches!(error, SubmitError::UnknownToken { index: 2, token: VOCABULARY, .. });
    assert!(expected, "{error}");
    for change in [
        (|s| s.temperature = f32::NAN) as fn(&mut engine_core::request::SamplingParams),
        |s| s.temperature = -1.0,
        |s| s.top_p = -0.1,
        |s| s.min_p = 2.0,
        |s| s.repetition_penalty = f32::INFINITY,
        |s| s.n = 0,
        |s| s.n = 1 << 20,
        |s| s.logprobs = Some(200),
        |s| s.max_tokens = Some(0),
    ] {
        let error = refused(sampling(change));
        let expected = matches!(error, SubmitError::Params(ParamsError::OutOfRange { .. }));
        assert!(expected, "{error}");
    }
    let error = refused(sampling(|s| s.stop = vec![String::new()]));
    assert!(matches!(error, SubmitError::Params(ParamsError::EmptyStop { index: 0 })), "{error}");
    let error = refused(sampling(|s| s.stop_token_ids = vec![VOCABULARY]));
    let expected = matches!(error, SubmitError::Params(ParamsError::UnknownToken { .. }));
    assert!(expected, "{error}");

    let error = refused(Request::new(Vec::<ChatMessage>::new()));
    assert!(matches!(error, SubmitError::NoMessages), "{error}");

    let output = engine.generate(request(&prompt(1, 5), 4)).unwrap().remove(0);
    assert_eq!(output.tokens, foretold(&prompt(1, 5), 4));
    assert_eq!(engine.snapshot().queued, 0);
}

#[test]
fn no_probability_to_choose_from_is_greedy() {
    let engine = Shadowed::new(small());
    let mut sampling = greedy(20);
    (sampling.temperature, sampling.top_p) = (1.5, 0.0);
    let request = Request::new(prompt(1, 5)).sampling(sampling);
    let output = engine.generate(request).unwrap().remove(0);
    assert_eq!(output.tokens, foretold(&prompt(1, 5), 20));
}

#[test]
fn a_number_in_a_message_is_the_number_that_was_given() {
    let message = |change: &dyn Fn(&mut engine_core::request::SamplingParams)| {
        let mut sampling = greedy(4);
        change(&mut sampling);
        sampling.validate(VOCABULARY).unwrap_err().to_string()
    };
    assert_eq!(message(&|s| s.n = u32::MAX), "n must be from 1 to 128, not 4294967295");
    assert_eq!(message(&|s| s.min_p = 1.1), "min_p must be from 0 to 1, not 1.1");
}

#[test]
fn a_limit_beyond_the_context_is_cut_to_it() {
    let engine = Shadowed::new(small());
    let output = engine.generate(request(&prompt(1, 500), 100_000)).unwrap().remove(0);
    assert_eq!(output.tokens, foretold(&prompt(1, 500), 12));
    let mut sampling = greedy(1);
    sampling.max_tokens = None;
    let request = Request::new(prompt(1, 500)).sampling(sampling);
    assert_eq!(engine.generate(request).unwrap().remove(0).tokens.len(), 12);
}

#[test]
fn a_full_queue_refuses_and_takes_again_when_it_has_drained() {
    let mut options = small();
    options.max_queued_requests = 2;
    options.max_running_requests = Some(1);
    let engine = Shadowed::new(options);
    let mut taken = Vec::new();
    // One runs, two wait; whether the first runs yet when the third comes is open.
    let error = loop {
        match engine.submit(request(&prompt(1, 30), 400)) {
            Ok(generation) => taken.push(generation),
            Err(error) => break error,
        }
        assert!(taken.len() <= 3);
    };
    assert!(matches!(error, SubmitError::QueueFull { limit: 2 }), "{error}");
    let mut pair = greedy(1);
    pair.n = 3;
    let error = engine.submit(Request::new(vec![1]).sampling(pair)).unwrap_err();
    assert!(matches!(error, SubmitError::QueueFull { .. }), "{error}");
    drop(taken);
    wait_until_idle(&engine);
    engine.generate(request(&prompt(1, 30), 4)).unwrap();
}

#[test]
fn messages_are_rendered_by_the_models_template() {
    let model = open_model(&model()).unwrap();
    let backend = ShadowBackend::new();
    let engine = Engine::builder().options(small()).load_model(&model, &backend, &mut ()).unwrap();
    let messages = vec![ChatMessage::new("user", "Hello")];
    let Some(template) = engine.chat_template() else {
        let error = engine.submit(Request::new(messages)).unwrap_err();
        assert!(matches!(error, SubmitError::NoText { needed: "chat template", .. }), "{error}");
        return;
    };
    let text = template.render(&messages, &Default::default()).unwrap();
    let tokens = engine.tokenizer().unwrap().encode(&text, false).unwrap();
    let output = engine.generate(Request::new(messages).sampling(greedy(5))).unwrap().remove(0);
    assert_eq!(output.tokens, foretold(&tokens, 5));
}

#[test]
fn an_engine_without_a_tokenizer_deals_in_tokens() {
    let model = open_model(&model()).unwrap();
    let engine = Engine::builder()
        .options(small())
        .model_context(512)
        .build(model.program().unwrap(), model.weights.as_ref(), &ShadowBackend::new(), &mut ())
        .unwrap();
    let output = engine.generate(request(&prompt(1, 5), 4)).unwrap().remove(0);
    assert_eq!((output.tokens, output.text.as_str()), (foretold(&prompt(1, 5), 4), ""));
    let error = engine.submit(Request::new("text")).unwrap_err();
    assert!(matches!(error, SubmitError::NoText { needed: "tokenizer", .. }), "{error}");
    let mut sampling = greedy(4);
    sampling.stop = vec!["x".into()];
    let error = engine.submit(Request::new(vec![1]).sampling(sampling)).unwrap_err();
    assert!(matches!(error, SubmitError::NoText { needed: "tokenizer", .. }), "{error}");
}

#[test]
fn limits_that_make_no_sense_are_reported_at_the_start() {
    let start = |change: fn(&mut EngineOptions)| {
        let mut options = small();
        change(&mut options);
        Engine::builder().options(options).load(model(), &ShadowBackend::new(), &mut ())
    };
    let warnings = |change| start(change).unwrap().limits().warnings.clone();
    assert_eq!(warnings(|_| {}), []);
    let few = LimitWarning::FewRunning { max_running_requests: 2 };
    assert_eq!(warnings(|o| o.max_running_requests = Some(2)), [few]);
    let small = LimitWarning::PoolBelowContext { pool_tokens: 64, context_length: 512 };
    assert_eq!(warnings(|o| o.kv_memory = KvMemory::Tokens(64)), [small]);
    let long = LimitWarning::ContextBeyondModel { context_length: 600, model: 512 };
    assert_eq!(warnings(|o| o.context_length = Some(600)), [long]);

    type Change = fn(&mut EngineOptions);
    let options: [(&str, Change); 6] = [
        ("page_size", |o| o.page_size = Some(3)),
        ("context_length", |o| o.context_length = Some(0)),
        ("chunked_prefill_size", |o| o.chunked_prefill_size = Some(0)),
        ("max_running_requests", |o| o.max_running_requests = Some(0)),
        ("kv_memory", |o| o.kv_memory = KvMemory::Fraction(f64::NAN)),
        ("kv_memory", |o| o.kv_memory = KvMemory::Fraction(1.5)),
    ];
    for (name, change) in options {
        let error = start(change).unwrap_err();
        assert!(matches!(error, EngineError::Option { option, .. } if option == name), "{error}");
    }
    let error = start(|o| o.kv_memory = KvMemory::Bytes(10)).unwrap_err();
    assert!(matches!(error, EngineError::NoRoomForKv { .. }), "{error}");
}

#[test]
fn defaults_are_derived_from_model_and_machine() {
    let engine = start(&ShadowBackend::new(), EngineOptions::default());
    let limits = engine.limits();
    assert_eq!((limits.page_size, limits.context_length), (16, 512));
    assert_eq!(limits.max_running_requests, 256);
    // 2 layers of 2 KV heads of 16, K and V, f32.
    assert_eq!(limits.kv_bytes, u64::from(limits.pages) * 16 * 2 * 2 * 2 * 16 * 4);
    assert!(limits.kv_bytes <= 1 << 29, "at most half of the shadow's memory");
    assert_eq!(limits.warnings, []);
}
