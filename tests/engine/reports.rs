//! What an engine tells of itself: the model, counts, the cache as events.

use std::collections::BTreeSet;
use std::time::Duration;

use engine_core::CacheEvent;
use engine_core::backend::weights::Format;
use engine_core::backend::{BackendError, Compute, KvFormat};
use engine_core::engine::{Engine, Shutdown};
use engine_core::error::{EngineError, SubmitError};
use engine_core::model::open_model;
use radix_cache::Change;
use testkit::faults::{Fault, FaultyBackend};
use testkit::shadow::ShadowBackend;

use crate::support::*;

#[test]
fn facts_about_the_model_are_told() {
    let engine = Engine::builder()
        .options(small())
        .source("hf:somebody/something")
        .load(model(), &ShadowBackend::new(), &mut ())
        .unwrap();
    let facts = engine.model();
    assert_eq!(facts.source.as_deref(), Some("hf:somebody/something"));
    assert_eq!(facts.path.as_deref(), Some(model().as_path()));
    assert_eq!(facts.architecture.as_deref(), Some("llama"));
    assert_eq!((facts.context_length, facts.vocab_size), (512, VOCABULARY));
    let opened = open_model(&model()).unwrap();
    let program = opened.program().unwrap();
    let tensors = program.weights().iter().map(|w| opened.weights.tensor(&w.name).unwrap());
    let bytes: Vec<(Format, u64)> =
        tensors.map(|tensor| (tensor.format(), tensor.data().len() as u64)).collect();
    assert_eq!(facts.weight_bytes, bytes.iter().map(|(_, bytes)| bytes).sum::<u64>());
    assert_eq!(facts.format, Some(bytes[0].0));

    let engine = Engine::builder()
        .options(small())
        .build(program, opened.weights.as_ref(), &ShadowBackend::new(), &mut ())
        .unwrap();
    let facts = engine.model();
    assert_eq!((&facts.source, &facts.path, &facts.architecture), (&None, &None, &None));
    assert!(facts.weight_bytes > 0);
}

#[test]
fn an_estimate_refuses_what_the_start_refuses() {
    // KV in f32 and exact products only.
    let backend = ShadowBackend::new();
    let opened = open_model(&model()).unwrap();
    let refusals = [
        small().kv_format(KvFormat::Int8),
        small().compute(Compute::Int8),
        small().compute(Compute::Bf16).kv_format(KvFormat::F32),
    ];
    for options in refusals {
        let builder = || Engine::builder().options(options.clone());
        let estimated = builder().estimate(&opened, &backend).unwrap_err();
        let started = builder().load_model(&opened, &backend, &mut ()).unwrap_err();
        let is_unsupported = |error: &EngineError| {
            matches!(error, EngineError::Backend(BackendError::Unsupported { .. }))
        };
        assert!(is_unsupported(&estimated) && is_unsupported(&started), "{estimated}, {started}");
    }
    assert!(Engine::builder().options(small()).estimate(&opened, &backend).unwrap().fits());
}

#[test]
fn endings_are_counted_by_reason() {
    let backend = FaultyBackend::new(ShadowBackend::new(), [(60, Fault::Row(0))]);
    let engine = start(&backend, small());
    engine.generate(request(&prompt(1, 9), 3)).unwrap();
    let mut stopped = request(&prompt(1, 9), 3);
    stopped.sampling.stop_token_ids = foretold(&prompt(1, 9), 1);
    engine.generate(stopped).unwrap();
    let whole = engine.generate(request(&prompt(3, 12), 20)).unwrap().remove(0);
    let mut by_text = request(&prompt(3, 12), 20);
    by_text.sampling.stop = vec![whole.text.chars().take(2).collect()];
    engine.generate(by_text).unwrap();
    let (gate, barrier) = gate(2);
    let mut parent = engine.submit(request(&prompt(1, 9), 450).constraint(gate)).unwrap();
    barrier.wait();
    parent.abort();
    barrier.wait();
    let parent = {
        while parent.recv().is_some() {}
        parent
    };
    let (_, error) = read_all(parent.fork(0, request(&[1], 1)).unwrap());
    assert!(error.is_some());
    while engine.snapshot().endings.failed == 0 {
        let _ = engine.generate(request(&prompt(5, 9), 10));
    }
    wait_until_idle(&engine);
    let endings = engine.snapshot().endings;
    assert_eq!((endings.stop, endings.abort, endings.failed, endings.refused), (2, 1, 1, 1));
    assert!(endings.length >= 2);
    let snapshot = engine.snapshot();
    assert!(Duration::ZERO < snapshot.last_step_time);
    assert!(snapshot.last_step_time <= snapshot.step_time);
}

