//! A block: turns of its warps, and barriers.

use crate::check::Problem;

use super::action::{BarrierKind, Reduction};
use super::cluster::ClusterState;
use super::context::{BlockState, Context, Environment, Tally, Trap, Waiting, lanes};
use super::random::Random;
use super::registers::LANES;
use super::warp::{Pause, State, Warp};

/// What shared memory holds before it is written.
const FRESH: u8 = 0xa5;
const BARRIERS: usize = 16;
/// The longest turn of a warp when turns are not random.
const TURN: u64 = 1 << 14;

/// A block that runs, or has yielded.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) state: BlockState,
    number: u32,
    warps: Vec<Warp>,
    count: usize,
    barriers: [BarrierState; BARRIERS],
    random: Option<Random>,
    /// The warp whose turn is next when turns are not random.
    next: usize,
}

#[derive(Debug, Clone, Default)]
struct BarrierState {
    /// Warps that wait, with the lanes that do.
    waiting: Vec<(usize, u32)>,
    /// All warps that arrived.
    arrived: Vec<usize>,
    /// Threads that arrived, in whole warps.
    threads: u32,
    expected: Option<u32>,
    /// The instruction that the first one stood at.
    at: u32,
    count: u32,
    all: bool,
    any: bool,
}

/// A fault, and where it happened.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) problem: Problem,
    pub(crate) at: u32,
    pub(crate) block: u32,
    pub(crate) thread: usize,
}

/// How far a block has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    /// It has used its share, or spins: others should run.
    Yielded,
    /// All of its warps wait.
    Stuck,
}

impl Block {
    /// Begins block `number`, with memory left from earlier ones.
    pub(crate) fn start(
        &mut self,
        env: &Environment<'_>,
        number: u32,
        rank: u32,
        seed: Option<u64>,
    ) {
        let [x, y, _] = env.grid;
        self.number = number;
        self.count = env.warps;
        let state = &mut self.state;
        state.number = number;
        state.index = [number % x, number / x % y, number / x / y];
        state.rank = rank;
        state.shared.clear();
        state.shared.resize(env.shared_bytes, FRESH);
        state.mbarriers.clear();
        state.ended = false;
        state.visits.clear();
        state.warpgroups.clear();
        state.fenced = false;
        state.acquired = false;
        state.sectors.clear();
        if env.checks.shadows_shared() {
            state.shadow.reset(env.shared_bytes, &env.kernel.gaps);
        }
        if self.warps.len() < self.count {
            self.warps.resize_with(self.count, Warp::default);
        }
        for (index, warp) in self.warps.iter_mut().take(self.count).enumerate() {
            warp.start(env, state, index);
        }
        self.barriers = Default::default();
        self.random = seed.map(|seed| Random::new(seed ^ u64::from(number) << 20));
        self.next = 0;
    }

