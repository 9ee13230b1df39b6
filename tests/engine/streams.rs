//! What comes out: tokens, text, usage, ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use engine_core::engine::Generation;
use engine_core::error::GenerationError;
use engine_core::request::{FinishReason, GenerationEvent, Request};
use futures_core::Stream;

use crate::support::*;

#[test]
fn tokens_are_those_that_the_oracle_foretells() {
    for overlap in [true, false] {
        let mut options = small();
        options.overlap = overlap;
        let engine = Shadowed::new(options);
        let generations: Vec<_> = (0..12)
            .map(|number| {
                let prompt = prompt(number % 5, 3 + number * 7);
                (prompt.clone(), engine.submit(request(&prompt, 5 + number)).unwrap())
            })
            .collect();
        for (index, (prompt, generation)) in generations.into_iter().enumerate() {
            let output = generation.wait().unwrap().remove(0);
            assert_eq!(output.tokens, foretold(&prompt, 5 + index as u32), "request {index}");
            assert_eq!(output.reason, FinishReason::Length);
        }
    }
}

#[test]
fn a_generation_is_an_async_stream_without_a_runtime() {
    let engine = Shadowed::new(small());
    let prompt = prompt(1, 10);
    let mut generation = engine.submit(request(&prompt, 8)).unwrap();
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut events = Vec::new();
    loop {
        match Pin::new(&mut generation).poll_next(&mut context) {
            Poll::Pending => std::thread::park(),
            Poll::Ready(Some(event)) => events.push(event.unwrap()),
            Poll::Ready(None) => break,
        }
    }
    assert_eq!(tokens_of(&events), foretold(&prompt, 8));
    assert!(matches!(events.last(), Some(GenerationEvent::Finished(_))));
}

#[test]
fn usage_counts_prompt_cached_and_generated_tokens_and_orders_its_times() {
    let engine = Shadowed::new(small());
    let prompt = prompt(1, 41);
    let first = engine.generate(request(&prompt, 6)).unwrap().remove(0).usage;
    assert_eq!((first.prompt_tokens, first.cached_tokens, first.completion_tokens), (41, 0, 6));
    let second = engine.generate(request(&prompt, 6)).unwrap().remove(0).usage;
    assert_eq!(second.cached_tokens, 40, "whole pages below the last token");
    let token = second.first_token.unwrap();
    assert!(second.arrival <= token && token <= second.finish);
    assert!(second.time_to_first_token().unwrap() <= second.total_time());
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.scheduler.prompt_tokens, 82);
    assert!((snapshot.cache_hit_rate() - 40.0 / 82.0).abs() < 1e-9);
}

#[test]
fn without_the_cache_nothing_is_found_again() {
    let mut options = small();
    options.cache = false;
    let engine = Shadowed::new(options);
    for _ in 0..2 {
        let output = engine.generate(request(&prompt(1, 41), 6)).unwrap().remove(0);
        assert_eq!(output.usage.cached_tokens, 0);
    }
}

