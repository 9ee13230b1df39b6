//! A launch: blocks over the cores of the host.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::check::{Checks, Problem, Report, Severity};
use crate::count::{Counting, Counts, L2};

use super::block::{Fault, Progress};
use super::cluster::{CLUSTER_LIMIT, Cluster};
use super::context::{Environment, Found, Tally};
use super::kernel::Kernel;
use super::memory::{Memory, Peers};
use super::random::{Random, mix};

/// Instructions that a block may use before others of its host thread get a turn.
const SHARE: u64 = 1 << 18;
/// Blocks that have yielded before no new one is begun.
const RESIDENT: usize = 256;

/// The largest grid whose blocks are watched for races.
const RACING: u32 = 1 << 26;

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of `extern __shared__` memory.
    pub dynamic_shared: u32,
    /// Blocks of a cluster along x, y and z; none for what the kernel says, or else 1.
    pub cluster: Option<[u32; 3]>,
}

/// How a launch is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What is checked.
    pub checks: Checks,
    /// What is counted beyond instructions.
    pub counting: Counting,
    /// Host threads; none for one on each core.
    pub threads: Option<usize>,
    /// In which order blocks and warps run.
    pub schedule: Schedule,
    /// With a seed, approximate instructions (`ex2.approx`, `rcp.approx` and others) are off by as
    /// much as PTX allows them to be: a test that leans on their exactness fails.
    pub perturb: Option<u32>,
    /// Warp instructions after which a launch is stopped.
    pub instruction_limit: u64,
}

/// In which order blocks and warps run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Blocks in the order of the grid; a warp runs up to the next barrier.
    #[default]
    InOrder,
    /// Blocks in a random order; warps take random turns of random length.
    Random(u64),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            checks: Checks::default(),
            counting: Counting::default(),
            threads: None,
            schedule: Schedule::InOrder,
            perturb: None,
            instruction_limit: 1 << 40,
        }
    }
}

impl Options {
    /// No checks and no counts but those of instructions.
    pub fn fast() -> Self {
        Self { checks: Checks::none(), counting: Counting::none(), ..Self::default() }
    }
}

/// What a launch gave, besides what the kernel wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// What the checks found, the worst first.
    pub reports: Vec<Report>,
    /// What the kernel did.
    pub counts: Counts,
}

impl Outcome {
    /// The problem that stopped the launch, if one did.
    pub fn fault(&self) -> Option<&Report> {
        self.reports.iter().find(|report| report.severity == Severity::Fault)
    }

    /// Reports of what is wrong, without warnings and advice.
    pub fn errors(&self) -> impl Iterator<Item = &Report> {
        self.reports.iter().filter(|report| report.severity > Severity::Warning)
    }

    /// Reports of what is seldom meant, though its results are defined.
    pub fn warnings(&self) -> impl Iterator<Item = &Report> {
        self.reports.iter().filter(|report| report.severity == Severity::Warning)
    }
}

/// Why a launch was refused before anything ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A grid that CUDA doesn't have.
    #[error("a grid of {0:?} blocks: at least 1 each way, at most 2^31 - 1, 65535 and 65535")]
    Grid([u32; 3]),
    /// A block that CUDA doesn't have.
    #[error("a block of {block:?} threads: at least 1 each way, at most {limit} in all")]
    Block {
        /// Threads along x, y and z.
        block: [u32; 3],
        /// The most that this kernel takes.
        limit: u32,
    },
    /// Clusters that CUDA doesn't have, that don't divide the grid, or that the kernel doesn't want.
    #[error(
        "clusters of {cluster:?} blocks in a grid of {grid:?}: they must divide it, have at most {CLUSTER_LIMIT} blocks, and be those that the kernel declares"
    )]
    Cluster {
        /// Blocks of a cluster along x, y and z.
        cluster: [u32; 3],
        /// Blocks of the grid.
        grid: [u32; 3],
    },
    /// More shared memory than a block can have.
    #[error("{bytes} bytes of shared memory, the most is {limit}")]
    Shared {
        /// What the kernel declares and what the launch adds.
        bytes: usize,
        /// The most.
        limit: usize,
    },
    /// Parameters of another size than the kernel's.
    #[error("{found} bytes of parameters, the kernel takes {expected}")]
    Parameters {
        /// What the kernel takes.
        expected: usize,
        /// What it was given.
        found: usize,
    },
}

