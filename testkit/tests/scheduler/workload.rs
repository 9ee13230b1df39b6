//! Random workloads: a configuration, and what happens when.

use std::sync::Arc;

use engine_core::backend::SlotSampling;
use engine_core::kv::GroupKind;
use engine_core::schedule::{
    HostTierConfig, QueuePolicy, SchedulerConfig, Speculation, WindowedConfig,
};
use engine_core::{Namespace, Policy, Retention, Token, WritePolicy};
use testkit::faults::{Fault, TransferFault};
use testkit::random::Random;

/// A workload that one seed stands for.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) config: SchedulerConfig,
    pub(crate) overlapped: bool,
    pub(crate) vocab_size: u32,
    /// Windows of the executor's groups.
    pub(crate) windows: Vec<Option<u32>>,
    /// In the order of their times.
    pub(crate) actions: Vec<(u64, Action)>,
    /// By step.
    pub(crate) faults: Vec<(u64, Fault)>,
    /// By transfer.
    pub(crate) transfer_faults: Vec<(u64, TransferFault)>,
    /// Write a log for [`replay`](engine_core::schedule::replay).
    pub(crate) is_recorded: bool,
}

/// What the world does to the scheduler, before the plan of some round.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// A request arrives, with as many samples as it has seeds.
    Arrive(Request),
    /// The request that arrived as this one is given up.
    Abort(usize),
    /// A stop string shows up in the first sample of the request that arrived as this one.
    Stop(usize),
    /// The first sample of the request that arrived as this one is continued along a branch.
    Fork(usize, Request),
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<Token>,
    pub(crate) samples: Vec<Arc<SlotSampling>>,
    pub(crate) max_tokens: u32,
    pub(crate) stop_tokens: Arc<[Token]>,
    pub(crate) namespace: Namespace,
    pub(crate) retention: Retention,
    /// Its sampling is deferred, and held to what the driver allows.
    pub(crate) constrained: bool,
}

/// What kind of workload to draw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flavour {
    pub(crate) faults: bool,
    /// Fewer and larger: a batch of 64.
    pub(crate) wide: bool,
    /// A second tier, and too little room without it.
    pub(crate) host: bool,
    /// Windowed groups, beside full ones or alone.
    pub(crate) windowed: bool,
    /// Tokens are proposed and verified.
    pub(crate) speculation: bool,
    /// More than a thousand requests, recorded.
    pub(crate) long: bool,
}

impl Case {
    pub(crate) fn new(seed: u64, flavour: Flavour) -> Self {
        let mut draw = Draw { random: Random::new(seed), seeds: 0, stems: Vec::new() };
        draw.case(flavour)
    }

    /// Positions that all requests may take together, the ones that branch off included.
    pub(crate) fn positions(&self) -> usize {
        let longest = self.config.context_length;
        let of = |request: &Request| {
            let len = request.prompt.len() + request.max_tokens as usize;
            len.min(longest) * request.samples.len()
        };
        self.actions
            .iter()
            .map(|(_, action)| match action {
                Action::Arrive(request) => of(request),
                Action::Fork(_, _) => longest,
                Action::Abort(_) | Action::Stop(_) => 0,
            })
            .sum()
    }
}

struct Draw {
    random: Random,
    /// Sampling seeds handed out; each belongs to one sequence.
    seeds: u64,
    /// Prompts begin like one of these.
    stems: Vec<Vec<Token>>,
}

