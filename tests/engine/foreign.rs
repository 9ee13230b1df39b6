//! Code that callers bring along (constraints, wakers, progress) and that panics, or lets the last
//! handle of its engine go: its own request ends, and nobody hangs.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use engine_core::Token;
use engine_core::backend::Progress;
use engine_core::engine::{Engine, Generation, Shutdown};
use engine_core::error::{EngineError, GenerateError, GenerationError, SubmitError};
use engine_core::request::{FinishReason, TokenConstraint};
use futures_core::Stream;
use testkit::shadow::ShadowBackend;

use crate::support::*;

/// Where a constraint panics.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Allow,
    Advance,
    Forced,
    Duplicate,
    Drop,
}

/// Panics in one of its calls, after some tokens.
#[derive(Debug)]
struct Panics {
    at: At,
    after: u32,
}

impl Panics {
    fn check(&self, at: At) {
        assert!(self.at != at || self.after > 0, "on purpose");
    }
}

impl TokenConstraint for Panics {
    fn allow(&mut self, allowed: &mut [u32]) {
        self.check(At::Allow);
        allowed.fill(!0);
    }

    fn advance(&mut self, _token: Token) {
        self.after = self.after.saturating_sub(1);
        self.check(At::Advance);
    }

    fn rollback(&mut self, _tokens: usize) {}

    fn forced(&mut self, _tokens: &mut Vec<Token>) {
        self.check(At::Forced);
    }

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        self.check(At::Duplicate);
        Box::new(Self { at: self.at, after: self.after })
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        // A second panic while the first unwinds would end the process.
        if self.at == At::Drop && !std::thread::panicking() {
            panic!("on purpose");
        }
    }
}

#[test]
fn a_constraint_that_panics_anywhere_ends_its_own_request_alone() {
    for at in [At::Allow, At::Advance, At::Forced] {
        // With four samples, masks are computed by several threads.
        for samples in [1, 4] {
            let engine = Shadowed::new(small());
            let free = engine.submit(request(&prompt(2, 15), 60)).unwrap();
            let mut panics =
                request(&prompt(1, 15), 12).constraint(Box::new(Panics { at, after: 3 }));
            panics.sampling.n = samples;
            let (events, error) = read_all(engine.submit(panics).unwrap());
            assert!(foretold(&prompt(1, 15), 12).starts_with(&tokens_of(&events)[..3]));
            let Some(GenerationError::Constraint { problem, .. }) = error else {
                panic!("{at:?}: {error:?}")
            };
            assert!(problem.contains("on purpose"), "{problem}");
            assert_eq!(free.wait().unwrap()[0].tokens, foretold(&prompt(2, 15), 60));
            assert_unharmed(&engine);
        }
    }
}

#[test]
fn a_constraint_that_panics_while_it_is_copied_is_refused() {
    let engine = Shadowed::new(small());
    let mut panics =
        request(&prompt(1, 15), 12).constraint(Box::new(Panics { at: At::Duplicate, after: 0 }));
    panics.sampling.n = 2;
    let error = engine.submit(panics).unwrap_err();
    assert!(matches!(error, SubmitError::Constraint { .. }), "{error}");
    assert_unharmed(&engine);
}

#[test]
fn a_constraint_that_panics_when_it_is_dropped_harms_nobody() {
    let engine = Shadowed::new(small());
    // Dropped when the sample ends, is given up, or is refused; and with an engine that ends.
    let panics = |max_tokens| {
        request(&prompt(1, 15), max_tokens).constraint(Box::new(Panics { at: At::Drop, after: 0 }))
    };
    assert_eq!(engine.generate(panics(12)).unwrap()[0].tokens, foretold(&prompt(1, 15), 12));
    engine.submit(panics(400)).unwrap().abort();
    let ended = engine.submit(request(&prompt(1, 15), 1)).unwrap();
    wait_until_idle(&engine);
    let (_, error) = read_all(ended.fork(0, panics(12)).unwrap());
    assert!(matches!(error, Some(GenerationError::Refused { .. })), "{error:?}");
    assert_unharmed(&engine);
    let running = engine.submit(panics(400)).unwrap();
    engine.shutdown(Shutdown::Now).unwrap();
    assert_eq!(running.wait().unwrap()[0].reason, FinishReason::Abort);
}