    /// Runs until the end, until all warps wait, or until `budget` instructions are used.
    pub(crate) fn run<'m>(
        &mut self,
        env: &Environment<'m>,
        cluster: &mut ClusterState,
        tally: &mut Tally<'m>,
        budget: u64,
    ) -> Result<Progress, Box<Fault>> {
        let mut left = budget;
        loop {
            let Some(index) = self.choose(cluster) else {
                return self.nobody_ready(env, cluster, tally);
            };
            if left == 0 {
                return Ok(Progress::Yielded);
            }
            let turn = match &mut self.random {
                Some(random) => 1 + random.below(400),
                None => TURN,
            };
            let Some(warp) = self.warps.get_mut(index) else { continue };
            warp.state = State::Ready;
            let before = warp.core.executed;
            let pause = warp.run(env, &mut self.state, cluster, tally, turn.min(left));
            left = left.saturating_sub(warp.core.executed - before);
            match pause {
                Ok(Pause::Turn) => self.next = index + 1,
                Ok(Pause::Suspended) => {
                    self.next = index + 1;
                    left = left.saturating_sub(1);
                }
                Ok(Pause::Done) => {
                    cluster.events += 1;
                    self.warp_done(env, cluster, tally);
                }
                Ok(Pause::Barrier { at, barrier, mask }) => {
                    self.arrive(env, cluster, tally, index, at, barrier, mask)
                        .map_err(|trap| self.fault(index, at, trap))?;
                }
                Err((at, trap)) => return Err(self.fault(index, at, trap)),
            }
        }
    }

    /// The lanes of each warp that have not ended.
    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let warps = self.warps.iter().take(self.count).enumerate();
        warps.map(|(index, warp)| (index, warp.core.live)).filter(|(_, live)| *live != 0)
    }

    /// Lets every wait that may give up do so; tells whether there was any.
    pub(crate) fn give_up_waits(&mut self) -> bool {
        let mut any = false;
        for warp in self.warps.iter_mut().take(self.count) {
            if warp.state == State::Suspended
                && matches!(warp.core.waiting, Some(Waiting::Mbarrier { .. }))
            {
                warp.core.expired = true;
                any = true;
            }
        }
        any
    }

    /// How many of its warps wait.
    pub(crate) fn waiting(&self) -> usize {
        let waits = |warp: &&Warp| matches!(warp.state, State::Waiting(_) | State::Suspended);
        self.warps.iter().take(self.count).filter(waits).count()
    }

    /// What to say about the first warp that waits at an mbarrier in vain. `state` is the block's.
    pub(crate) fn stuck_at_mbarrier(
        &self,
        state: &BlockState,
        waiting: usize,
    ) -> Option<Box<Fault>> {
        self.warps.iter().take(self.count).enumerate().find_map(|(index, warp)| {
            let Some(Waiting::Mbarrier { offset, .. }) = warp.core.waiting else { return None };
            let problem = state.mbarriers.get(&offset)?.deadlock(waiting.max(1));
            Some(self.fault(index, warp.at(), Trap::warp(problem)))
        })
    }

    /// What to say about the first warp that waits in vain.
    pub(crate) fn stuck(&self, waiting: usize) -> Option<Box<Fault>> {
        let mut warps = self.warps.iter().take(self.count).enumerate();
        let (first, warp) = warps.find(|(_, warp)| warp.state != State::Done)?;
        let barrier = self.barriers.iter().find(|barrier| !barrier.waiting.is_empty());
        let at = barrier.map_or(warp.at(), |barrier| barrier.at);
        Some(self.fault(first, at, Trap::warp(Problem::Deadlock { waiting })))
    }

    /// What it is made of, for those who look while it doesn't run.
    pub(crate) fn state(&self) -> &BlockState {
        &self.state
    }

    /// What to say when the launch has run for too long.
    pub(crate) fn timeout(&self, instructions: u64) -> Box<Fault> {
        let trap = Trap::warp(Problem::Timeout { instructions });
        let warp = self.next.saturating_sub(1);
        let at = self.warps.get(warp).map_or(0, Warp::at);
        self.fault(warp, at, trap)
    }

    fn choose(&mut self, cluster: &ClusterState) -> Option<usize> {
        let state = &self.state;
        let ready = |warp: &Warp| match warp.state {
            State::Ready => true,
            State::Suspended => {
                warp.core.expired
                    || warp.core.waiting.is_none_or(|for_| has_come(for_, state, cluster))
            }
            State::Waiting(_) | State::Done => false,
        };
        let warps = self.warps.get(..self.count)?;
        match &mut self.random {
            Some(random) => {
                let count = warps.iter().filter(|warp| ready(warp)).count();
                if count == 0 {
                    return None;
                }
                let chosen = random.below(count as u64) as usize;
                let mut all = warps.iter().enumerate().filter(|(_, warp)| ready(warp));
                all.nth(chosen).map(|(index, _)| index)
            }
            None => {
                let order = (self.next..self.count).chain(0..self.next.min(self.count));
                order.into_iter().find(|index| warps.get(*index).is_some_and(ready))
            }
        }
    }

    fn nobody_ready<'m>(
        &mut self,
        env: &Environment<'m>,
        cluster: &mut ClusterState,
        tally: &mut Tally<'m>,
    ) -> Result<Progress, Box<Fault>> {
        if self.warps.iter().take(self.count).any(|warp| warp.state != State::Done) {
            return Ok(Progress::Stuck);
        }
        if !self.state.ended {
            self.state.ended = true;
            self.finish(env, cluster, tally);
        }
        Ok(Progress::Done)
    }

    /// What is left when all threads have ended.
    fn finish<'m>(
        &mut self,
        env: &Environment<'m>,
        cluster: &mut ClusterState,
        tally: &mut Tally<'m>,
    ) {
        let flights = self.state.mbarriers.values().flat_map(|barrier| &barrier.flights);
        let ats: Vec<u32> = flights.map(|flight| flight.at).collect();
        let visits = std::mem::take(&mut self.state.visits);
        let first = self.state.rank as usize * env.warps;
        let sees = |visit: &super::context::Visit, warp: usize| {
            let seen = cluster.clocks.seen(first + warp);
            seen.get(visit.warp).is_some_and(|time| *time >= visit.time)
        };
        let open: Vec<_> =
            visits.into_iter().filter(|v| !(0..self.count).any(|warp| sees(v, warp))).collect();
        let rank = self.state.rank;
        let mismatched = self.state.uneven_warpgroup();
        let Some(warp) = self.warps.first_mut() else { return };
        let core = &mut warp.core;
        let at = ats.first().copied().unwrap_or(0);
        let mut context = Context { env, core, block: &mut self.state, cluster, tally, at };
        if !ats.is_empty() && env.checks.async_copies {
            context.note(0, Problem::BulkCopyLeft { count: ats.len() }, None);
        }
        if let Some(at) = mismatched.filter(|_| env.checks.wgmma) {
            context.at = at;
            context.note(0, Problem::WgmmaDivergent, None);
        }
        for visit in open.iter().filter(|_| env.checks.clusters) {
            let access = visit.access.name();
            let problem = Problem::ClusterEnded { access, rank };
            context.note_at(visit.at, (visit.block, visit.thread), problem);
        }
    }

    fn fault(&self, warp: usize, at: u32, trap: Trap) -> Box<Fault> {
        let lane = trap.lane.unwrap_or(0);
        Box::new(Fault {
            problem: trap.problem,
            at,
            block: self.number,
            thread: warp * LANES + lane,
        })
    }

    #[allow(clippy::too_many_arguments)] // What the warp paused with, and what it ran with.
    fn arrive<'m>(
        &mut self,
        env: &Environment<'m>,
        cluster: &mut ClusterState,
        tally: &mut Tally<'m>,
        index: usize,
        at: u32,
        barrier: super::action::Barrier,
        mask: u32,
    ) -> Result<(), Trap> {
        let Some(warp) = self.warps.get_mut(index) else { return Ok(()) };
        let lane = mask.trailing_zeros() as usize % LANES;
        let number = warp.core.registers.lane(barrier.number, false, lane) as u32;
        let threads = barrier.threads.map(|row| warp.core.registers.lane(row, false, lane) as u32);
        let live = warp.core.live;
        let checks = env.checks;
        if mask != live && checks.barriers && barrier.aligned {
            return Err(Trap::lane(lane, Problem::DivergentBarrier { lanes: mask, live }));
        }
        let invalid = Problem::InvalidBarrier { barrier: number, threads: threads.unwrap_or(0) };
        let counts = threads.is_none_or(|threads| threads > 0 && threads % LANES as u32 == 0);
        let Some(state) = self.barriers.get_mut(number as usize).filter(|_| counts) else {
            return Err(Trap::lane(lane, invalid));
        };
        if state.arrived.is_empty() {
            *state = BarrierState { at, all: true, expected: threads, ..BarrierState::default() };
        }
        let elsewhere = state.at != at && threads.is_none();
        let twice = mask == live && state.arrived.contains(&index);
        state.arrived.push(index);
        state.threads += LANES as u32;
        if let BarrierKind::Reduce { how, source, negated, target } = barrier.kind {
            warp.reduction = Some((how, target));
            let bits = warp.core.registers.predicates[source as usize];
            let bits = mask & if negated { !bits } else { bits };
            state.count += bits.count_ones();
            state.all &= bits == mask;
            state.any |= bits != 0;
        }
        if barrier.kind != BarrierKind::Arrive {
            state.waiting.push((index, mask));
            warp.state = State::Waiting(number);
        }
        if (elsewhere || twice) && checks.barriers {
            let (problem, other) = if twice {
                (Problem::RepeatedArrival { barrier: number }, None)
            } else {
                (Problem::MismatchedBarrier { barrier: number }, Some(state.at))
            };
            let core = &mut warp.core;
            let mut context = Context { env, core, block: &mut self.state, cluster, tally, at };
            context.note(lane, problem, other);
        }
        self.next = index + 1;
        self.complete(env, cluster, tally, number as usize);
        Ok(())
    }

    /// Threads that have ended no longer count for barriers of the whole block.
    fn warp_done(
        &mut self,
        env: &Environment<'_>,
        cluster: &mut ClusterState,
        tally: &mut Tally<'_>,
    ) {
        for number in 0..BARRIERS {
            if self.barriers.get(number).is_some_and(|barrier| !barrier.waiting.is_empty()) {
                self.complete(env, cluster, tally, number);
            }
        }
    }

    /// Lets the waiting warps go on if all that a barrier expects have arrived.
    fn complete(
        &mut self,
        env: &Environment<'_>,
        cluster: &mut ClusterState,
        tally: &mut Tally<'_>,
        number: usize,
    ) {
        let running = self.warps.iter().take(self.count).filter(|warp| warp.state != State::Done);
        let block = running.count() as u32 * LANES as u32;
        let Some(state) = self.barriers.get_mut(number) else { return };
        if state.threads < state.expected.unwrap_or(block) {
            return;
        }
        let done = std::mem::take(state);
        tally.counts.barriers += 1;
        cluster.events += 1;
        let first = self.state.rank as usize * env.warps;
        let arrived: Vec<usize> = done.arrived.iter().map(|warp| first + warp).collect();
        cluster.clocks.synchronize(&arrived);
        for (index, mask) in &done.waiting {
            if let Some(warp) = self.warps.get_mut(*index) {
                warp.state = State::Ready;
                warp.finish_reduction(&done, *mask);
            }
        }
    }
}

/// Whether what a warp of the block waits for has happened, or can be made to.
fn has_come(waiting: Waiting, block: &BlockState, cluster: &ClusterState) -> bool {
    match waiting {
        Waiting::Mbarrier { offset, phase } => block
            .mbarriers
            .get(&offset)
            .is_none_or(|barrier| barrier.is_over(phase) || barrier.lacks_only_copies()),
        Waiting::Cluster { phase } => cluster.barrier.phase > phase,
    }
}

impl Warp {
    /// Hands a barrier's result to the lanes that waited for it.
    fn finish_reduction(&mut self, barrier: &BarrierState, mask: u32) {
        let Some((how, target)) = self.reduction.take() else { return };
        match how {
            Reduction::Count => {
                for lane in lanes(mask) {
                    self.core.registers.set_lane(target, false, lane, u64::from(barrier.count));
                }
            }
            Reduction::And | Reduction::Or => {
                let holds = if how == Reduction::And { barrier.all } else { barrier.any };
                if let Some(bits) = self.core.registers.predicates.get_mut(target as usize) {
                    *bits = if holds { *bits | mask } else { *bits & !mask };
                }
            }
        }
    }
}
