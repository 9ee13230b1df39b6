//! A backend whose KV is an account of who wrote what, and whose model is a hash of it.
//!
//! Every KV position remembers its token, its place, the hash of the whole prefix that it was
//! computed under, and its writer. A row's logits are a hash of what the row reads *through its page
//! table* ([`model`]). So whatever the engine gets wrong about pages, slots, sampling state or
//! order shows as a [`Violation`] or as a token that the oracle ([`model::continue_alone`]) does
//! not generate.
//!
//! - Page tables are resident and built from [`SlotEvent`](engine_core::backend::SlotEvent)s alone;
//!   at each launch they are compared with the lent [`Slots`](engine_core::backend::Slots).
//! - Steps run late: `launch` copies the batch, `wait` runs it. An engine that relies on an
//!   effect before it waited for it reads something stale.
//! - Of a windowed group a row reads what its window covers and nothing else.
//! - A test tells which pages are free ([`ShadowExecutor::poison`]); in the order of the
//!   launches they become unreadable.
//! - Transfers between the tiers run late as well, in order with the steps. Until they have been
//!   waited for, what they read may not be written or become free, and what they fill may not
//!   be used at all.
//! - A test may say what it knows of a sequence ([`Ledger::expect`]): its namespace and its longest
//!   length. Sequences are told apart by their sampling seed.

mod commands;
mod executor;
mod kv;
pub mod model;
mod resident;
mod transfers;
mod violation;

use std::collections::HashMap;
use std::sync::Arc;

use engine_core::backend::{
    Backend, BackendError, Capabilities, CompileOptions, Compute, Executor,
};
use engine_core::model::Program;
use engine_core::weights::Weights;
use parking_lot::Mutex;

pub use executor::ShadowExecutor;
pub use violation::Violation;

/// Compiles any program into a [`ShadowExecutor`]; of the program only the size of the
/// vocabulary and the windows of the page groups matter.
#[derive(Clone, Debug, Default)]
pub struct ShadowBackend {
    ledger: Arc<Ledger>,
}

impl ShadowBackend {
    /// A backend with an empty ledger, which all its executors share.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where violations are found after a run.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Backend for ShadowBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("shadow", 1 << 30);
        capabilities.host_memory_bytes = 1 << 30;
        capabilities.batch_invariant = true;
        capabilities
    }

    /// Nothing: the weights are not read.
    fn weight_bytes(
        &self,
        _program: &Program,
        _weights: &dyn Weights,
        _compute: Compute,
    ) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn compile(
        &self,
        programs: &[Program],
        _weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        let Some(program) = programs.first() else {
            return Err(BackendError::Option {
                option: "programs",
                reason: "there is no program to compile".into(),
            });
        };
        let vocab_size = program.vocab_size();
        let executor = ShadowExecutor::new(options, vocab_size, self.ledger.clone())?;
        let groups = programs.iter().flat_map(Program::groups);
        Ok(Box::new(executor.with_windows(groups.map(|group| group.window))))
    }
}

/// What an executor found, and what a test told it beforehand. Shared between the two.
#[derive(Debug, Default)]
pub struct Ledger {
    violations: Mutex<Vec<Violation>>,
    expected: Mutex<HashMap<u64, Expectation>>,
}

/// What a test knows of a sequence and the executor can't see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Whose KV it may read.
    pub namespace: u64,
    /// Positions that it may ever compute: its prompt and its limit, less one, since the KV of
    /// the last token is never needed.
    pub longest: u32,
}

impl Ledger {
    /// Says what is known of the sequence whose sampling seed is `seed`. A seed that belongs to
    /// one sequence alone also makes the executor notice a position that is sampled twice.
    pub fn expect(&self, seed: u64, expectation: Expectation) {
        self.expected.lock().insert(seed, expectation);
    }

    /// Everything that was found so far, oldest first.
    pub fn violations(&self) -> Vec<Violation> {
        self.violations.lock().clone()
    }

    /// What was said of the sequence with this seed.
    pub fn expectation(&self, seed: u64) -> Option<Expectation> {
        self.expected.lock().get(&seed).copied()
    }

    fn record(&self, violation: Violation) {
        self.violations.lock().push(violation);
    }
}