/// A waker that does something when it wakes, or is dropped.
struct Does<F: Fn() + Send + Sync + 'static> {
    wakes: F,
    panics_in_drop: AtomicBool,
}

impl<F: Fn() + Send + Sync> Wake for Does<F> {
    fn wake(self: Arc<Self>) {
        (self.wakes)();
    }
}

impl<F: Fn() + Send + Sync> Drop for Does<F> {
    fn drop(&mut self) {
        assert!(!self.panics_in_drop.load(Ordering::Relaxed), "on purpose");
    }
}

/// Leaves a waker at the generation, which has nothing to tell yet.
fn leave(generation: &mut Generation, waker: &Waker) {
    let mut context = Context::from_waker(waker);
    while let Poll::Ready(event) = Pin::new(&mut *generation).poll_next(&mut context) {
        event.unwrap().unwrap();
    }
}

#[test]
fn a_waker_that_panics_ends_its_own_request_alone() {
    for panics_in_drop in [false, true] {
        let engine = Shadowed::new(small());
        let free = engine.submit(request(&prompt(2, 15), 60)).unwrap();
        let (gate, barrier) = gate(2);
        let mut woken = engine.submit(request(&prompt(1, 15), 400).constraint(gate)).unwrap();
        barrier.wait();
        let waker = Waker::from(Arc::new(Does {
            wakes: move || assert!(panics_in_drop, "on purpose"),
            panics_in_drop: AtomicBool::new(panics_in_drop),
        }));
        leave(&mut woken, &waker);
        drop(waker);
        barrier.wait();
        let (_, error) = read_all(woken);
        let Some(GenerationError::Waker { problem }) = error else { panic!("{error:?}") };
        assert!(problem.contains("on purpose"), "{problem}");
        assert_eq!(free.wait().unwrap()[0].tokens, foretold(&prompt(2, 15), 60));
        assert_unharmed(&engine);
    }
}

/// Everything that requests took is given back, and the engine answers.
fn assert_unharmed(engine: &Engine) {
    wait_until_idle(engine);
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.pages.owned_by_sequences, snapshot.pages.cached_locked), (0, 0));
    assert_eq!(snapshot.queued, 0);
    let output = engine.generate(request(&prompt(7, 15), 12)).unwrap().remove(0);
    assert_eq!(output.tokens, foretold(&prompt(7, 15), 12));
}

/// Panics at its first report.
struct PanickingProgress;

impl Progress for PanickingProgress {
    fn update(&mut self, _what: &str, _done: u64, _total: u64) {
        panic!("on purpose");
    }
}

#[test]
fn a_progress_report_that_panics_is_an_error_of_the_start() {
    let backend = ShadowBackend::new();
    let started =
        Engine::builder().options(small()).load(model(), &backend, &mut PanickingProgress);
    match started {
        Err(EngineError::Progress { reason }) => assert!(reason.contains("on purpose")),
        // A backend that has nothing to prepare reports nothing.
        Ok(engine) => drop(engine.generate(request(&prompt(1, 5), 1)).unwrap()),
        Err(error) => panic!("{error}"),
    }
}

/// A place for the last handle of an engine.
type Holder = Arc<Mutex<Option<Engine>>>;

/// Holds a handle, and lets it go when it is dropped or after some tokens.
#[derive(Debug)]
struct Holds {
    holder: Holder,
    after: Option<u32>,
}

impl TokenConstraint for Holds {
    fn allow(&mut self, allowed: &mut [u32]) {
        allowed.fill(!0);
    }

    fn advance(&mut self, _token: Token) {
        self.after = self.after.map(|after| after.saturating_sub(1));
        if self.after == Some(0) {
            drop(self.holder.lock().unwrap().take());
        }
    }

