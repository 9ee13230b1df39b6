//! The device's trouble, and who hears of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine_core::backend::{
    Backend, BackendError, Batch, Capabilities, CompileOptions, Deadline, Executor, Limits, Masks,
    Progress, StepError, StepResult, Ticket,
};
use engine_core::engine::{Engine, EngineOptions, Shutdown};
use engine_core::error::{EngineError, GenerationError, SubmitError};
use engine_core::model::Program;
use engine_core::weights::Weights;
use testkit::faults::{Fault, FaultyBackend};
use testkit::shadow::ShadowBackend;

use crate::support::*;

fn both() -> [EngineOptions; 2] {
    [true, false].map(|overlap| {
        let mut options = small();
        options.overlap = overlap;
        options
    })
}

#[test]
fn a_row_that_fails_ends_its_own_stream_only() {
    for options in both() {
        let backend = FaultyBackend::new(ShadowBackend::new(), [(6, Fault::Row(1))]);
        let engine = start(&backend, options);
        let generations: Vec<_> =
            (0..3).map(|n| engine.submit(request(&prompt(n, 9), 20)).unwrap()).collect();
        let mut failed = 0;
        for (number, generation) in (0..).zip(generations) {
            let (events, error) = read_all(generation);
            let foretold = foretold(&prompt(number, 9), 20);
            match error {
                None => assert_eq!(tokens_of(&events), foretold),
                Some(GenerationError::Failed { sample: 0, .. }) => {
                    failed += 1;
                    assert!(foretold.starts_with(&tokens_of(&events)));
                }
                Some(error) => panic!("{error}"),
            }
        }
        assert_eq!(failed, 1);
        engine.generate(request(&prompt(1, 9), 4)).unwrap();
    }
}

#[test]
fn lost_kv_ends_the_step_and_the_engine_goes_on() {
    for fault in [Fault::KvLost, Fault::LaunchFails] {
        for options in both() {
            let backend = FaultyBackend::new(ShadowBackend::new(), [(3, fault.clone())]);
            let engine = start(&backend, options);
            let (_, error) = read_all(engine.submit(request(&prompt(1, 9), 20)).unwrap());
            assert!(matches!(error, Some(GenerationError::Failed { .. })), "{error:?}");
            let output = engine.generate(request(&prompt(1, 9), 20)).unwrap().remove(0);
            assert_eq!(output.tokens, foretold(&prompt(1, 9), 20));
            assert_eq!(output.usage.cached_tokens, 0, "the tree is empty");
        }
    }
}

/// Every stream ends with the reason, and new requests are refused with it at once.
fn assert_dies(backend: &dyn Backend, options: EngineOptions, reason: &str) {
    let engine = start(backend, options);
    // Some may be refused already: the engine dies when it likes.
    let submitted = (0..8).map(|n| engine.submit(request(&prompt(n, 9), 200)));
    let generations: Vec<_> = submitted.filter_map(Result::ok).collect();
    assert!(!generations.is_empty());
    for generation in generations {
        let Err(GenerationError::Dead(dead)) = generation.wait() else { panic!("it lives") };
        assert!(dead.reason().contains(reason), "{dead}");
    }
    let Err(SubmitError::Dead(dead)) = engine.submit(request(&[1], 1)) else { panic!("taken") };
    assert!(dead.reason().contains(reason), "{dead}");
    assert_eq!(engine.dead().as_ref(), Some(&dead));
    assert_eq!(engine.shutdown(Shutdown::Drain), Err(dead));
}

#[test]
fn a_dead_device_ends_every_stream_and_refuses_new_ones() {
    for options in both() {
        let backend = FaultyBackend::new(ShadowBackend::new(), [(4, Fault::Dead)]);
        assert_dies(&backend, options, "struck");
    }
}

#[test]
fn a_hung_device_is_dead_when_the_deadline_has_passed() {
    for mut options in both() {
        options.step_deadline = Some(Duration::from_millis(20));
        let backend = FaultyBackend::new(ShadowBackend::new(), [(4, Fault::Hang)]);
        assert_dies(&backend, options, "deadline");
    }
}

#[test]
fn a_device_that_cant_compile_is_an_error_at_the_start() {
    let backend = FaultyBackend::out_of_memory(ShadowBackend::new());
    let error = Engine::builder().options(small()).load(model(), &backend, &mut ()).unwrap_err();
    assert!(matches!(error, EngineError::Backend(BackendError::Memory { .. })), "{error}");
}

#[test]
fn a_panic_inside_is_told_to_everybody() {
    for options in both() {
        assert_dies(&Hostile { act: Act::Panic, dropped: Arc::default() }, options, "on purpose");
    }
}

#[test]
fn a_result_without_its_tokens_is_never_passed_over() {
    for options in both() {
        let backend = Hostile { act: Act::Forget, dropped: Arc::default() };
        assert_dies(&backend, options, "0 tokens for output");
    }
}

#[test]
fn an_executor_is_dropped_with_its_engine() {
    let backend = Hostile { act: Act::Forget, dropped: Arc::default() };
    drop(start(&backend, small()));
    assert!(backend.dropped.load(Ordering::SeqCst));
}

/// Compiles into executors that break their contract.
struct Hostile {
    act: Act,
    dropped: Arc<AtomicBool>,
}

#[derive(Clone, Copy)]
enum Act {
    Panic,
    Forget,
}

struct HostileExecutor {
    act: Act,
    limits: Limits,
    dropped: Arc<AtomicBool>,
}

impl Backend for Hostile {
    fn capabilities(&self) -> Capabilities {
        ShadowBackend::new().capabilities()
    }

    fn compile(
        &self,
        _programs: &[Program],
        _weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        let (act, limits) = (self.act, options.limits.clone());
        Ok(Box::new(HostileExecutor { act, limits, dropped: Arc::clone(&self.dropped) }))
    }
}

impl Executor for HostileExecutor {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn warm_up(&mut self, _progress: &mut dyn Progress) -> Result<(), BackendError> {
        Ok(())
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        Ok(Ticket::new(batch.step))
    }

    fn sample(&mut self, _ticket: &Ticket, _masks: &Masks<'_>) -> Result<(), StepError> {
        Ok(())
    }

    fn wait(
        &mut self,
        _ticket: Ticket,
        _deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        match self.act {
            Act::Panic => panic!("on purpose"),
            Act::Forget => Ok(()),
        }
    }
}

impl Drop for HostileExecutor {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}
