//! How an engine ends.

use engine_core::engine::Shutdown;
use engine_core::error::SubmitError;
use engine_core::request::{FinishReason, GenerationEvent};

use crate::support::*;

#[test]
fn draining_finishes_what_was_taken() {
    let engine = Shadowed::new(small());
    let generations: Vec<_> =
        (0..10).map(|n| engine.submit(request(&prompt(n, 9), 20)).unwrap()).collect();
    engine.shutdown(Shutdown::Drain).unwrap();
    let error = engine.submit(request(&[1], 1)).unwrap_err();
    assert!(matches!(error, SubmitError::ShuttingDown), "{error}");
    for (number, generation) in (0..).zip(generations) {
        let output = generation.wait().unwrap().remove(0);
        assert_eq!(output.tokens, foretold(&prompt(number, 9), 20));
    }
}

#[test]
fn shutting_down_now_aborts_everything() {
    let engine = Shadowed::new(small());
    let generations: Vec<_> =
        (0..10).map(|n| engine.submit(request(&prompt(n, 9), 450)).unwrap()).collect();
    engine.shutdown(Shutdown::Now).unwrap();
    let mut aborted = 0;
    for (number, generation) in (0..).zip(generations) {
        let output = generation.wait().unwrap().remove(0);
        assert!(foretold(&prompt(number, 9), 450).starts_with(&output.tokens));
        aborted += u32::from(output.reason == FinishReason::Abort);
    }
    assert!(aborted > 0);
    engine.shutdown(Shutdown::Now).unwrap();
}

#[test]
fn dropping_the_last_handle_ends_open_streams() {
    let mut engine = Shadowed::new(small());
    let mut generation = engine.submit(request(&prompt(1, 9), 450)).unwrap();
    let clone = engine.engine.clone();
    drop(clone);
    generation.recv().unwrap().unwrap();
    engine.engine = None;
    let (events, error) = read_all(generation);
    assert_eq!(error, None);
    assert!(matches!(events.last(), Some(GenerationEvent::Finished(_))), "{events:?}");
}

#[test]
fn several_threads_may_shut_down_at_once() {
    let engine = Shadowed::new(small());
    let generation = engine.submit(request(&prompt(1, 9), 100)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| engine.shutdown(Shutdown::Drain).unwrap());
        }
    });
    assert_eq!(generation.wait().unwrap()[0].tokens, foretold(&prompt(1, 9), 100));
}