impl Draw {
    fn case(&mut self, flavour: Flavour) -> Case {
        let random = &mut self.random;
        let page_size = *random.pick(&[1, 1, 2, 4, 4, 16, 128]).unwrap_or(&1);
        let vocab_size = random.between(2, 6) as u32;
        let longest_prompt = match page_size {
            1 | 2 => random.between(1, 40),
            128 => random.between(100, 300),
            _ => random.between(1, 100),
        };
        // What is to come back from the host has to come again, after others.
        let stems = if flavour.host { random.between(2, 5) } else { random.between(1, 3) };
        for _ in 0..stems {
            let len = random.between(1, longest_prompt);
            self.stems.push((0..len).map(|_| random.below(vocab_size as usize) as Token).collect());
        }
        let requests = match flavour {
            Flavour { long: true, .. } => 1500,
            Flavour { wide: true, .. } => 64,
            Flavour { host: true, .. } => random.between(6, 24),
            _ => random.between(1, 10),
        };
        let namespaces = *random.pick(&[1, 1, 2, 3]).unwrap_or(&1);
        let most_tokens = random.between(1, 24);
        let spread = random.between(0, if flavour.host { 16 } else { 6 }) as u64;

        let mut actions = Vec::new();
        let mut time = 0;
        for index in 0..requests {
            let mut request = self.request(longest_prompt, most_tokens, vocab_size, namespaces);
            if !flavour.wide && self.random.chance(15) {
                let count = self.random.between(2, 4);
                request.samples = (0..count).map(|_| self.sampling(60)).collect();
            }
            actions.push((time, Action::Arrive(request)));
            let later = time + self.random.below(40) as u64;
            if self.random.chance(15) {
                actions.push((later, Action::Abort(index)));
            }
            if self.random.chance(10) {
                actions.push((later, Action::Stop(index)));
            }
            if self.random.chance(25) {
                let mut branch = self.request(8, most_tokens, vocab_size, 1);
                if self.random.chance(40) {
                    branch.prompt.clear();
                }
                actions.push((later, Action::Fork(index, branch)));
            }
            time += self.random.below(spread as usize + 1) as u64;
        }
        actions.sort_by_key(|&(time, _)| time);

        let longest = longest_prompt + most_tokens;
        let mut config = self.config(page_size, longest, flavour);
        let random = &mut self.random;
        let overlapped = random.chance(65);
        let mut faults = Vec::new();
        if flavour.faults {
            for _ in 0..random.between(1, 4) {
                let kinds = [Fault::Row(random.below(8) as u32), Fault::KvLost, Fault::LaunchFails];
                if let Some(fault) = random.pick(&kinds) {
                    faults.push((random.below(30) as u64, fault.clone()));
                }
            }
        }
        let mut transfer_faults = Vec::new();
        if flavour.host {
            self.add_host_tier(&mut config, longest.div_ceil(page_size));
            if flavour.faults {
                transfer_faults = self.transfer_faults();
            }
        }
        if flavour.speculation {
            let random = &mut self.random;
            let mut speculation = Speculation::default();
            speculation.max_draft = random.between(1, 8) as u8;
            speculation.min_match = random.between(1, 3) as u8;
            speculation.lookback = random.between(4, 100) as u32;
            speculation.step_tokens = random.between(1, 32) as u32;
            config.speculation = Some(speculation);
        }
        let windows =
            if flavour.windowed { self.add_windows(&mut config, longest) } else { vec![None] };
        let is_recorded = flavour.long;
        Case {
            config,
            overlapped,
            vocab_size,
            windows,
            actions,
            faults,
            transfer_faults,
            is_recorded,
        }
    }

    /// A tier on the host, from one page to more than the device has, and a device that holds
    /// little more than the longest sequence.
    fn add_host_tier(&mut self, config: &mut SchedulerConfig, smallest: usize) {
        let random = &mut self.random;
        config.cache = true;
        config.pages = (smallest + random.below(smallest * 2)) as u32;
        let policies = [WritePolicy::Through, WritePolicy::ThroughAfterHits(1), WritePolicy::Back];
        let mut tier = HostTierConfig::new(random.between(1, smallest * 6) as u32);
        tier.write = *random.pick(&policies).unwrap_or(&WritePolicy::Back);
        tier.min_load_tokens = *random.pick(&[1, 1, 20]).unwrap_or(&1);
        config.host_tier = Some(tier);
    }

    /// Groups of both kinds, or windowed ones alone, with pages for one window, or more. Windows
    /// may differ: the scheduler is told the widest.
    fn add_windows(&mut self, config: &mut SchedulerConfig, longest: usize) -> Vec<Option<u32>> {
        use GroupKind::{Full, Windowed};
        let random = &mut self.random;
        let kinds: [&[GroupKind]; 6] = [
            &[Full, Windowed],
            &[Full, Windowed],
            &[Windowed, Full],
            &[Windowed, Full, Windowed, Full],
            &[Windowed],
            &[Full, Full],
        ];
        config.groups = random.pick(&kinds).copied().unwrap_or(&[Full]).to_vec();
        let has_full = config.groups.contains(&Full);
        // Without a full group, only what a window covers tells what came before it.
        let narrowest = if has_full { 1 } else { 2 };
        let window = random.between(narrowest, longest + 8);
        let reach = (window - 1).div_ceil(config.page_size);
        let smallest = reach + 2 + 8usize.div_ceil(config.page_size);
        let pages = match random.below(3) {
            0 => smallest,
            1 => smallest + random.below(smallest * 2),
            _ => smallest * 16,
        };
        // Chunks are as short as the windowed pages that are left.
        if let Some(every) = &mut config.retract_every {
            *every += longest.div_ceil(config.page_size) as u64;
        }
        let has_window = config.groups.contains(&Windowed);
        config.windowed = has_window.then_some(WindowedConfig { window, pages: pages as u32 });
        if !has_full {
            config.pages = config.pages.max(200);
        }
        let mut widest = Some(window);
        let groups = config.groups.clone();
        let windows = groups.iter().map(|kind| match kind {
            Full => None,
            Windowed => Some(widest.take().unwrap_or_else(|| random.between(1, window)) as u32),
        });
        windows.collect()
    }

