//! KV that has to leave the device and comes back from the host: with the tokens that it has
//! without, on the shadow and on a real model.

use engine_core::WritePolicy;
use engine_core::backend::{Backend, BackendError, Capabilities, CompileOptions, Executor};
use engine_core::engine::{Engine, EngineOptions, EngineSnapshot, KvMemory, Shutdown};
use engine_core::error::{EngineError, GenerationError};
use engine_core::model::Program;
use engine_core::weights::Weights;
use testkit::faults::{FaultyBackend, TransferFault};
use testkit::shadow::ShadowBackend;
use understory::BackendChoice;
use understory::source::FetchOptions;

use crate::support::*;

const POLICIES: [WritePolicy; 3] =
    [WritePolicy::Through, WritePolicy::ThroughAfterHits(1), WritePolicy::Back];

/// Room for two or three prompts of 60 tokens on the device and for all of them on the host.
fn tiered(write: WritePolicy, overlap: bool) -> EngineOptions {
    let mut options = small();
    options.kv_memory = KvMemory::Tokens(200);
    options.host_kv_memory = KvMemory::Tokens(2000);
    options.host_write_policy = write;
    options.host_min_load_tokens = 8;
    options.overlap = overlap;
    options
}

/// Every way to write, in both loops.
fn all() -> impl Iterator<Item = EngineOptions> {
    POLICIES.into_iter().flat_map(|write| [true, false].map(|overlap| tiered(write, overlap)))
}

/// Answers prompts that have left the device when they come again, and compares with the oracle.
fn serve_in_turns(engine: &Engine) -> EngineSnapshot {
    // The second round counts as a hit for those that are copied after one.
    for round in 0..4 {
        let numbers = 0..if round == 1 { 2 } else { 8 };
        for number in numbers {
            for _ in 0..1 + u32::from(round == 0) {
                let output = engine.generate(request(&prompt(number, 60), 6)).unwrap().remove(0);
                assert_eq!(output.tokens, foretold(&prompt(number, 60), 6), "in round {round}");
            }
        }
    }
    settled(engine)
}

/// The snapshot once copies have ended too.
fn settled(engine: &Engine) -> EngineSnapshot {
    loop {
        wait_until_idle(engine);
        let snapshot = engine.snapshot();
        if snapshot.pages.cached_locked + snapshot.pages.loading == 0 {
            return snapshot;
        }
        std::thread::yield_now();
    }
}

#[test]
fn what_left_the_device_comes_back_with_the_same_tokens() {
    for options in all() {
        let what = format!("{:?}, overlap {}", options.host_write_policy, options.overlap);
        let engine = Shadowed::new(options);
        let snapshot = serve_in_turns(&engine);
        let stats = snapshot.scheduler;
        assert!(stats.host_hits >= 8, "{what}: {stats:?}");
        assert!(stats.host_cached_tokens >= 8 * 40, "{what}: {stats:?}");
        assert!(stats.loaded_tokens >= stats.host_cached_tokens, "{what}: {stats:?}");
        assert!(stats.pages_to_host > 0 && snapshot.pages.on_host > 0, "{what}: {stats:?}");
        assert_eq!(stats.failed_transfers, 0);
        assert_eq!(snapshot.pages.owned_by_sequences, 0);
    }
}

#[test]
fn loaded_tokens_count_as_cached_ones() {
    let engine = Shadowed::new(tiered(WritePolicy::Through, true));
    for number in 0..6 {
        engine.generate(request(&prompt(number, 60), 4)).unwrap();
    }
    settled(&engine);
    let output = engine.generate(request(&prompt(0, 60), 4)).unwrap().remove(0);
    // All whole pages but the one with the token that has to be computed.
    assert_eq!(output.usage.cached_tokens, 56);
    assert_eq!(settled(&engine).scheduler.host_cached_tokens, 56);
}

#[test]
fn without_a_host_tier_nothing_is_copied() {
    for overlap in [true, false] {
        let mut options = tiered(WritePolicy::Back, overlap);
        options.host_kv_memory = KvMemory::NONE;
        let engine = Shadowed::new(options);
        let snapshot = serve_in_turns(&engine);
        assert_eq!((snapshot.scheduler.transfers, snapshot.pages.host_capacity), (0, 0));
        assert_eq!(engine.limits().host_pages, 0);
    }
}

#[test]
fn copies_that_fail_cost_time_and_no_token() {
    for options in all() {
        // A copy that takes the KV with it ends nobody either: all are computed again.
        let kinds = [TransferFault::Refused, TransferFault::Fails, TransferFault::KvLost];
        let faults = (0..30).step_by(2).zip(kinds.into_iter().cycle());
        let backend = FaultyBackend::new(ShadowBackend::new(), []).with_transfer_faults(faults);
        let engine = start(&backend, options);
        let stats = serve_in_turns(&engine).scheduler;
        assert!(stats.failed_transfers > 0, "{stats:?}");
    }
}

