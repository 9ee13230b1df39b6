//! A request trace in Mooncake's format, replayed through the real scheduler without a model.

use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;

use engine_core::backend::{Deadline, Executor, Limits, SlotSampling, StepResult};
use engine_core::schedule::{
    Arrival, HostTierConfig, Input, Plan, PromptWant, RequestId, Scheduler, SchedulerConfig,
    SchedulerStats, SequenceId,
};
use engine_core::{Namespace, Retention};
use testkit::null::NullBackend;

use crate::trace::{self, Request, TOKENS_AN_ID};

/// A page: what one id of the trace stands for.
const BLOCK: usize = TOKENS_AN_ID;

/// Requests that are in the engine at once.
const AT_ONCE: u32 = 8;

/// Prompt tokens in a step.
const CHUNK: usize = 8192;

/// The trace that `UNDERSTORY_TRACE` names, or the excerpt that comes with the sources.
pub(crate) fn read() -> Result<Vec<Request>, Box<dyn Error>> {
    trace::read(trace::path().as_deref())
}

/// Serves the trace in order, [`AT_ONCE`] requests at a time, each answered with one token, with
/// `pages` pages on the device.
pub(crate) fn replay(
    trace: &[Request],
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
            scheduler.apply(Input::Arrive(arrival(number, traced)))?;
        }
        let (step, copies) = match scheduler.plan()? {
            Plan::Launch(step) => (Some(executor.launch(&step.batch)?), step.copies),
            Plan::Sync { copies } => (None, copies),
            Plan::Idle => return Ok(scheduler.stats()),
        };
        let copies = match copies {
            [] => None,
            copies => Some(executor.transfer(copies)?),
        };
        if let Some(step) = step {
            executor.wait(step, Deadline::NEVER, &mut result)?;
            let result = Cow::Borrowed(&result);
            scheduler.apply(Input::Commit { result, error: None })?;
        }
        if let Some(copies) = copies {
            executor.wait_transfer(copies, Deadline::NEVER)?;
            scheduler.apply(Input::CopiesDone { error: None })?;
        }
        scheduler.clear_events();
    }
}

fn arrival(number: u64, traced: &Request) -> Arrival {
    let mut prompt = Vec::new();
    traced.expand(&mut prompt);
    Arrival {
        id: SequenceId { request: RequestId(number), index: 0 },
        prompt,
        sampling: Arc::new(SlotSampling::greedy()),
        max_tokens: 1,
        stop_tokens: [].into(),
        namespace: Namespace::tenant(0),
        retention: Retention::default(),
        constrained: false,
        speculation: false,
        priority: 0,
        want: PromptWant::Nothing,
    }
}