/// The most shared memory of a block: what compute capability 9.0 and 10.0 have.
pub const SHARED_LIMIT: usize = 227 << 10;

/// Runs a kernel to its end. `parameters` is the parameter block, each parameter at its
/// [`super::Parameter::offset`].
///
/// # Errors
///
/// A launch that CUDA would refuse. What the kernel does wrong is in [`Outcome::reports`].
pub fn launch(
    kernel: &Kernel,
    memory: &Memory,
    launch: &Launch,
    parameters: &[u8],
    options: &Options,
) -> Result<Outcome, LaunchError> {
    launch_with_peers(kernel, memory, &Peers::default(), launch, parameters, options)
}

/// As [`launch`], on a device that can use the memory of others.
///
/// # Errors
///
/// Those of [`launch`].
pub fn launch_with_peers(
    kernel: &Kernel,
    memory: &Memory,
    peers: &Peers<'_>,
    launch: &Launch,
    parameters: &[u8],
    options: &Options,
) -> Result<Outcome, LaunchError> {
    let total_shared = check(kernel, launch, parameters)?;
    let cluster = cluster_size(kernel, launch)?;
    let [x, y, z] = launch.grid.map(u64::from);
    let blocks = x * y * z;
    let Ok(total) = u32::try_from(blocks) else { return Err(LaunchError::Grid(launch.grid)) };
    let mut releases = Vec::new();
    if options.checks.global_races && total <= RACING {
        releases.resize_with(total as usize, || AtomicU8::new(0));
    }
    let env = Environment {
        kernel,
        memory: memory.view(peers),
        parameters: parameters.to_vec(),
        grid: launch.grid,
        block: launch.block,
        cluster,
        warps: launch.block.iter().product::<u32>().div_ceil(32) as usize,
        shared_bytes: kernel.dynamic_base + launch.dynamic_shared as usize,
        total_shared: total_shared as u32,
        dynamic_shared: launch.dynamic_shared,
        checks: options.checks,
        count_memory: options.counting.memory
            || options.checks.coalescing
            || options.checks.bank_conflicts,
        record_sectors: options.counting.l2.is_some(),
        epoch: memory.next_epoch(peers.memories),
        releases,
        perturb: options.perturb,
    };
    // Divided without a rest, as was checked.
    let total = total / cluster.iter().product::<u32>();
    let order = Order::new(total, options.schedule);
    let shared = Work {
        env: &env,
        next: AtomicU32::new(0),
        total,
        order,
        seed: match options.schedule {
            Schedule::InOrder => None,
            Schedule::Random(seed) => Some(mix(seed)),
        },
        stop: AtomicBool::new(false),
        executed: AtomicU64::new(0),
        limit: options.instruction_limit,
        l2: options.counting.l2.map(|model| Mutex::new(L2::new(model))),
    };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or_else(cores).clamp(1, total as usize);
    let results: Vec<(Tally<'_>, Option<Box<Fault>>)> = if threads == 1 {
        vec![shared.run()]
    } else {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(|| shared.run())).collect();
            let mut all = vec![shared.run()];
            for worker in workers {
                match worker.join() {
                    Ok(result) => all.push(result),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        })
    };
    let mut gathered = Gathered::default();
    for (tally, fault) in results {
        gathered.add(tally, fault);
    }
    if let Some(l2) = shared.l2 {
        let l2 = l2.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        (gathered.counts.l2_misses, gathered.counts.l2_write_backs) = l2.finish();
    }
    Ok(gathered.outcome(&env))
}

