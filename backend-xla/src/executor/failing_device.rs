//! A device that fails in the middle of a run, seen from the engine: needs hands inside the
//! executor.

use std::path::{Path, PathBuf};

use backend_api::{
    Backend, BackendError, Batch, Capabilities, CompileOptions, Deadline, Executor, Limits, Masks,
    Progress, StepError, StepResult, Ticket, program::Program, weights::Weights,
};
use engine_core::{
    engine::{Engine, EngineOptions, KvMemory},
    error::GenerationError,
    request::{Request, SamplingParams},
};

use super::{XlaExecutor, plugin_path::plugin_path};
use crate::{XlaBackend, XlaOptions, pjrt::ElementType};

/// The step whose KV pages are exchanged for an array that its module can't take: the plugin
/// refuses it after it was given everything else.
const BROKEN_STEP: u64 = 6;

struct Sabotaged(XlaBackend);

struct SabotagedExecutor(XlaExecutor);

impl Backend for Sabotaged {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(SabotagedExecutor(self.0.build(programs, weights, options)?)))
    }
}

impl Executor for SabotagedExecutor {
    fn limits(&self) -> &Limits {
        self.0.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        self.0.warm_up(progress)
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        if batch.step == BROKEN_STEP {
            let client = self.0.modules.client().clone();
            let wrong = client.to_device(0, ElementType::F32, &[1], &[0; 4]).expect("room");
            self.0.resident.as_mut().expect("arrays").programs[0].kv[0] = vec![wrong];
        }
        self.0.launch(batch)
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.0.sample(ticket, masks)
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        self.0.wait(ticket, deadline, result)
    }
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama-tied")
}

fn engine(backend: &dyn Backend, overlap: bool) -> Engine {
    let mut options = EngineOptions::default();
    options.kv_memory = KvMemory::Tokens(512);
    options.max_running_requests = Some(2);
    options.chunked_prefill_size = Some(32);
    options.overlap = overlap;
    Engine::builder().options(options).load(model(), backend, &mut ()).expect("an engine")
}

fn backend(cache: &Path) -> XlaBackend {
    let options = XlaOptions::cpu(plugin_path("cpu"), 1).cache(cache);
    XlaBackend::new(options).expect("a backend")
}

fn request(number: u32) -> Request {
    let prompt: Vec<u32> = (0..20 + number).map(|index| (number * 31 + index * 7) % 380).collect();
    let mut sampling = SamplingParams::greedy(12);
    sampling.ignore_eos = true;
    Request::new(prompt).sampling(sampling)
}

#[test]
fn a_device_error_ends_the_requests_of_its_step_and_the_others_are_served() {
    let cache = tempfile::tempdir().expect("a folder");
    let healthy = engine(&backend(cache.path()), true);
    let expected: Vec<_> = (0..6)
        .map(|number| healthy.generate(request(number)).expect("an answer").remove(0).tokens)
        .collect();
    for overlap in [true, false] {
        let engine = engine(&Sabotaged(backend(cache.path())), overlap);
        let running: Vec<_> =
            (0..6).map(|number| engine.submit(request(number)).expect("room")).collect();
        let mut failed = 0;
        for (generation, expected) in running.into_iter().zip(&expected) {
            match generation.wait() {
                Ok(outputs) => assert_eq!(&outputs[0].tokens, expected),
                Err(GenerationError::Failed { .. }) => failed += 1,
                Err(error) => panic!("{error}"),
            }
        }
        // Two run at once.
        assert!((1..=2).contains(&failed), "{failed} failed");
        let again = engine.generate(request(0)).expect("an answer").remove(0);
        assert_eq!(again.tokens, expected[0]);
    }
}
