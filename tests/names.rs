//! What a service author gets from a public function can be named through the facade, so that it
//! can be kept in a struct, returned and matched on.
//!
//! Within each crate the compiler's `unnameable_types` lint holds every public type to have a
//! path; the facade re-exports each crate or its modules whole. Here the types of the main calls
//! are written down, as a program would.

use std::path::PathBuf;

use understory::engine::{EngineBuilder, EngineLimits, EngineSnapshot, Events, LimitWarning};
use understory::error::{EngineDead, EngineError, GenerateError, GenerationError, SubmitError};
use understory::model::{GenerationDefaults, LoadedModel, ModelConfig, ModelFiles, OpenError};
use understory::request::{ParamsError, TokenConstraint, TokenLogprobs, Usage};
use understory::schedule::{QueuePolicy, Refusal, SchedulerStats};
use understory::source::{KnownFile, PluginSource, SourceError};
use understory::text::{ChatOptions, ChatTemplate, SpecialTokens, TextError, Tokenizer};
use understory::weights::{Tensor, Weights, WeightsError};
use understory::{
    BackendChoiceError, CacheEvent, LoadError, Loader, Policy, Retention, WritePolicy,
};
use understory::{backend, cache, prelude::*};

/// What a service keeps.
struct Service {
    engine: Engine,
    limits: EngineLimits,
    running: Vec<Generation>,
}

impl Service {
    fn start(loader: Loader<'_>) -> Result<Self, LoadError> {
        let engine: Engine = loader.start()?;
        let limits: EngineLimits = engine.limits().clone();
        Ok(Self { engine, limits, running: Vec::new() })
    }

    fn submit(&mut self, request: Request) -> Result<&mut Generation, SubmitError> {
        let generation: Generation = self.engine.submit(request)?;
        self.running.push(generation);
        Ok(self.running.last_mut().expect("just pushed"))
    }

    fn state(&self) -> (EngineSnapshot, SchedulerStats, cache::Statistics) {
        let snapshot: EngineSnapshot = self.engine.snapshot();
        (snapshot, snapshot.scheduler, snapshot.cache)
    }

    fn text(&self) -> (Option<&Tokenizer>, Option<&ChatTemplate>) {
        (self.engine.tokenizer(), self.engine.chat_template())
    }

    fn events(&self) -> Vec<CacheEvent> {
        self.engine.take_cache_events()
    }

    fn end(self, how: Shutdown) -> Result<(), EngineDead> {
        self.engine.shutdown(how)
    }
}

/// What a load can fail with, down to the file.
fn reason(error: LoadError) -> &'static str {
    match error {
        LoadError::Source(SourceError::NotFound { .. }) => "no such file",
        LoadError::Backend(BackendChoiceError::Backend(backend::BackendError::Memory {
            ..
        })) => "too large",
        LoadError::Engine(EngineError::Open(OpenError::Weights { .. })) => "broken weights",
        LoadError::Engine(EngineError::Text(TextError::Gguf(_))) => "broken text",
        _ => "another",
    }
}

#[test]
fn what_the_main_calls_take_and_return_has_a_name() {
    fn nameable<T: ?Sized>() -> usize {
        std::any::type_name::<T>().len()
    }
    let names = [
        nameable::<Service>(),
        nameable::<(EngineBuilder, EngineOptions, Events, KvMemory, LimitWarning)>(),
        nameable::<(GenerateError, GenerationError, ParamsError, Refusal, WeightsError)>(),
        nameable::<(GenerationEvent, Finished, FinishReason, Output, TokenLogprobs, Usage)>(),
        nameable::<(LoadedModel, ModelConfig, ModelFiles, GenerationDefaults, SpecialTokens)>(),
        nameable::<(Prompt, Request, SamplingParams, ChatMessage, ChatOptions)>(),
        nameable::<(Namespace, Policy, Retention, WritePolicy, QueuePolicy, Token)>(),
        nameable::<(ModelSource, PluginSource, KnownFile, FetchOptions, PathBuf)>(),
        nameable::<(Box<dyn Backend>, Box<dyn TokenConstraint>, Box<dyn Weights>)>(),
        nameable::<(Tensor<'_>, backend::CompileOptions, backend::Limits)>(),
        nameable::<understory::serde_json::Map<String, understory::serde_json::Value>>(),
    ];
    assert!(names.iter().all(|&length| length > 0));
    let _: fn(Loader<'_>) -> Result<Service, LoadError> = Service::start;
    let _ = (Service::submit, Service::state, Service::text, Service::events, Service::end);
    let _ = |service: Service| service.limits;
    let missing = understory::load("./no/such/model.gguf").start().unwrap_err();
    assert_eq!(reason(missing), "no such file");
}

#[test]
fn what_is_written_wrongly_is_said_before_anything_is_fetched() {
    let error = understory::load("hf:nobody").start().unwrap_err();
    assert!(matches!(error, LoadError::Source(SourceError::Malformed { .. })), "{error}");
    let error = understory::load("default").backend("abacus").start().unwrap_err();
    assert!(matches!(error, LoadError::Backend(BackendChoiceError::Malformed { .. })), "{error}");
}

#[cfg(feature = "cpu")]
#[test]
fn a_loader_starts_what_it_was_told_and_reports_to_a_closure() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama-tied");
    let mut seen = Vec::new();
    let engine = understory::load(path)
        .backend(BackendChoice::Cpu { threads: Some(1) })
        .options(EngineOptions::default().page_size(4).kv_memory(KvMemory::Tokens(512)))
        .progress(|what: &str, done: u64, total: u64| seen.push((what.to_owned(), done, total)))
        .start()
        .unwrap();
    assert_eq!(engine.limits().page_size, 4);
    let request = Request::new(vec![5, 6, 7]).sampling(SamplingParams::greedy(3).ignore_eos(true));
    let outputs: Vec<Output> = engine.generate(request).unwrap();
    assert_eq!(outputs[0].usage.completion_tokens, 3);
    assert!(seen.iter().all(|(what, done, total)| !what.is_empty() && done <= total), "{seen:?}");
}
