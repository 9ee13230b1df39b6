//! The ways in: at once, together, asynchronously; and what a generation offers beside its events.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use engine_core::engine::{Engine, EngineOptions};
use engine_core::error::{EngineError, GenerationError, SubmitError};
use engine_core::request::{
    FinishReason, GenerationEvent, ParamsError, Request, SamplingParams, StopMatch,
};
use engine_core::schedule::QueuePolicy;
use testkit::shadow::ShadowBackend;

use crate::support::*;

/// Runs a future on this thread, without any runtime.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn an_asynchronous_submission_needs_no_runtime_and_answers_as_any_other() {
    let engine = Shadowed::new(small());
    let text = "the sea was flat and grey";
    let tokens = engine.tokenizer().unwrap().encode(text, true).unwrap();
    let submitting: Vec<_> =
        (0..5).map(|_| engine.submit_async(Request::new(text).sampling(greedy(8)))).collect();
    for submitting in submitting {
        let generation = block_on(submitting).unwrap();
        assert_eq!(generation.prompt_tokens() as usize, tokens.len());
        assert_eq!(generation.wait().unwrap()[0].tokens, foretold(&tokens, 8));
    }
    // What is wrong is told through the future: at once, or once the prompt is looked at.
    let error = block_on(engine.submit_async(request(&[VOCABULARY], 1))).unwrap_err();
    assert!(matches!(error, SubmitError::UnknownToken { .. }), "{error}");
    let error = block_on(engine.submit_async(request(&[1], 0))).unwrap_err();
    assert!(matches!(error, SubmitError::Params(_)), "{error}");
    // A future that is dropped gives its request up, wherever it is.
    for _ in 0..20 {
        drop(engine.submit_async(request(&prompt(1, 30), 400)));
    }
    wait_until_idle(&engine);
    assert_eq!(engine.snapshot().queued, 0);
}