    fn rollback(&mut self, _tokens: usize) {}

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self { holder: Arc::clone(&self.holder), after: self.after })
    }
}

/// Starts a request on an engine whose last handle is then in `holder` alone.
fn start_held(holder: &Holder, request: impl FnOnce(&Engine) -> Generation) -> Generation {
    let engine = start(&ShadowBackend::new(), small());
    let generation = request(&engine);
    *holder.lock().unwrap() = Some(engine);
    generation
}

#[test]
fn a_handle_that_is_dropped_on_a_thread_of_its_engine_does_not_wait_for_it() {
    // Dropped with the constraint when its sample ends; by a call of it on the scheduler thread;
    // and, with four samples, perhaps by one on a thread for masks.
    for (after, samples) in [(None, 1), (Some(3), 1), (Some(3), 4)] {
        within_a_minute(|| {
            let holder = Holder::default();
            let generation = start_held(&holder, |engine| {
                let holds = Holds { holder: Arc::clone(&holder), after };
                let mut held = request(&prompt(1, 15), 200).constraint(Box::new(holds));
                held.sampling.n = samples;
                engine.submit(held).unwrap()
            });
            if after.is_none() {
                // The constraint has the only reference to the holder now.
                drop(holder);
            }
            for output in generation.wait().unwrap() {
                assert!(foretold(&prompt(1, 15), 200).starts_with(&output.tokens));
            }
        });
    }
    // By a waker, on the text thread.
    within_a_minute(|| {
        let holder = Holder::default();
        let (gate, barrier) = gate(2);
        let mut generation = start_held(&holder, |engine| {
            engine.submit(request(&prompt(1, 15), 200).constraint(gate)).unwrap()
        });
        barrier.wait();
        let waker = Waker::from(Arc::new(Does {
            wakes: move || drop(holder.lock().unwrap().take()),
            panics_in_drop: AtomicBool::new(false),
        }));
        leave(&mut generation, &waker);
        barrier.wait();
        // It may have come to its own end before that was seen.
        generation.wait().unwrap();
    });
}

/// Calls the engine that it is called by.
#[derive(Debug)]
struct CallsBack {
    engine: Holder,
    seen: Arc<Mutex<Vec<String>>>,
}

impl TokenConstraint for CallsBack {
    fn allow(&mut self, allowed: &mut [u32]) {
        allowed.fill(!0);
        let engine = self.engine.lock().unwrap().clone().unwrap();
        let answers = [
            engine.generate(request(&[1], 1)).map(drop).map_err(|error| match error {
                GenerateError::Submit(error) => error.to_string(),
                error => error.to_string(),
            }),
            engine.dump_cache_events().map(drop).map_err(|error| error.to_string()),
            engine.shutdown(Shutdown::Drain).map_err(|error| error.to_string()),
        ];
        self.seen.lock().unwrap().extend(answers.into_iter().filter_map(Result::err));
    }

    fn advance(&mut self, _token: Token) {}

    fn rollback(&mut self, _tokens: usize) {}

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self { engine: Arc::clone(&self.engine), seen: Arc::clone(&self.seen) })
    }
}

#[test]
fn a_thread_of_the_engine_that_is_to_wait_for_it_is_told_so() {
    within_a_minute(|| {
        let (holder, seen) = (Holder::default(), Arc::default());
        let generation = start_held(&holder, |engine| {
            *holder.lock().unwrap() = Some(engine.clone());
            let calls = CallsBack { engine: Arc::clone(&holder), seen: Arc::clone(&seen) };
            engine.submit(request(&prompt(1, 15), 2).constraint(Box::new(calls))).unwrap()
        });
        assert_eq!(generation.wait().unwrap()[0].tokens, foretold(&prompt(1, 15), 2));
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 4, "two calls refused in each of two masks: {seen:?}");
        assert!(seen.iter().all(|error| error.contains("can't wait")), "{seen:?}");
    });
}