#[test]
fn a_cleared_cache_is_empty_but_for_what_runs() {
    let engine = Shadowed::new(small());
    engine.generate(request(&prompt(1, 60), 1)).unwrap();
    engine.clear_cache().unwrap();
    let output = engine.generate(request(&prompt(1, 60), 1)).unwrap().remove(0);
    assert_eq!(output.usage.cached_tokens, 0);

    let (gate, barrier) = gate(2);
    let running = engine.submit(request(&prompt(1, 60), 9).constraint(gate)).unwrap();
    barrier.wait();
    engine.clear_cache().unwrap();
    barrier.wait();
    assert_eq!(running.wait().unwrap()[0].tokens, foretold(&prompt(1, 60), 9));
    let output = engine.generate(request(&prompt(1, 60), 1)).unwrap().remove(0);
    assert_eq!(output.usage.cached_tokens, 56, "what ran kept its pages, and left them");
    engine.clear_cache().unwrap();
    engine.generate(request(&[1], 1)).unwrap();
    wait_until_idle(&engine);
    let pages = engine.snapshot().pages;
    assert_eq!(pages.free, pages.capacity);
    engine.shutdown(Shutdown::Now).unwrap();
    assert!(matches!(engine.clear_cache(), Err(SubmitError::ShuttingDown)));
}

/// The hashes that are stored after some events.
fn stored<'a>(events: impl IntoIterator<Item = &'a CacheEvent>) -> BTreeSet<u64> {
    let mut stored = BTreeSet::new();
    for event in events {
        match &event.change {
            Change::Stored(pages) => stored.extend(&pages.hashes),
            Change::Removed { hashes, .. } => stored.retain(|hash| !hashes.contains(hash)),
            _ => stored.clear(),
        }
    }
    stored
}

#[test]
fn a_dump_says_what_following_from_the_beginning_says() {
    let engine = Shadowed::new(small().cache_events(100_000));
    let mut followed = Vec::new();
    for number in 0..20 {
        engine.generate(request(&prompt(number % 12, 90), 20)).unwrap();
        let dump = engine.dump_cache_events().unwrap();
        followed.extend(engine.take_cache_events());
        assert_eq!(stored(&dump), stored(&followed));
        let next = followed.last().map_or(0, |event| event.sequence + 1);
        assert!(dump.iter().all(|event| event.sequence == next));
    }
    assert!(!followed.is_empty());
}

#[test]
fn whoever_waits_for_cache_events_wakes_up_for_one_and_for_the_end() {
    let engine = Shadowed::new(small().cache_events(100));
    assert!(engine.wait_for_cache_events(Duration::ZERO).is_empty());
    assert!(engine.wait_for_cache_events(Duration::from_millis(1)).is_empty());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| engine.wait_for_cache_events(Duration::from_secs(3600)));
        engine.generate(request(&prompt(1, 60), 1)).unwrap();
        assert!(!waiting.join().unwrap().is_empty());
        wait_until_idle(&engine);
        engine.take_cache_events();
        let waiting = scope.spawn(|| engine.wait_for_cache_events(Duration::MAX));
        engine.shutdown(Shutdown::Drain).unwrap();
        waiting.join().unwrap();
    });
}