#[test]
fn every_sample_of_a_request_arrives_whole() {
    let engine = Shadowed::new(small());
    let mut sampling = greedy(9);
    (sampling.n, sampling.temperature, sampling.seed) = (6, 1.0, Some(3));
    let prompt = prompt(2, 30);
    let outputs = engine.generate(Request::new(prompt.clone()).sampling(sampling.clone())).unwrap();
    assert_eq!(outputs.iter().map(|o| o.sample).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    for output in &outputs {
        assert_eq!((output.tokens.len(), output.reason), (9, FinishReason::Length));
    }
    assert!(outputs.iter().any(|output| output.tokens != outputs[0].tokens));
    let again = engine.generate(Request::new(prompt).sampling(sampling)).unwrap();
    for (output, again) in outputs.iter().zip(&again) {
        assert_eq!(output.tokens, again.tokens, "the seed decides");
    }
}

#[test]
fn a_missing_seed_is_drawn_anew_each_time() {
    let engine = Shadowed::new(small());
    let mut sampling = greedy(16);
    sampling.temperature = 1.0;
    let draw = || {
        let request = Request::new(prompt(2, 30)).sampling(sampling.clone());
        engine.generate(request).unwrap().remove(0).tokens
    };
    assert_ne!(draw(), draw());
}

#[test]
fn text_is_what_the_tokens_decode_to() {
    let engine = Shadowed::new(small());
    let output = engine.generate(request(&prompt(3, 12), 40)).unwrap().remove(0);
    let tokenizer = engine.tokenizer().unwrap();
    assert_eq!(output.text, tokenizer.decode(&output.tokens, true));
    assert!(!output.text.is_empty());
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    for overlap in [true, false] {
        let mut options = small();
        options.overlap = overlap;
        let engine = Shadowed::new(options);
        let whole = engine.generate(request(&prompt(3, 12), 60)).unwrap().remove(0);
        // A piece from the middle: it may begin and end within tokens.
        let characters: Vec<char> = whole.text.chars().collect();
        let middle = characters.len() / 2;
        let stop: String = characters[middle..middle + 4].iter().collect();
        let expected = &whole.text[..whole.text.find(&stop).unwrap()];
        let mut sampling = greedy(60);
        sampling.stop = vec![stop];
        let request = Request::new(prompt(3, 12)).sampling(sampling);
        let stopped = engine.generate(request).unwrap().remove(0);
        assert_eq!((stopped.text.as_str(), stopped.reason), (expected, FinishReason::Stop));
        assert!(whole.tokens.starts_with(&stopped.tokens));
        assert!(stopped.tokens.len() < whole.tokens.len());
        assert_eq!(stopped.usage.completion_tokens as usize, stopped.tokens.len());
    }
}

#[test]
fn a_stop_string_before_the_minimum_length_is_text() {
    let engine = Shadowed::new(small());
    let whole = engine.generate(request(&prompt(3, 12), 30)).unwrap().remove(0);
    let mut sampling = greedy(30);
    sampling.stop = vec![whole.text.chars().take(1).collect()];
    sampling.min_tokens = 30;
    let request = Request::new(prompt(3, 12)).sampling(sampling);
    let output = engine.generate(request).unwrap().remove(0);
    assert_eq!(output.text.chars().next(), whole.text.chars().next());
    assert_eq!(output.tokens.len(), 30);
}

#[test]
fn a_stop_string_that_begins_before_the_minimum_length_and_ends_after_it_counts() {
    let engine = Shadowed::new(small());
    let whole = engine.generate(request(&prompt(3, 12), 30)).unwrap().remove(0);
    let tokenizer = engine.tokenizer().unwrap();
    let characters: Vec<char> = whole.text.chars().collect();
    for minimum in [5, 10, 20] {
        // Text that ends within or after the token that reaches the minimum, and begins before.
        let early = tokenizer.decode(&whole.tokens[..minimum - 1], true).chars().count();
        let (start, end) = (early - 3, (early + 5).min(characters.len()));
        let stop: String = characters[start..end].iter().collect();
        let mut sampling = greedy(30);
        sampling.min_tokens = minimum as u32;
        sampling.stop = vec![stop.clone(), characters[..2].iter().collect()];
        let request = Request::new(prompt(3, 12)).sampling(sampling);
        let output = engine.generate(request).unwrap().remove(0);
        assert_eq!(output.reason, FinishReason::Stop, "{minimum}: {stop:?}");
        let shown: String = characters[..start].iter().collect();
        assert_eq!(output.text, shown, "{minimum}: {stop:?}");
        assert!(output.tokens.len() >= minimum);
    }
}

#[test]
fn a_stop_token_is_a_token_but_no_text() {
    let engine = Shadowed::new(small());
    let whole = engine.generate(request(&prompt(3, 12), 30)).unwrap().remove(0);
    let mut sampling = greedy(30);
    sampling.stop_token_ids = vec![whole.tokens[20]];
    let end = whole.tokens.iter().position(|&token| token == whole.tokens[20]).unwrap();
    let request = Request::new(prompt(3, 12)).sampling(sampling);
    let output = engine.generate(request).unwrap().remove(0);
    assert_eq!(output.tokens, whole.tokens[..=end]);
    assert_eq!(output.reason, FinishReason::Stop);
    assert_eq!(output.text, engine.tokenizer().unwrap().decode(&whole.tokens[..end], true));
}

#[test]
fn end_tokens_are_suppressed_below_the_minimum_length() {
    let engine = Shadowed::new(small());
    let free = foretold(&prompt(3, 12), 30);
    let mut sampling = greedy(30);
    sampling.stop_token_ids = vec![free[0]];
    sampling.min_tokens = 5;
    let request = Request::new(prompt(3, 12)).sampling(sampling);
    let output = engine.generate(request).unwrap().remove(0);
    assert!(output.tokens.len() >= 5);
    assert!(!output.tokens[..5].contains(&free[0]));
}

#[test]
fn log_probabilities_come_with_each_token() {
    let engine = Shadowed::new(small());
    let mut sampling = greedy(5);
    sampling.logprobs = Some(3);
    let request = Request::new(prompt(3, 12)).sampling(sampling);
    let output = engine.generate(request).unwrap().remove(0);
    assert_eq!(output.logprobs.len(), 5);
    for (token, logprobs) in output.tokens.iter().zip(&output.logprobs) {
        assert_eq!(logprobs.top.len(), 3);
        assert_eq!(logprobs.top[0], (*token, logprobs.logprob), "greedy takes the likeliest");
        assert!(logprobs.logprob < 0.0);
    }
}

#[test]
fn a_reader_that_never_reads_holds_nobody_up() {
    let engine = Shadowed::new(small());
    let unread = engine.submit(request(&prompt(1, 20), 400)).unwrap();
    for number in 0..8 {
        let prompt = prompt(number, 20);
        let output = engine.generate(request(&prompt, 30)).unwrap().remove(0);
        assert_eq!(output.tokens, foretold(&prompt, 30));
    }
    let output = unread.wait().unwrap().remove(0);
    assert_eq!(output.tokens, foretold(&prompt(1, 20), 400));
}

#[test]
fn dropping_a_stream_gives_its_pages_back() {
    let engine = Shadowed::new(small());
    for number in 0..20 {
        let mut generation = engine.submit(request(&prompt(number, 40), 400)).unwrap();
        if number % 2 == 0 {
            generation.recv().unwrap().unwrap();
        }
    }
    wait_until_idle(&engine);
    let pages = engine.snapshot().pages;
    assert_eq!((pages.owned_by_sequences, pages.cached_locked), (0, 0));
}

#[test]
fn an_aborted_generation_ends_with_that_reason() {
    let engine = Shadowed::new(small());
    let (gate, barrier) = gate(7);
    let generation = engine.submit(request(&prompt(1, 40), 400).constraint(gate)).unwrap();
    barrier.wait();
    generation.abort();
    barrier.wait();
    let output = generation.wait().unwrap().remove(0);
    assert_eq!(output.reason, FinishReason::Abort);
    assert!(foretold(&prompt(1, 40), 10).starts_with(&output.tokens));
}

#[test]
fn branches_continue_from_where_their_parent_is() {
    for overlap in [true, false] {
        let mut options = small();
        options.overlap = overlap;
        let engine = Shadowed::new(options);
        let root = prompt(4, 21);
        let (gate, barrier) = gate(7);
        let mut parent = engine.submit(request(&root, 300).constraint(gate)).unwrap();
        barrier.wait();
        first_token(&mut parent);
        let branches: Vec<_> = (0..3)
            .map(|number| {
                let suffix = prompt(50 + number, 1 + number * 3);
                (suffix.clone(), parent.fork(0, request(&suffix, 12)).unwrap())
            })
            .collect();
        barrier.wait();
        for (suffix, branch) in branches {
            let output = branch.wait().unwrap().remove(0);
            // How far the parent was is known from the branch's prompt.
            let known = output.usage.prompt_tokens as usize - suffix.len() - root.len();
            assert!(known > 0);
            let mut whole = root.clone();
            whole.extend(&foretold(&root, 300)[..known]);
            whole.extend(suffix);
            assert_eq!(output.tokens, foretold(&whole, 12));
            assert!(output.usage.cached_tokens >= 20, "{:?}", output.usage);
        }
        let output = read_all(parent);
        assert_eq!(tokens_of(&output.0), foretold(&root, 300)[1..]);
    }
}

#[test]
fn a_branch_of_a_sample_that_has_ended_is_refused_on_its_stream() {
    let engine = Shadowed::new(small());
    let mut parent = engine.submit(request(&prompt(1, 9), 3)).unwrap();
    while !matches!(parent.recv(), Some(Ok(GenerationEvent::Finished(_)))) {}
    let branch = parent.fork(0, request(&[1], 4)).unwrap();
    let (events, error) = read_all(branch);
    assert_eq!(events, []);
    assert!(matches!(error, Some(GenerationError::Refused { sample: 0, .. })), "{error:?}");
}

#[test]
fn many_threads_can_share_an_engine() {
    let engine = Shadowed::new(small());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let engine = &*engine;
            scope.spawn(move || {
                for round in 0..6 {
                    let prompt = prompt(round, 10 + thread);
                    let output = engine.generate(request(&prompt, 10)).unwrap().remove(0);
                    assert_eq!(output.tokens, foretold(&prompt, 10));
                }
            });
        }
    });
}

#[test]
fn a_generation_may_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Generation>();
}
