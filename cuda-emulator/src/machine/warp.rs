//! A warp: which lanes are where, and what they execute next.
//!
//! Lanes that a branch separates run one group after the other and meet again at the branch's
//! immediate post-dominator, kept on a stack (Fung et al., 2007). Lanes of a warp that wait for
//! each other in a loop never get there; the launch's limit of instructions ends them.

use crate::check::Problem;

use super::action::{Action, Barrier, Flow, NOWHERE, Reduction};
use super::cluster::ClusterState;
use super::context::{BlockState, Context, Core, Environment, Tally, Trap, lanes};
use super::names::Special;
use super::registers::{FULL, LANES, Row};

/// A warp between two of its turns.
#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub(crate) core: Core,
    stack: Vec<Entry>,
    /// For each function that is active, where its part of the stack begins.
    frames: Vec<usize>,
    pub(crate) state: State,
    /// How the barrier that it waits at hands over its result, and where.
    pub(crate) reduction: Option<(Reduction, u32)>,
}

/// Lanes that execute together.
#[derive(Debug, Clone, Copy)]
struct Entry {
    at: u32,
    /// Where they meet those below.
    join: u32,
    mask: u32,
}

/// What a warp is about to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Ready,
    /// Waits at a barrier of this number.
    Waiting(u32),
    /// Waits for what its core names.
    Suspended,
    Done,
}

/// Why a warp's turn ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pause {
    /// It has had its share.
    Turn,
    /// It waits for what its core names.
    Suspended,
    /// It is at a barrier: the instruction and the lanes.
    Barrier { at: u32, barrier: Barrier, mask: u32 },
    /// All its threads have ended.
    Done,
}

impl Warp {
    /// Begins warp `index` of a block.
    pub(crate) fn start(&mut self, env: &Environment<'_>, block: &BlockState, index: usize) {
        let kernel = env.kernel;
        let core = &mut self.core;
        core.index = index;
        core.registers.rows.clear();
        core.registers.rows.extend_from_slice(&kernel.template);
        core.registers.predicates.clear();
        core.registers.predicates.resize(kernel.predicates as usize, 0);
        core.registers.perturb = env.perturb;
        core.local.clear();
        core.local.resize(kernel.local_bytes * LANES, 0xa5);
        core.copies.reset();
        core.stores.reset();
        core.wgmma.reset(&kernel.watched);
        core.waiting = None;
        core.expired = false;
        core.cluster_waits = 0;
        core.stack = [0; LANES];
        core.saved.clear();
        core.executed = 0;
        let threads: u32 = env.block.iter().product();
        let here = threads.saturating_sub((index * LANES) as u32).min(32);
        core.live = if here == 32 { FULL } else { (1 << here) - 1 };
        for (special, row) in &kernel.specials {
            if let Some(row) = core.registers.rows.get_mut(*row as usize) {
                *row = special_row(*special, env, block, index);
            }
        }
        self.stack.clear();
        self.stack.push(Entry { at: 0, join: NOWHERE, mask: core.live });
        self.frames.clear();
        self.frames.push(0);
        self.state = State::Ready;
    }