#[test]
fn a_device_that_dies_in_a_copy_ends_every_stream() {
    for options in all().filter(|options| options.host_write_policy == WritePolicy::Through) {
        let faults = [(2, TransferFault::Dead)];
        let backend = FaultyBackend::new(ShadowBackend::new(), []).with_transfer_faults(faults);
        let engine = start(&backend, options);
        let submitted = (0..20).map(|n| engine.submit(request(&prompt(n, 20), 3 + n)));
        let generations: Vec<_> = submitted.filter_map(Result::ok).collect();
        let ends = generations.into_iter().map(|generation| generation.wait());
        let died = ends.filter(|end| matches!(end, Err(GenerationError::Dead(_)))).count();
        assert!(died > 0);
        assert!(engine.dead().is_some_and(|dead| dead.reason().contains("transfer")));
    }
}

#[test]
fn requests_given_up_while_they_are_loaded_leave_nothing_behind() {
    for options in all() {
        let engine = Shadowed::new(options);
        for round in 0..6 {
            for number in 0..6 {
                let generation = engine.submit(request(&prompt(number, 60), 6)).unwrap();
                // Some end, some are dropped as soon as they are there.
                if (round + number) % 2 == 0 {
                    generation.wait().unwrap();
                }
            }
        }
        let pages = settled(&engine).pages;
        assert_eq!(pages.owned_by_sequences + pages.cached_locked + pages.loading, 0);
        assert_eq!(pages.free + pages.cached_evictable, pages.capacity);
    }
}

#[test]
fn an_engine_shuts_down_while_copies_are_under_way() {
    for options in all() {
        for how in [Shutdown::Now, Shutdown::Drain] {
            let engine = Shadowed::new(options.clone());
            let generations: Vec<_> = (0..12)
                .map(|number| engine.submit(request(&prompt(number % 6, 60), 4)).unwrap())
                .collect();
            engine.shutdown(how).unwrap();
            let wholes = generations.into_iter().map(|generation| generation.wait().unwrap());
            let tokens: Vec<usize> = wholes.map(|outputs| outputs[0].tokens.len()).collect();
            if how == Shutdown::Drain {
                assert_eq!(tokens, [4; 12]);
            }
        }
    }
}

/// A backend that has no memory on the host.
struct NoHost(ShadowBackend);

impl Backend for NoHost {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.host_memory_bytes = 0;
        capabilities
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        self.0.compile(programs, weights, options)
    }
}

#[test]
fn a_host_tier_that_cant_be_had_is_an_error_at_the_start() {
    let build = |backend: &dyn Backend, change: fn(&mut EngineOptions)| {
        let mut options = tiered(WritePolicy::Through, true);
        change(&mut options);
        Engine::builder().options(options).load(model(), backend, &mut ())
    };
    let error = build(&NoHost(ShadowBackend::new()), |_| {}).unwrap_err();
    assert!(matches!(error, EngineError::NoHostMemory { .. }), "{error}");
    assert!(build(&NoHost(ShadowBackend::new()), |o| o.host_kv_memory = KvMemory::NONE).is_ok());

    let shadow = ShadowBackend::new();
    let error = build(&shadow, |o| o.host_kv_memory = KvMemory::Bytes(1 << 40)).unwrap_err();
    assert!(matches!(error, EngineError::HostMemory { .. }), "{error}");
    let error = build(&shadow, |o| o.host_kv_memory = KvMemory::Bytes(1)).unwrap_err();
    assert!(matches!(error, EngineError::HostMemory { .. }), "{error}");
    let changes: [fn(&mut EngineOptions); 2] =
        [|o| o.cache = false, |o| o.host_kv_memory = KvMemory::Fraction(2.0)];
    for change in changes {
        let error = build(&shadow, change).unwrap_err();
        let named = matches!(error, EngineError::Option { option: "host_kv_memory", .. });
        assert!(named, "{error}");
    }
    let engine = build(&shadow, |o| o.host_kv_memory = KvMemory::Fraction(0.5)).unwrap();
    let limits = engine.limits();
    assert_eq!(limits.host_kv_bytes, 1 << 29);
    assert_eq!(limits.host_kv_bytes / u64::from(limits.host_pages), 4 * 2 * 2 * 2 * 16 * 4);
}

#[test]
fn a_real_model_says_the_same_with_a_host_tier() {
    let choice = BackendChoice::Cpu { threads: Some(2) };
    let backend = choice.open(&FetchOptions::default(), &mut ()).unwrap();
    let ask = |options: EngineOptions, at_once: bool| {
        let engine = start(backend.as_ref(), options);
        let mut answers = Vec::new();
        for _ in 0..3 {
            let requests = (0..8).map(|number| request(&prompt(number, 60), 6));
            let answer = |generation: engine_core::engine::Generation| {
                generation.wait().unwrap().remove(0).tokens
            };
            let generations = requests.map(|request| engine.submit(request).unwrap());
            if at_once {
                let generations: Vec<_> = generations.collect();
                answers.extend(generations.into_iter().map(answer));
            } else {
                answers.extend(generations.map(answer));
            }
        }
        (answers, settled(&engine).scheduler)
    };
    let mut alone = tiered(WritePolicy::Through, false);
    alone.host_kv_memory = KvMemory::NONE;
    alone.cache = false;
    let (expected, _) = ask(alone, false);
    for options in all() {
        for at_once in [true, false] {
            let (answers, stats) = ask(options.clone(), at_once);
            assert_eq!(answers, expected, "{options:?}");
            let is_sure = options.host_write_policy != WritePolicy::ThroughAfterHits(1);
            assert!(!is_sure || stats.host_hits > 0, "{options:?}: {stats:?}");
        }
    }
}
