//! A block: turns of its warps, and barriers.

use crate::check::Problem;

use super::action::{BarrierKind, Reduction};
use super::context::{BlockState, Context, Environment, Tally, Trap, lanes};
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
}

impl Block {
    /// Begins block `number`, with memory left from earlier ones.
    pub(crate) fn start(&mut self, env: &Environment<'_>, number: u32, seed: Option<u64>) {
        let [x, y, _] = env.grid;
        let state = &mut self.state;
        state.number = number;
        state.index = [number % x, number / x % y, number / x / y];
        state.shared.clear();
        state.shared.resize(env.shared_bytes, FRESH);
        state.fenced = false;
        state.acquired = false;
        state.sectors.clear();
        let threads: u32 = env.block.iter().product();
        self.count = threads.div_ceil(LANES as u32) as usize;
        if env.checks.shadows_shared() {
            state.shadow.reset(env.shared_bytes, self.count);
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

    /// Runs until the end, or until `budget` instructions are used.
    pub(crate) fn run<'m>(
        &mut self,
        env: &Environment<'m>,
        tally: &mut Tally<'m>,
        budget: u64,
    ) -> Result<Progress, Box<Fault>> {
        let mut left = budget;
        loop {
            let Some(index) = self.choose() else {
                return self.nobody_ready();
            };
            if left == 0 {
                return Ok(Progress::Yielded);
            }
            let turn = match &mut self.random {
                Some(random) => 1 + random.below(400),
                None => TURN,
            };
            let Some(warp) = self.warps.get_mut(index) else { continue };
            let before = warp.core.executed;
            let pause = warp.run(env, &mut self.state, tally, turn.min(left));
            left = left.saturating_sub(warp.core.executed - before);
            match pause {
                Ok(Pause::Turn) => self.next = index + 1,
                Ok(Pause::Done) => self.warp_done(tally),
                Ok(Pause::Barrier { at, barrier, mask }) => {
                    self.arrive(env, tally, index, at, barrier, mask)
                        .map_err(|trap| self.fault(index, at, trap))?;
                }
                Err((at, trap)) => return Err(self.fault(index, at, trap)),
            }
        }
    }

    /// What to say when the launch has run for too long.
    pub(crate) fn timeout(&self, instructions: u64) -> Box<Fault> {
        let trap = Trap::warp(Problem::Timeout { instructions });
        let warp = self.next.saturating_sub(1);
        let at = self.warps.get(warp).map_or(0, Warp::at);
        self.fault(warp, at, trap)
    }

    fn choose(&mut self) -> Option<usize> {
        let ready = |warp: &Warp| warp.state == State::Ready;
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

    fn nobody_ready(&self) -> Result<Progress, Box<Fault>> {
        let waiting: Vec<usize> = (0..self.count)
            .filter(|index| {
                self.warps.get(*index).is_some_and(|warp| matches!(warp.state, State::Waiting(_)))
            })
            .collect();
        let Some(&first) = waiting.first() else { return Ok(Progress::Done) };
        let barrier = self.barriers.iter().find(|barrier| !barrier.waiting.is_empty());
        let problem = Problem::Deadlock { waiting: waiting.len() };
        let at = barrier.map_or(0, |barrier| barrier.at);
        Err(self.fault(first, at, Trap::warp(problem)))
    }

    fn fault(&self, warp: usize, at: u32, trap: Trap) -> Box<Fault> {
        let lane = trap.lane.unwrap_or(0);
        Box::new(Fault {
            problem: trap.problem,
            at,
            block: self.state.number,
            thread: warp * LANES + lane,
        })
    }

    fn arrive<'m>(
        &mut self,
        env: &Environment<'m>,
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
        if elsewhere && checks.barriers {
            let problem = Problem::MismatchedBarrier { barrier: number };
            let other = Some(state.at);
            let core = &mut warp.core;
            let mut context = Context { env, core, block: &mut self.state, tally, at };
            context.note(lane, problem, other);
        }
        self.next = index + 1;
        self.complete(tally, number as usize);
        Ok(())
    }

    /// Threads that have ended no longer count for barriers of the whole block.
    fn warp_done(&mut self, tally: &mut Tally<'_>) {
        for number in 0..BARRIERS {
            if self.barriers.get(number).is_some_and(|barrier| !barrier.waiting.is_empty()) {
                self.complete(tally, number);
            }
        }
    }

    /// Lets the waiting warps go on if all that a barrier expects have arrived.
    fn complete(&mut self, tally: &mut Tally<'_>, number: usize) {
        let running = self.warps.iter().take(self.count).filter(|warp| warp.state != State::Done);
        let block = running.count() as u32 * LANES as u32;
        let Some(state) = self.barriers.get_mut(number) else { return };
        if state.threads < state.expected.unwrap_or(block) {
            return;
        }
        let done = std::mem::take(state);
        tally.counts.barriers += 1;
        self.state.shadow.synchronize(&done.arrived);
        for (index, mask) in &done.waiting {
            if let Some(warp) = self.warps.get_mut(*index) {
                warp.state = State::Ready;
                warp.finish_reduction(&done, *mask);
            }
        }
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