    fn transfer_faults(&mut self) -> Vec<(u64, TransferFault)> {
        let random = &mut self.random;
        let mut faults = Vec::new();
        for _ in 0..random.between(1, 6) {
            let kinds = [
                TransferFault::Refused,
                TransferFault::Fails,
                TransferFault::Fails,
                TransferFault::KvLost,
            ];
            if let Some(&fault) = random.pick(&kinds) {
                faults.push((random.below(12) as u64, fault));
            }
        }
        faults
    }

    /// A pool that holds the longest sequence, and often little more.
    fn config(&mut self, page_size: usize, longest: usize, flavour: Flavour) -> SchedulerConfig {
        let random = &mut self.random;
        let smallest = longest.div_ceil(page_size);
        let pages = match random.below(3) {
            0 => smallest + random.below(3),
            1 => smallest + random.between(0, smallest * 2),
            _ => smallest * 16 + 16,
        };
        let max_running = if flavour.wide { 64 } else { *random.pick(&[1, 2, 3, 8]).unwrap_or(&8) };
        let context = if random.chance(20) { longest - 1 } else { longest + 40 };
        let mut config = SchedulerConfig::new(page_size, pages as u32, max_running, context.max(2));
        config.chunked_prefill_size = *random.pick(&[1, 16, 16, 64, 100_000]).unwrap_or(&16);
        config.cache = random.chance(75);
        if random.chance(10) {
            config.max_waiting = random.between(1, 4);
        }
        config.eviction_policy = *random.pick(&Policy::ALL).unwrap_or(&Policy::Lru);
        if random.chance(40) {
            config.queue_policy = QueuePolicy::LongestPrefix;
        }
        if random.chance(30) {
            // Longer than it takes to compute the longest sequence anew: else, with the cache
            // switched off, nobody would ever get further.
            let chunks = (longest + 40).div_ceil(config.chunk()) as u64;
            config.retract_every = Some(chunks + 2 + random.below(12) as u64);
        }
        config
    }

    fn request(
        &mut self,
        longest_prompt: usize,
        most_tokens: usize,
        vocab_size: u32,
        namespaces: usize,
    ) -> Request {
        let random = &mut self.random;
        let mut prompt = Vec::new();
        if let Some(stem) = random.pick(&self.stems).cloned() {
            let len = if random.chance(60) { stem.len() } else { random.below(stem.len() + 1) };
            prompt.extend_from_slice(&stem[..len]);
        }
        if random.chance(60) {
            let more = random.below(longest_prompt / 2 + 2);
            prompt.extend((0..more).map(|_| random.below(vocab_size as usize) as Token));
        }
        prompt.truncate(longest_prompt);
        if prompt.is_empty() {
            prompt.push(0);
        }
        let stop_tokens: Vec<Token> = if random.chance(25) {
            vec![random.below(vocab_size as usize) as Token]
        } else {
            Vec::new()
        };
        let max_tokens = random.between(1, most_tokens) as u32;
        let namespace = Namespace::tenant(random.below(namespaces) as u64);
        let samples = vec![self.sampling(30)];
        let constrained = self.random.chance(20);
        let retention = self.retention();
        Request {
            prompt,
            samples,
            max_tokens,
            stop_tokens: stop_tokens.into(),
            namespace,
            retention,
            constrained,
        }
    }

    /// Mostly none; else a priority, or a time that will pass while the case runs.
    fn retention(&mut self) -> Retention {
        let random = &mut self.random;
        match random.below(5) {
            0 => Retention::default().priority(random.below(3) as i32),
            1 => Retention::default().until(random.below(60) as u64),
            _ => Retention::default(),
        }
    }

    fn sampling(&mut self, percent_random: usize) -> Arc<SlotSampling> {
        self.seeds += 1;
        let random = &mut self.random;
        let mut sampling = SlotSampling::greedy();
        sampling.seed = self.seeds;
        if random.chance(percent_random) {
            sampling.temperature = 1.0;
        }
        if random.chance(25) {
            sampling.frequency_penalty = 0.5;
            sampling.repetition_penalty = 1.2;
        }
        if random.chance(10) {
            sampling.logprobs = Some(2);
        }
        Arc::new(sampling)
    }
}
