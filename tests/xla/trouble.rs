//! What is wrong with a plugin, a model or a device is a typed error, and nothing hangs.

use std::time::Duration;

use understory::backend::BackendError;
use understory::error::{EngineError, GenerationError, SubmitError};
use understory::prelude::*;
use understory::{BackendChoice, BackendChoiceError};

use crate::qwen3::Checkpoint;
use crate::support::{eventful, open, xla};

#[test]
fn plugins_that_are_none_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    // The head of a library for another processor, and a text.
    let mut head = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    head.truncate(64);
    head[18] ^= 0x55;
    let foreign = folder.path().join("foreign.so");
    std::fs::write(&foreign, head).unwrap();
    let text = folder.path().join("text.so");
    std::fs::write(&text, "a text").unwrap();
    let missing = folder.path().join("missing.so");
    for (path, expected) in
        [(foreign, "ELF machine"), (text, "can't load"), (missing, "missing.so")]
    {
        let choice: BackendChoice = format!("xla:{}", path.display()).parse().unwrap();
        let Err(error) = choice.open(&FetchOptions::default(), &mut ()) else { panic!("opened") };
        assert!(
            matches!(error, BackendChoiceError::Backend(_) | BackendChoiceError::Source(_)),
            "{error:?}"
        );
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn models_that_do_not_fit_are_refused_at_the_start() {
    let checkpoint = Checkpoint::random(5);
    let load = |devices, options: EngineOptions| {
        let backend = open(&xla(devices));
        let engine = Engine::builder().options(options);
        engine.load(checkpoint.path(), backend.as_ref(), &mut ()).map(drop).unwrap_err()
    };
    let error = load(3, eventful());
    assert!(
        matches!(
            error,
            EngineError::Backend(BackendError::Option { option: "tensor_parallel", .. })
        ),
        "{error:?}"
    );
    for devices in [1, 2] {
        let mut options = eventful();
        options.kv_memory = KvMemory::Tokens(1 << 34);
        let error = load(devices, options);
        assert!(matches!(error, EngineError::Backend(BackendError::Memory { .. })), "{error:?}");
    }
}

#[test]
fn a_device_that_misses_its_deadline_ends_every_stream_and_the_engine() {
    let checkpoint = Checkpoint::random(5);
    let mut options = eventful();
    options.max_running_requests = Some(2);
    // No step is as quick as that.
    options.step_deadline = Some(Duration::from_nanos(1));
    let backend = open(&xla(2));
    let engine =
        Engine::builder().options(options).load(checkpoint.path(), backend.as_ref(), &mut ());
    let engine = engine.unwrap();
    let request = || Request::new(vec![5; 200]).sampling(SamplingParams::greedy(8));
    // Some may be refused already.
    let running: Vec<_> = (0..4).filter_map(|_| engine.submit(request()).ok()).collect();
    assert!(!running.is_empty());
    for generation in running {
        let error = generation.wait().unwrap_err();
        let GenerationError::Dead(dead) = error else { panic!("{error}") };
        assert!(dead.reason().contains("did not complete in time"), "{dead}");
    }
    assert!(matches!(engine.submit(request()), Err(SubmitError::Dead(_))));
    assert_eq!(engine.shutdown(Shutdown::Drain), Err(engine.dead().unwrap()));
}