    /// Executes up to `budget` instructions.
    pub(crate) fn run<'m>(
        &mut self,
        env: &Environment<'m>,
        block: &mut BlockState,
        cluster: &mut ClusterState,
        tally: &mut Tally<'m>,
        budget: u64,
    ) -> Result<Pause, (u32, Trap)> {
        let steps = env.kernel.steps.as_slice();
        let mut left = budget;
        while let Some(top) = self.stack.last_mut() {
            if top.mask == 0 || top.at == top.join {
                self.stack.pop();
                while self.frames.last().is_some_and(|base| *base >= self.stack.len()) {
                    self.frames.pop();
                }
                continue;
            }
            if left == 0 {
                return Ok(Pause::Turn);
            }
            left -= 1;
            let at = top.at;
            let Some(step) = steps.get(at as usize) else {
                // A body ends with a return, so this is not reached.
                top.mask = 0;
                continue;
            };
            let mask = match step.guard {
                None => top.mask,
                Some((index, negated)) => {
                    let bits = self.core.registers.predicates[index as usize];
                    top.mask & if negated { !bits } else { bits }
                }
            };
            self.core.executed += 1;
            tally.counts.by_class[usize::from(step.class)] += 1;
            tally.counts.lane_instructions += u64::from(mask.count_ones());
            match &step.action {
                Action::Lanes(effect) => {
                    top.at = at + 1;
                    if mask != 0 {
                        effect(&mut self.core.registers, mask);
                    }
                }
                Action::Warp(effect) => {
                    top.at = at + 1;
                    if mask != 0 {
                        let core = &mut self.core;
                        let mut context = Context { env, core, block, cluster, tally, at };
                        effect(&mut context, mask).map_err(|trap| (at, trap))?;
                    }
                }
                Action::Wait(effect) => {
                    top.at = at + 1;
                    if mask == 0 {
                        continue;
                    }
                    let core = &mut self.core;
                    let mut context = Context { env, core, block, cluster, tally, at };
                    match effect(&mut context, mask).map_err(|trap| (at, trap))? {
                        Flow::On => {}
                        Flow::Yield => return Ok(Pause::Turn),
                        Flow::Again => {
                            // It counts once, when it goes on.
                            top.at = at;
                            self.core.executed -= 1;
                            tally.counts.by_class[usize::from(step.class)] -= 1;
                            tally.counts.lane_instructions -= u64::from(mask.count_ones());
                            self.state = State::Suspended;
                            return Ok(Pause::Suspended);
                        }
                    }
                }
                Action::Branch { target } => self.branch(at, *target, mask, step.join),
                Action::Table { index, targets } => {
                    let index = *index;
                    self.table(at, index, targets, mask, step.join).map_err(|trap| (at, trap))?;
                }
                Action::Call { entry } => {
                    top.at = at + 1;
                    if mask != 0 {
                        self.frames.push(self.stack.len());
                        self.stack.push(Entry { at: *entry, join: NOWHERE, mask });
                    }
                }
                Action::Return => {
                    top.at = at + 1;
                    let base = self.frames.last().copied().unwrap_or(0);
                    if base == 0 {
                        self.end(mask, env, block, cluster, tally, at)
                            .map_err(|trap| (at, trap))?;
                    } else {
                        for entry in self.stack.iter_mut().skip(base) {
                            entry.mask &= !mask;
                        }
                    }
                }
                Action::Exit => {
                    top.at = at + 1;
                    self.end(mask, env, block, cluster, tally, at).map_err(|trap| (at, trap))?;
                }
                Action::Barrier(barrier) => {
                    top.at = at + 1;
                    if mask != 0 {
                        return Ok(Pause::Barrier { at, barrier: *barrier, mask });
                    }
                }
            }
        }
        self.state = State::Done;
        Ok(Pause::Done)
    }

    /// The instruction that it is at.
    pub(crate) fn at(&self) -> u32 {
        self.stack.last().map_or(0, |top| top.at)
    }

    fn branch(&mut self, at: u32, target: u32, taken: u32, join: u32) {
        let Some(top) = self.stack.last_mut() else { return };
        if taken == top.mask {
            top.at = target;
        } else if taken == 0 {
            top.at = at + 1;
        } else {
            let other = top.mask & !taken;
            let outer = top.join;
            if join == NOWHERE {
                // One group takes the place of both.
                *top = Entry { at: at + 1, join: outer, mask: other };
                self.stack.push(Entry { at: target, join: NOWHERE, mask: taken });
                return;
            }
            top.at = join;
            for (at, mask) in [(at + 1, other), (target, taken)] {
                if at != join {
                    self.stack.push(Entry { at, join, mask });
                }
            }
        }
    }

    fn table(
        &mut self,
        at: u32,
        index: u32,
        targets: &[u32],
        mask: u32,
        join: u32,
    ) -> Result<(), Trap> {
        let Some(top) = self.stack.last_mut() else { return Ok(()) };
        let stay = top.mask & !mask;
        let values = self.core.registers.rows[index as usize].0;
        let mut groups: Vec<(u32, u32)> = Vec::new();
        if stay != 0 {
            groups.push((at + 1, stay));
        }
        for lane in lanes(mask) {
            let index = values[lane];
            let Some(target) = targets.get(index as usize) else {
                let entries = targets.len();
                return Err(Trap::lane(lane, Problem::BranchIndex { index, entries }));
            };
            match groups.iter_mut().find(|(at, _)| at == target) {
                Some((_, lanes)) => *lanes |= 1 << lane,
                None => groups.push((*target, 1 << lane)),
            }
        }
        if let [(target, _)] = groups.as_slice() {
            top.at = *target;
            return Ok(());
        }
        top.at = join;
        if join == NOWHERE {
            top.mask = 0;
        }
        for (at, mask) in groups {
            if at != join {
                self.stack.push(Entry { at, join, mask });
            }
        }
        Ok(())
    }

    /// Ends threads.
    fn end<'m>(
        &mut self,
        mask: u32,
        env: &Environment<'m>,
        block: &mut BlockState,
        cluster: &mut ClusterState,
        tally: &mut Tally<'m>,
        at: u32,
    ) -> Result<(), Trap> {
        let core = &mut self.core;
        let (copies, stores) = (core.copies.left(mask), core.stores.left(mask));
        let count = core.wgmma.left();
        if copies + stores + count > 0 {
            let lane = lanes(mask).next().unwrap_or(0);
            let mut context = Context { env, core, block, cluster, tally, at };
            if copies > 0 && env.checks.async_copies {
                context.note(lane, Problem::AsyncCopyLeft { count: copies }, None);
            }
            if stores > 0 && env.checks.async_copies {
                context.note(lane, Problem::BulkCopyLeft { count: stores }, None);
            }
            if count > 0 && env.checks.wgmma {
                context.note(lane, Problem::WgmmaLeft { count }, None);
            }
            context.core.copies.wait_all(mask);
            for (lane, store) in context.core.stores.wait_all(mask) {
                context.finish_store(lane, &store)?;
            }
            context.finish_wgmma(0);
        }
        self.core.live &= !mask;
        for entry in &mut self.stack {
            entry.mask &= !mask;
        }
        Ok(())
    }
}