fn check(kernel: &Kernel, launch: &Launch, parameters: &[u8]) -> Result<usize, LaunchError> {
    let [x, y, z] = launch.grid;
    if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
        return Err(LaunchError::Grid(launch.grid));
    }
    let limit = kernel.max_threads.unwrap_or(1024).min(1024);
    let [x, y, z] = launch.block.map(u64::from);
    let threads = x.saturating_mul(y).saturating_mul(z);
    if threads == 0 || threads > u64::from(limit) || z > 64 {
        return Err(LaunchError::Block { block: launch.block, limit });
    }
    let bytes = kernel.static_shared + launch.dynamic_shared as usize;
    if bytes > SHARED_LIMIT {
        return Err(LaunchError::Shared { bytes, limit: SHARED_LIMIT });
    }
    if parameters.len() != kernel.parameter_bytes {
        let (expected, found) = (kernel.parameter_bytes, parameters.len());
        return Err(LaunchError::Parameters { expected, found });
    }
    Ok(bytes)
}

fn cluster_size(kernel: &Kernel, launch: &Launch) -> Result<[u32; 3], LaunchError> {
    let cluster = launch.cluster.or(kernel.cluster).unwrap_or([1; 3]);
    let wanted = kernel.cluster.is_none_or(|declared| declared == cluster);
    let blocks = cluster.iter().fold(1u32, |all, one| all.saturating_mul(*one));
    let divides =
        cluster.iter().zip(launch.grid).all(|(one, all)| *one > 0 && all.is_multiple_of(*one));
    if !wanted || !divides || blocks > CLUSTER_LIMIT {
        return Err(LaunchError::Cluster { cluster, grid: launch.grid });
    }
    Ok(cluster)
}

/// The order of the clusters: `number = start + step * index` modulo the grid.
#[derive(Debug)]
struct Order {
    start: u64,
    step: u64,
    total: u64,
}

impl Order {
    fn new(total: u32, schedule: Schedule) -> Self {
        let total = u64::from(total);
        let Schedule::Random(seed) = schedule else { return Self { start: 0, step: 1, total } };
        let mut random = Random::new(seed);
        let start = random.below(total);
        let step = loop {
            let step = 1 + random.below(total);
            if greatest_common_divisor(step, total) == 1 {
                break step;
            }
        };
        Self { start, step, total }
    }

