//! Workloads written by hand, for what one test is about.

use std::sync::Arc;

use engine_core::backend::SlotSampling;
use engine_core::schedule::SchedulerConfig;
use engine_core::{Namespace, Retention, Token};
use testkit::faults::{Fault, TransferFault};
use testkit::random::Random;

use crate::driver;
use crate::log::{Entry, Snapshot};
use crate::rules::Report;
use crate::workload::{Action, Case, Request};

pub(crate) const VOCABULARY: u32 = 30;

/// Draws prompts and counts sampling seeds.
pub(crate) struct Script {
    random: Random,
    seeds: u64,
    pub(crate) actions: Vec<(u64, Action)>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self { random: Random::new(1), seeds: 0, actions: Vec::new() }
    }

    pub(crate) fn tokens(&mut self, count: usize) -> Vec<Token> {
        (0..count).map(|_| self.random.below(VOCABULARY as usize) as Token).collect()
    }

    pub(crate) fn request(
        &mut self,
        prompt: Vec<Token>,
        max_tokens: u32,
        samples: usize,
    ) -> Request {
        let samples = (0..samples).map(|_| {
            self.seeds += 1;
            let mut sampling = SlotSampling::greedy();
            sampling.seed = self.seeds;
            Arc::new(sampling)
        });
        Request {
            prompt,
            samples: samples.collect(),
            max_tokens,
            stop_tokens: [].into(),
            namespace: Namespace::tenant(0),
            retention: Retention::default(),
            constrained: false,
        }
    }

    pub(crate) fn arrive(&mut self, time: u64, prompt: Vec<Token>, max_tokens: u32) {
        let request = self.request(prompt, max_tokens, 1);
        self.actions.push((time, Action::Arrive(request)));
    }

    pub(crate) fn run(self, config: SchedulerConfig, overlapped: bool) -> Report {
        self.run_with(config, overlapped, &[], &[])
    }

    /// With faults by step, and by transfer.
    pub(crate) fn run_with(
        self,
        config: SchedulerConfig,
        overlapped: bool,
        faults: &[(u64, Fault)],
        transfer_faults: &[(u64, TransferFault)],
    ) -> Report {
        let case = Case {
            config,
            overlapped,
            vocab_size: VOCABULARY,
            windows: vec![None],
            is_recorded: false,
            actions: self.actions,
            faults: faults.to_vec(),
            transfer_faults: transfer_faults.to_vec(),
        };
        driver::run(&case).unwrap_or_else(|failure| panic!("{failure}\n{case:#?}"))
    }
}

/// Pages of 16 tokens, and plenty of them.
pub(crate) fn roomy(max_running: u32) -> SchedulerConfig {
    SchedulerConfig::new(16, 400, max_running, 1000)
}

pub(crate) fn batches(report: &Report) -> impl Iterator<Item = &Snapshot> {
    report.log.iter().filter_map(|entry| match entry {
        Entry::Plan(planned) => planned.batch.as_ref(),
        Entry::Input(_) => None,
    })
}