#[test]
fn an_asynchronous_submission_keeps_no_engine_alive() {
    let mut engine = Shadowed::new(small());
    let submitting: Vec<_> =
        (0..10).map(|n| engine.submit_async(request(&prompt(n, 30), 400))).collect();
    engine.engine = None;
    for submitting in submitting {
        match within_a_minute(|| block_on(submitting)) {
            Ok(generation) => drop(within_a_minute(|| generation.wait())),
            Err(SubmitError::ShuttingDown) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn several_requests_are_taken_together_or_not_at_all() {
    let mut options = small();
    options.max_queued_requests = 6;
    let engine = Shadowed::new(options);
    let several = |count: u32| (0..count).map(|n| request(&prompt(n, 12), 10)).collect();
    let generations = engine.submit_all(several(6)).unwrap();
    for (number, generation) in (0..).zip(generations) {
        assert_eq!(generation.wait().unwrap()[0].tokens, foretold(&prompt(number, 12), 10));
    }
    wait_until_idle(&engine);
    let before = engine.snapshot().endings;

    let error = engine.submit_all(several(7)).unwrap_err();
    assert!(matches!(error, SubmitError::QueueFull { limit: 6 }), "{error}");
    for bad in [request(&[VOCABULARY], 1), request(&[1], 0), request(&[], 1)] {
        let mut requests: Vec<Request> = several(3);
        requests.insert(2, bad);
        let error = engine.submit_all(requests).unwrap_err();
        assert!(matches!(error, SubmitError::OneOfSeveral { index: 2, .. }), "{error}");
    }
    wait_until_idle(&engine);
    assert_eq!(engine.snapshot().endings, before, "none of them was taken");
    assert_eq!(engine.submit_all(Vec::new()).unwrap().len(), 0);
    assert_eq!(engine.submit_all(several(6)).unwrap().len(), 6, "all places are free again");
}

#[test]
fn a_generation_can_be_polled_and_given_up_from_elsewhere() {
    let engine = Shadowed::new(small());
    let (gate, barrier) = gate(3);
    let mut generation = engine.submit(request(&prompt(1, 20), 400).constraint(gate)).unwrap();
    assert_eq!((generation.samples(), generation.prompt_tokens()), (1, 20));
    let handle = generation.abort_handle();
    barrier.wait();
    // Nothing more comes for now, and polling says so.
    while let Poll::Ready(event) = generation.recv_timeout(Duration::from_millis(1)) {
        assert!(event.unwrap().is_ok());
    }
    assert_eq!(generation.try_recv(), Poll::Pending);
    std::thread::spawn(move || handle.clone().abort()).join().unwrap();
    barrier.wait();
    let (events, error) = read_all(generation);
    let Some(GenerationEvent::Finished(finished)) = events.last() else { panic!("{error:?}") };
    assert_eq!(finished.reason, FinishReason::Abort);

    let mut generation = engine.submit(request(&prompt(1, 20), 3)).unwrap();
    let handle = generation.abort_handle();
    while let Some(event) = generation.recv() {
        event.unwrap();
    }
    assert_eq!(generation.try_recv(), Poll::Ready(None));
    assert_eq!(generation.recv_timeout(Duration::from_secs(60)), Poll::Ready(None));
    handle.abort();
    engine.generate(request(&prompt(1, 20), 3)).unwrap();
}

#[test]
fn admission_says_what_was_cached_and_how_long_it_took() {
    let engine = Shadowed::new(small());
    for cached in [0, 40] {
        let output = engine.submit(request(&prompt(1, 41), 6)).unwrap();
        let (events, _) = read_all(output);
        let Some(GenerationEvent::Admitted { sample, prompt_tokens, cached_tokens, queue_time }) =
            events.first()
        else {
            panic!("{events:?}")
        };
        assert_eq!((*sample, *prompt_tokens, *cached_tokens), (0, 41, cached));
        let Some(GenerationEvent::Finished(finished)) = events.last() else { panic!() };
        assert_eq!(finished.usage.queue_time(), Some(*queue_time));
        assert!(*queue_time <= finished.usage.total_time());
    }
}

#[test]
fn the_end_says_what_it_was() {
    let engine = Shadowed::new(small());
    let whole = engine.generate(request(&prompt(3, 12), 60)).unwrap().remove(0);
    assert_eq!((whole.reason, &whole.matched), (FinishReason::Length, &None));

    let end = whole.tokens[20];
    let mut sampling = greedy(60);
    sampling.stop_token_ids = vec![end];
    let by_token = |sampling| Request::new(prompt(3, 12)).sampling(sampling);
    let output = engine.generate(by_token(sampling)).unwrap().remove(0);
    assert_eq!((output.reason, output.matched), (FinishReason::Stop, Some(StopMatch::Token(end))));

    let characters: Vec<char> = whole.text.chars().collect();
    let middle = characters.len() / 2;
    let stop: String = characters[middle..middle + 4].iter().collect();
    let end = whole.text.find(&stop).unwrap();
    for include_stop in [false, true] {
        let mut sampling = greedy(60);
        sampling.stop = vec!["nowhere in it".to_owned(), stop.clone()];
        sampling.include_stop = include_stop;
        let output = engine.generate(by_token(sampling)).unwrap().remove(0);
        let matched = Some(StopMatch::Text(stop.as_str().into()));
        assert_eq!((output.reason, output.matched), (FinishReason::Stop, matched));
        let shown = if include_stop { end + stop.len() } else { end };
        assert_eq!(output.text, whole.text[..shown]);
    }
}

#[test]
fn pieces_of_text_name_the_tokens_that_they_come_from() {
    let engine = Shadowed::new(small());
    let tokenizer = engine.tokenizer().unwrap();
    let mut sampling = greedy(120);
    // Held back now and then: some of it may begin a stop string.
    sampling.stop = vec!["e nowhere".to_owned(), "a nowhere".to_owned()];
    let (events, _) =
        read_all(engine.submit(Request::new(prompt(3, 12)).sampling(sampling)).unwrap());
    let tokens = tokens_of(&events);
    // Where the text of each token ends, as far as it is certain then.
    let ends: Vec<usize> =
        (1..=tokens.len()).map(|n| tokenizer.decode(&tokens[..n], true).len()).collect();
    let (mut shown, mut last_end) = (0, 0);
    for event in &events {
        let GenerationEvent::Text { text, tokens: range, .. } = event else { continue };
        let begin = shown;
        shown += text.len();
        assert!(range.start < range.end && range.end as usize <= tokens.len(), "{range:?}");
        assert!(range.start <= last_end && last_end <= range.end, "none is left out: {range:?}");
        last_end = range.end;
        // An incomplete character decodes to a longer replacement, so the ends are bounds.
        let before = range.start.checked_sub(1).map_or(0, |index| ends[index as usize]);
        assert!(before <= begin + 8, "{range:?} begins with {text:?}");
        assert!(ends[range.end as usize - 1] + 8 >= shown, "{range:?} ends with {text:?}");
    }
    assert_eq!(last_end as usize, tokens.len());
}

#[test]
fn special_tokens_have_text_where_that_is_asked_for() {
    let engine = Shadowed::new(small());
    let tokenizer = engine.tokenizer().unwrap();
    let special = (0..VOCABULARY).find(|&token| tokenizer.is_special(token)).unwrap();
    for skips in [true, false] {
        let mut sampling = greedy(6);
        sampling.skip_special_tokens = skips;
        sampling.logit_bias = vec![(special, 100.0)];
        let output = engine.generate(Request::new(prompt(3, 12)).sampling(sampling)).unwrap();
        let output = &output[0];
        assert_eq!(output.tokens, [special; 6]);
        assert_eq!(output.text, tokenizer.decode(&output.tokens, skips));
        assert_eq!(output.text.is_empty(), skips);
    }
}

#[test]
fn a_higher_priority_leaves_the_queue_first() {
    for policy in [QueuePolicy::FirstCome, QueuePolicy::LongestPrefix] {
        let mut options = small();
        options.max_running_requests = Some(1);
        options.queue_policy = policy;
        let engine = Shadowed::new(options);
        let (gate, barrier) = gate(2);
        let first = engine.submit(request(&prompt(1, 12), 4).constraint(gate)).unwrap();
        barrier.wait();
        let priorities = [0, -5, 7, 0, 7, i32::MAX];
        let waiting: Vec<_> = (2..)
            .zip(priorities)
            .map(|(n, priority)| request(&prompt(n, 12), 2).priority(priority))
            .map(|request| engine.submit(request).unwrap())
            .collect();
        barrier.wait();
        first.wait().unwrap();
        let admitted: Vec<_> = waiting
            .into_iter()
            .map(|generation| generation.wait().unwrap()[0].usage.admitted.unwrap())
            .collect();
        let mut order: Vec<usize> = (0..priorities.len()).collect();
        order.sort_by_key(|&index| admitted[index]);
        assert_eq!(order, [5, 2, 4, 0, 3, 1], "{policy:?}");
    }
}

#[test]
fn a_queue_without_places_is_an_option_error() {
    let options = EngineOptions::default().max_queued_requests(0);
    let error = Engine::builder().options(options).load(model(), &ShadowBackend::new(), &mut ());
    let error = error.unwrap_err();
    assert!(matches!(error, EngineError::Option { option: "max_queued_requests", .. }), "{error}");
}

#[test]
fn a_minimum_beyond_the_context_holds_to_its_end() {
    let engine = Shadowed::new(small());
    for min_tokens in [100, 511, 512, 1 << 20, u32::MAX - 500, u32::MAX - 1, u32::MAX] {
        let mut sampling = SamplingParams::greedy(1);
        (sampling.max_tokens, sampling.min_tokens) = (None, min_tokens);
        let free = foretold(&prompt(3, 480), 2);
        sampling.stop_token_ids = free.clone();
        let output = engine.generate(Request::new(prompt(3, 480)).sampling(sampling)).unwrap();
        assert_eq!(output[0].tokens.len(), 512 - 480, "{min_tokens}");
        assert!(free.iter().all(|token| !output[0].tokens.contains(token)), "{min_tokens}");
        assert_eq!(output[0].reason, FinishReason::Length);
    }
    let mut sampling = greedy(5);
    sampling.min_tokens = 6;
    let error = engine.submit(Request::new(vec![1]).sampling(sampling)).unwrap_err();
    let expected = ParamsError::MinAboveMax { min: 6, max: 5 };
    assert!(matches!(error, SubmitError::Params(found) if found == expected));
}

/// What counts from the beginning of an answer: in a branch, from the branch's.
#[test]
fn a_branch_counts_from_its_own_start() {
    for overlap in [true, false] {
        let mut options = small();
        options.overlap = overlap;
        let engine = Shadowed::new(options);
        let root = prompt(4, 21);
        let (gate, barrier) = gate(7);
        let mut parent = engine.submit(request(&root, 300).constraint(gate)).unwrap();
        barrier.wait();
        first_token(&mut parent);
        let suffix = prompt(50, 5);
        let branch = |sampling| Request::new(suffix.clone()).sampling(sampling);
        // Every token ends it, once it may: so it has exactly the minimum.
        let mut minimum = greedy(40);
        minimum.min_tokens = 6;
        minimum.stop_token_ids = (0..VOCABULARY / 2).collect();
        let minimum = parent.fork(0, branch(minimum)).unwrap();
        let mut penalized = greedy(30);
        penalized.presence_penalty = 2.0;
        let penalized = parent.fork(0, branch(penalized)).unwrap();
        let mut scored = greedy(4);
        scored.prompt_logprobs = Some(0);
        let scored = parent.fork(0, branch(scored)).unwrap();
        barrier.wait();

        let minimum = minimum.wait().unwrap().remove(0);
        let end = minimum.tokens.iter().position(|&token| token < VOCABULARY / 2).unwrap();
        assert!(end >= 6, "{:?}", minimum.tokens);
        assert_eq!((end + 1, minimum.reason), (minimum.tokens.len(), FinishReason::Stop));
        // Presence counts what the branch itself generated: each token once.
        let penalized = penalized.wait().unwrap().remove(0);
        let mut seen = HashMap::new();
        penalized.tokens.iter().for_each(|token| *seen.entry(token).or_insert(0) += 1);
        let known = penalized.usage.prompt_tokens as usize - suffix.len() - root.len();
        let mut whole = root.clone();
        whole.extend(&foretold(&root, 300)[..known]);
        whole.extend(&suffix);
        let mut sampling = engine_core::backend::SlotSampling::greedy();
        sampling.presence_penalty = 2.0;
        let expected =
            testkit::shadow::model::continue_alone(&whole, &sampling, VOCABULARY, 30, &[]);
        assert_eq!(penalized.tokens, expected);
        // Scored is what the branch adds.
        assert_eq!(scored.wait().unwrap()[0].prompt_logprobs.len(), suffix.len());
    }
}

#[test]
fn tools_and_variables_reach_the_template() {
    use engine_core::text::{ChatMessage, ChatOptions, ChatTemplate, SpecialTokens};
    let template = "{{ messages[0].content }} {{ tools|length }} {{ documents|length }} {{ mood }}";
    let template = ChatTemplate::new(template, &SpecialTokens::default()).unwrap();
    let engine = Engine::builder()
        .options(small())
        .chat_template(template)
        .load(model(), &ShadowBackend::new(), &mut ())
        .unwrap();
    let mut chat = ChatOptions::default();
    chat.tools = Some(vec![serde_json::json!({"name": "look_up"})]);
    chat.documents = Some(vec![serde_json::json!({}), serde_json::json!({})]);
    chat.variables.insert("mood".to_owned(), "calm".into());
    let request = Request::new(vec![ChatMessage::new("user", "Hello")]).chat(chat);
    let output = engine.generate(request.sampling(greedy(5))).unwrap().remove(0);
    let tokens = engine.tokenizer().unwrap().encode("Hello 1 2 calm", false).unwrap();
    assert_eq!(output.tokens, foretold(&tokens, 5));
}

#[test]
fn a_stream_whose_engine_dies_says_so_to_every_kind_of_reader() {
    let backend = testkit::faults::FaultyBackend::new(
        ShadowBackend::new(),
        [(3, testkit::faults::Fault::Dead)],
    );
    let engine = start(&backend, small());
    let mut generation = engine.submit(request(&prompt(1, 9), 200)).unwrap();
    let error = loop {
        match generation.recv_timeout(Duration::from_secs(60)) {
            Poll::Ready(Some(Ok(_))) => continue,
            Poll::Ready(Some(Err(error))) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(error, GenerationError::Dead(_)), "{error}");
    assert_eq!(generation.try_recv(), Poll::Ready(None));
    let error = block_on(engine.submit_async(request(&[1], 1))).unwrap_err();
    assert!(matches!(error, SubmitError::Dead(_)), "{error}");
    assert!(matches!(engine.clear_cache(), Err(SubmitError::Dead(_))));
    assert!(matches!(engine.dump_cache_events(), Err(SubmitError::Dead(_))));
}