    fn number(&self, index: u32) -> u32 {
        ((self.start + u64::from(index) * self.step) % self.total) as u32
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// What the host threads of a launch share.
#[derive(Debug)]
struct Work<'a, 'm> {
    env: &'a Environment<'m>,
    next: AtomicU32,
    total: u32,
    order: Order,
    seed: Option<u64>,
    stop: AtomicBool,
    executed: AtomicU64,
    limit: u64,
    l2: Option<Mutex<L2>>,
}

impl<'m> Work<'_, 'm> {
    /// Runs clusters until none is left. Those that use up their share wait, so that blocks which
    /// wait for others in a loop let those run.
    fn run(&self) -> (Tally<'m>, Option<Box<Fault>>) {
        let mut tally = Tally::default();
        let mut spare = Vec::new();
        let mut resident: VecDeque<Cluster> = VecDeque::new();
        while !self.stop.load(Relaxed) {
            let fresh = if resident.len() < RESIDENT { self.take() } else { None };
            let mut cluster = match fresh {
                Some(number) => {
                    let mut cluster: Cluster = spare.pop().unwrap_or_default();
                    cluster.start(self.env, number, self.seed);
                    tally.counts.blocks += u64::from(self.env.cluster.iter().product::<u32>());
                    cluster
                }
                None => match resident.pop_front() {
                    Some(cluster) => cluster,
                    None => break,
                },
            };
            let before = tally.counts.warp_instructions();
            let progress = cluster.run(self.env, &mut tally, SHARE);
            let used = tally.counts.warp_instructions() - before;
            let executed = self.executed.fetch_add(used, Relaxed) + used;
            match progress {
                Ok(Progress::Done) => {
                    if let Some(l2) = &self.l2 {
                        let mut l2 = l2.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        for state in cluster.states() {
                            let sectors = std::mem::take(&mut state.sectors);
                            l2.block(u64::from(state.number), sectors);
                        }
                    }
                    spare.push(cluster);
                }
                Ok(_) if executed > self.limit => {
                    self.stop.store(true, Relaxed);
                    return (tally, Some(cluster.timeout(executed)));
                }
                Ok(_) => resident.push_back(cluster),
                Err(fault) => {
                    self.stop.store(true, Relaxed);
                    return (tally, Some(fault));
                }
            }
        }
        (tally, None)
    }

    fn take(&self) -> Option<u32> {
        let index = self
            .next
            .fetch_update(Relaxed, Relaxed, |next| (next < self.total).then_some(next + 1))
            .ok()?;
        Some(self.order.number(index))
    }
}

/// What all host threads found.
#[derive(Default)]
struct Gathered {
    counts: Counts,
    findings: Vec<((u32, std::mem::Discriminant<Problem>), Found)>,
    conflicts: std::collections::BTreeMap<u32, [u64; 3]>,
    scattered: std::collections::BTreeMap<u32, [u64; 3]>,
    fault: Option<Box<Fault>>,
}

impl Gathered {
    fn add(&mut self, tally: Tally<'_>, fault: Option<Box<Fault>>) {
        self.counts.add(&tally.counts);
        for (key, found) in tally.findings {
            match self.findings.iter_mut().find(|(other, _)| *other == key) {
                Some((_, known)) => {
                    let count = known.count + found.count;
                    if (found.block, found.thread) < (known.block, known.thread) {
                        *known = found;
                    }
                    known.count = count;
                }
                None => self.findings.push((key, found)),
            }
        }
        for (sum, part) in
            [(&mut self.conflicts, tally.conflicts), (&mut self.scattered, tally.scattered)]
        {
            for (at, values) in part {
                let all: &mut [u64; 3] = sum.entry(at).or_default();
                for (all, one) in all.iter_mut().zip(values) {
                    *all += one;
                }
            }
        }
        // Of several faults the one of the first block is told.
        let is_first = |new: &Fault, old: &Fault| (new.block, new.thread) < (old.block, old.thread);
        if let Some(fault) = fault
            && self.fault.as_ref().is_none_or(|old| is_first(&fault, old))
        {
            self.fault = Some(fault);
        }
    }

    fn outcome(self, env: &Environment<'_>) -> Outcome {
        let mut reports = Vec::new();
        if let Some(fault) = self.fault {
            reports.push(report(
                env,
                fault.problem,
                fault.at,
                Some((fault.block, fault.thread)),
                1,
            ));
        }
        for ((at, _), found) in self.findings {
            let place = Some((found.block, found.thread));
            let mut report = report(env, found.problem, at, place, found.count);
            report.other = found.other.map(|at| env.kernel.site(at));
            reports.push(report);
        }
        for (at, [wavefronts, ideal, executions]) in self.conflicts {
            if wavefronts >= 2 * ideal {
                let problem = Problem::BankConflicts { wavefronts, ideal, executions };
                reports.push(report(env, problem, at, None, executions));
            }
        }
        for (at, [sectors, ideal, executions]) in self.scattered {
            if sectors >= 2 * ideal.max(1) {
                let problem = Problem::Uncoalesced { sectors, ideal, executions };
                reports.push(report(env, problem, at, None, executions));
            }
        }
        reports.sort_by_key(|report| {
            (std::cmp::Reverse(report.severity), report.site.ptx_line, report.count)
        });
        Outcome { reports, counts: self.counts }
    }
}

fn report(
    env: &Environment<'_>,
    problem: Problem,
    at: u32,
    place: Option<(u32, usize)>,
    count: u64,
) -> Report {
    let [x, y, _] = env.grid;
    let [tx, ty, _] = env.block;
    Report {
        severity: problem.severity(),
        problem,
        kernel: env.kernel.name.clone(),
        block: place.map(|(block, _)| [block % x, block / x % y, block / x / y]),
        thread: place.map(|(_, thread)| {
            let thread = thread as u32;
            [thread % tx, thread / tx % ty, thread / tx / ty]
        }),
        site: env.kernel.site(at),
        other: None,
        count,
    }
}
