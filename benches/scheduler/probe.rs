//! Looks at the scheduler thread from where it passes by once a step: the executor's `launch`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use testkit::null::{NullBackend, NullExecutor};
use understory::backend::{
    Backend, BackendError, Batch, Capabilities, CompileOptions, Deadline, Executor, Limits, Masks,
    Progress, StepError, StepResult, Ticket,
};
use understory::model::Program;
use understory::weights::Weights;

use crate::counting::allocations;

/// Launches that are recorded; the memory for them is taken beforehand.
const MOST_LAUNCHES: usize = 1 << 16;

/// A null backend whose launches are recorded.
pub(crate) struct Probe {
    inner: NullBackend,
    launches: Arc<Mutex<Vec<Launch>>>,
}

#[derive(Clone, Copy)]
struct Launch {
    at: Instant,
    allocations: u64,
    decode_rows: u32,
    rows: u32,
}

/// What passed between launches in steady state.
pub(crate) struct Steps {
    pub(crate) steps: usize,
    pub(crate) least: Duration,
    pub(crate) median: Duration,
    /// In all of them together.
    pub(crate) allocations: u64,
}

impl Probe {
    pub(crate) fn new(inner: NullBackend) -> Self {
        Self { inner, launches: Arc::new(Mutex::new(Vec::with_capacity(MOST_LAUNCHES))) }
    }

    /// From launch to launch, where three in a row had exactly `rows` decode rows and nothing
    /// else: the first of them is still warming up after the last prompt.
    pub(crate) fn steps(&self, rows: u32) -> Steps {
        let launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        let is_steady = |launch: &Launch| launch.decode_rows == rows && launch.rows == rows;
        let steady = launches.windows(3).filter(|three| three.iter().all(is_steady));
        let (mut times, mut allocations) = (Vec::new(), 0);
        for three in steady {
            times.push(three[2].at - three[1].at);
            allocations += three[2].allocations - three[1].allocations;
        }
        times.sort_unstable();
        let at = |index: usize| times.get(index).copied().unwrap_or_default();
        Steps { steps: times.len(), least: at(0), median: at(times.len() / 2), allocations }
    }
}

impl Backend for Probe {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn compile(
        &self,
        _programs: &[Program],
        _weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        let inner = self.inner.executor(options.limits.clone());
        Ok(Box::new(Probed { inner, launches: Arc::clone(&self.launches) }))
    }
}

struct Probed {
    inner: NullExecutor,
    launches: Arc<Mutex<Vec<Launch>>>,
}

impl Executor for Probed {
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        self.inner.warm_up(progress)
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        let mut launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        if launches.len() < MOST_LAUNCHES {
            launches.push(Launch {
                at: Instant::now(),
                allocations: allocations(),
                decode_rows: batch.decode_rows,
                rows: batch.rows.len() as u32,
            });
        }
        self.inner.launch(batch)
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.inner.sample(ticket, masks)
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        self.inner.wait(ticket, deadline, result)
    }
}