fn special_row(special: Special, env: &Environment<'_>, block: &BlockState, index: usize) -> Row {
    let threads = env.block;
    let first = (index * LANES) as u32;
    let lane = |f: &dyn Fn(u32) -> u32| Row(std::array::from_fn(|lane| f(lane as u32)));
    let same = |value: u32| Row([value; LANES]);
    match special {
        Special::Thread(axis) => lane(&|lane| {
            let [x, y, _] = threads;
            let thread = first + lane;
            match axis {
                0 => thread % x,
                1 => thread / x % y,
                _ => thread / x / y,
            }
        }),
        Special::BlockSize(axis) => same(threads[axis]),
        Special::Block(axis) => same(block.index[axis]),
        Special::GridSize(axis) => same(env.grid[axis]),
        Special::Lane => lane(&|lane| lane),
        Special::Warp => same(index as u32),
        Special::Warps => same(threads.iter().product::<u32>().div_ceil(32)),
        Special::LanesEqual => lane(&|lane| 1 << lane),
        Special::LanesBelow => lane(&|lane| (1 << lane) - 1),
        Special::LanesUpTo => lane(&|lane| ((1u64 << (lane + 1)) - 1) as u32),
        Special::LanesAbove => lane(&|lane| !(((1u64 << (lane + 1)) - 1) as u32)),
        Special::LanesFrom => lane(&|lane| !((1u32 << lane) - 1)),
        Special::Cluster(axis) => same(block.index[axis] / env.cluster[axis]),
        Special::Clusters(axis) => same(env.grid[axis] / env.cluster[axis]),
        Special::ClusterBlock(axis) => same(block.index[axis] % env.cluster[axis]),
        Special::ClusterSize(axis) => same(env.cluster[axis]),
        Special::ClusterRank => same(block.rank),
        Special::ClusterBlocks => same(env.cluster.iter().product()),
        Special::Multiprocessor => same(block.number % super::MULTIPROCESSORS),
        Special::Multiprocessors => same(super::MULTIPROCESSORS),
        Special::DynamicShared => same(env.dynamic_shared),
        Special::TotalShared => same(env.total_shared),
        Special::Zero => same(0),
    }
}
