//! What a step costs on the host, and how much of that the device notices.
//!
//! ```text
//! cargo bench --bench scheduler
//! ```
//!
//! An engine with 256 running requests on a backend that computes nothing. Between two launches
//! of steps with nothing but 256 decode rows the scheduler thread does all of its work once:
//! commit, pass tokens on, plan, launch. The text thread runs beside it and is not counted, and
//! of the times the least says what the code costs; on a shared machine the others say more about
//! the neighbours.
//!
//! A device that takes no time is more than the text thread can follow, so the mailbox between
//! the two grows; allocations are counted where it can, with a device that takes its time.
//!
//! Then the backend pretends to take a fixed time a step, and tells how long its device waited
//! for the host, overlapped and plain.

#[path = "scheduler/counting.rs"]
mod counting;
#[path = "scheduler/probe.rs"]
mod probe;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use testkit::null::NullBackend;
use understory::backend::Backend;
use understory::engine::{Engine, EngineOptions, KvMemory};
use understory::model::open_model;
use understory::request::{Request, SamplingParams};

use crate::probe::{Probe, Steps};

const ROWS: u32 = 256;
const PROMPT: u32 = 32;
const TOKENS: u32 = 480;
const STEP_TIME: Duration = Duration::from_millis(2);

fn main() -> Result<(), Box<dyn Error>> {
    for overlap in [true, false] {
        let backend = Probe::new(NullBackend::new().with_token(7));
        run(&backend, overlap, TOKENS)?;
        let Steps { steps, least, median, .. } = backend.steps(ROWS);
        println!(
            "{:10} {ROWS} decode rows: least {:.1} us, median {:.1} us a step ({steps} steps)",
            name(overlap),
            least.as_secs_f64() * 1e6,
            median.as_secs_f64() * 1e6,
        );
    }
    for overlap in [true, false] {
        let device = NullBackend::new().with_token(7).with_step_time(STEP_TIME);
        let backend = Probe::new(device.clone());
        run(&backend, overlap, 240)?;
        let Steps { steps, allocations, .. } = backend.steps(ROWS);
        println!(
            "{:10} steps of {} ms: the device waits {:.1} us a step; {allocations} allocations in \
             {steps} steps",
            name(overlap),
            STEP_TIME.as_millis(),
            device.times().idle_per_step().as_secs_f64() * 1e6,
        );
    }
    Ok(())
}

fn name(overlap: bool) -> &'static str {
    if overlap { "overlapped" } else { "plain" }
}

/// Answers as many requests as run at once.
fn run(backend: &dyn Backend, overlap: bool, tokens: u32) -> Result<(), Box<dyn Error>> {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama-tied");
    let model = open_model(&checkpoint)?;
    let mut options = EngineOptions::default();
    options.overlap = overlap;
    options.max_running_requests = Some(ROWS);
    options.kv_memory = KvMemory::Tokens((ROWS * (PROMPT + TOKENS) * 2) as usize);
    let engine = Engine::builder().options(options).model_context(1024).build(
        model.program()?,
        model.weights.as_ref(),
        backend,
        &mut (),
    )?;
    let mut sampling = SamplingParams::greedy(tokens);
    sampling.ignore_eos = true;
    let generations = (0..ROWS)
        .map(|number| {
            let prompt: Vec<u32> = (0..PROMPT).map(|index| (number + index) % 300).collect();
            engine.submit(Request::new(prompt).sampling(sampling.clone()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    for generation in generations {
        generation.wait()?;
    }
    Ok(())
}
