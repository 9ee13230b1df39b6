//! A request trace in Mooncake's format, replayed through the real scheduler without a model.

use std::collections::HashSet;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::{env, fs};

use engine_core::backend::{Deadline, Executor, Limits, SlotSampling, StepResult};
use engine_core::schedule::{
    Arrival, HostTierConfig, Plan, RequestId, Scheduler, SchedulerConfig, SchedulerStats,
    SequenceId,
};
use engine_core::{Namespace, Retention, Token};
use serde::Deserialize;
use testkit::null::NullBackend;

/// Tokens that one id of the trace stands for, and so a page.
const BLOCK: usize = 512;

/// Requests that are in the engine at once.
const AT_ONCE: u32 = 8;

/// Prompt tokens in a step.
const CHUNK: usize = 8192;

/// One line of the trace.
#[derive(Debug, Deserialize)]
pub(crate) struct Traced {
    /// Prompt tokens.
    input_length: usize,
    /// One id for each block of the prompt; equal ids mean equal prefixes.
    hash_ids: Vec<u64>,
}

impl Traced {
    /// The prompt: each id stands for tokens of its own.
    fn prompt(&self) -> Vec<Token> {
        let tokens = |id: &u64| {
            let first = id * BLOCK as u64;
            (first..first + BLOCK as u64)
                .map(|position| (position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 47) as Token)
        };
        self.hash_ids.iter().flat_map(tokens).take(self.input_length).collect()
    }
}

/// The trace that `UNDERSTORY_TRACE` names, or the excerpt that comes with the sources.
pub(crate) fn read() -> Result<Vec<Traced>, Box<dyn Error>> {
    let excerpt = "radix-cache/data/mooncake_conversation_excerpt.jsonl";
    let excerpt = || Path::new(env!("CARGO_MANIFEST_DIR")).join(excerpt);
    let path = env::var_os("UNDERSTORY_TRACE").map_or_else(excerpt, Into::into);
    let lines = fs::read_to_string(path)?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Different blocks in a trace.
pub(crate) fn unique_blocks(trace: &[Traced]) -> usize {
    trace.iter().flat_map(|traced| &traced.hash_ids).collect::<HashSet<_>>().len()
}

/// Serves the trace in order, [`AT_ONCE`] requests at a time, each answered with one token, with
/// `pages` pages on the device.
pub(crate) fn replay(
    trace: &[Traced],
    pages: usize,
    host: Option<HostTierConfig>,
) -> Result<SchedulerStats, Box<dyn Error>> {
    let mut config = SchedulerConfig::new(BLOCK, pages as u32, AT_ONCE, pages * BLOCK);
    config.chunked_prefill_size = CHUNK;
    config.host_tier = host;
    let limits = Limits {
        rows: AT_ONCE,
        tokens: config.step_tokens() as u32,
        outputs: AT_ONCE,
        slots: AT_ONCE,
        pages: vec![config.pages],
    };
    let mut scheduler = Scheduler::new(config)?;
    let mut executor = NullBackend::new().executor(limits);
    let mut result = StepResult::default();
    let mut arrivals = (0..).zip(trace);
    loop {
        let stats = scheduler.stats();
        for (number, traced) in
            arrivals.by_ref().take(AT_ONCE as usize - stats.running - stats.waiting)
        {
            scheduler.arrive(arrival(number, traced))?;
        }
        let step = match scheduler.plan()? {
            Plan::Launch => Some(executor.launch(&scheduler.batch())?),
            Plan::Sync => None,
            Plan::Idle => return Ok(scheduler.stats()),
        };
        let copies = match scheduler.copies() {
            [] => None,
            copies => Some(executor.transfer(copies)?),
        };
        if let Some(step) = step {
            executor.wait(step, Deadline::NEVER, &mut result)?;
            scheduler.commit(&result, None)?;
        }
        if let Some(copies) = copies {
            executor.wait_transfer(copies, Deadline::NEVER)?;
            scheduler.commit_copies(None)?;
        }
        scheduler.clear_events();
    }
}

fn arrival(number: u64, traced: &Traced) -> Arrival {
    Arrival {
        id: SequenceId { request: RequestId(number), index: 0 },
        prompt: traced.prompt(),
        sampling: Arc::new(SlotSampling::greedy()),
        max_tokens: 1,
        stop_tokens: [].into(),
        namespace: Namespace(0),
        retention: Retention::default(),
        constrained: false,
    }
}
