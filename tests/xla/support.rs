//! Engines on either backend, and what they answer to a batch file.

use std::path::Path;

use serde_json::Value;
use understory::prelude::*;

use crate::agreement::Answer;
use crate::batch::{self, AnswerLine, BatchOptions};

/// XLA's CPU plugin with so many virtual devices: what `UNDERSTORY_PJRT_CPU_PLUGIN` names, else
/// what the library fetches itself.
pub(crate) fn xla(devices: usize) -> BackendChoice {
    let choice = match std::env::var("UNDERSTORY_PJRT_CPU_PLUGIN") {
        Ok(path) => format!("xla*{devices}:{path}"),
        Err(_) => format!("xla*{devices}"),
    };
    choice.parse().unwrap()
}

/// This machine's processor.
pub(crate) fn cpu() -> BackendChoice {
    BackendChoice::default()
}

/// Prefix cache, chunked prefill, overlap, and a retraction every few steps. Few shapes, as each
/// is compiled before the first request.
pub(crate) fn eventful() -> EngineOptions {
    // As XLA computes, so that both backends can be compared.
    let mut options = EngineOptions::default().compute(Compute::Exact);
    options.kv_memory = KvMemory::Tokens(4096);
    options.context_length = Some(1024);
    options.max_running_requests = Some(4);
    options.chunked_prefill_size = Some(64);
    options.retract_every = Some(9);
    assert!(options.cache && options.overlap);
    options
}

pub(crate) fn open(choice: &BackendChoice) -> Box<dyn Backend> {
    choice.open(&FetchOptions::default(), &mut ()).unwrap()
}

pub(crate) fn start(choice: &BackendChoice, model: &Path, options: EngineOptions) -> Engine {
    Engine::builder().options(options).load(model, open(choice).as_ref(), &mut ()).unwrap()
}

/// The greedy answers to a batch file, through the code of the example, with the likeliest tokens
/// at each step.
pub(crate) fn answer(engine: &Engine, requests: &[Value], max_tokens: u32) -> Vec<Answer> {
    let with_logprobs = requests.iter().map(|request| {
        let mut request = request.clone();
        request["logprobs"] = SamplingParams::MAX_LOGPROBS.into();
        format!("{request}\n")
    });
    let file: String = with_logprobs.collect();
    let options = BatchOptions {
        defaults: engine.recommended_sampling(),
        max_tokens: Some(max_tokens),
        greedy: true,
    };
    let mut answers = Vec::new();
    let mut output = |line: &AnswerLine| {
        answers.push(serde_json::from_value(serde_json::to_value(line)?)?);
        Ok(())
    };
    let input = std::io::Cursor::new(file.to_owned());
    let stop = std::future::pending();
    let mut progress = |_| {};
    let run = batch::run(engine, &options, input, &mut output, &mut progress, stop);
    futures_executor::block_on(run).unwrap();
    answers
}

/// That what the engine was set up to do did happen.
pub(crate) fn assert_eventful(engine: &Engine) {
    let snapshot = engine.snapshot();
    assert!(snapshot.scheduler.cached_tokens > 0, "{snapshot:?}");
    assert!(snapshot.scheduler.retractions > 0, "{snapshot:?}");
    assert!(snapshot.scheduler.prefill_tokens > 4 * 64, "{snapshot:?}");
    assert_eq!(snapshot.compiles_in_traffic, 0, "{snapshot:?}");
}
