//! A cluster: blocks that run together and reach each other's shared memory. Without clusters
//! each block is a cluster of one.

use crate::check::{Access, Clock, Clocks, Problem};

use super::block::{Block, Fault, Progress};
use super::context::{BlockState, Context, Environment, Tally, Trap, Visit, lanes};
use super::random::Random;
use super::registers::LANES;

/// Bits of an offset into the shared memory of one block. Above them stands the rank plus one, or
/// zero for the own block.
const RANK_SHIFT: u32 = 24;
/// The most blocks of a cluster.
pub(crate) const CLUSTER_LIMIT: u32 = 16;
/// How often waits are given up, with nothing else happening, before the cluster is stuck.
const PATIENCE: u32 = 16;
/// How many tests of mbarriers in a row may fail before the cluster is stuck.
const POLLS: u64 = 1 << 16;
/// Instructions of a block of a cluster before the next one's turn.
const TURN: u64 = 1 << 14;

/// Rank and offset of an address that leads to a block of the cluster.
pub(crate) fn cluster_address(address: u64) -> Option<(u32, u64)> {
    let rank = u32::try_from(address >> RANK_SHIFT).ok()?.checked_sub(1)?;
    (rank < CLUSTER_LIMIT).then_some((rank, address & ((1 << RANK_SHIFT) - 1)))
}

/// The address of an offset into the shared memory of a block of the cluster.
pub(crate) fn map_address(rank: u32, address: u64) -> u64 {
    let offset = address & ((1 << RANK_SHIFT) - 1);
    u64::from(rank.wrapping_add(1)) << RANK_SHIFT | offset
}

/// What the blocks of a cluster share.
#[derive(Debug, Default)]
pub(crate) struct ClusterState {
    pub(crate) clocks: Clocks,
    /// The blocks that don't run at the moment, by rank; unused in a cluster of one.
    pub(crate) states: Vec<BlockState>,
    pub(crate) barrier: ClusterBarrier,
    /// How much has happened that others may wait for.
    pub(crate) events: u64,
    /// Failed tests of mbarriers since the last event.
    pub(crate) polls: u64,
}

/// The barrier of a cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterBarrier {
    /// Lanes that arrived in this phase, by warp.
    arrived: Vec<u32>,
    arriving: Clock,
    ended: Clock,
    pub(crate) phase: u64,
}

impl ClusterBarrier {
    fn reset(&mut self, warps: usize) {
        *self = Self::default();
        self.arrived.resize(warps, 0);
    }

    /// The lanes of a warp arrive; false if some had arrived before.
    pub(crate) fn arrive(&mut self, warp: usize, mask: u32) -> bool {
        let Some(lanes) = self.arrived.get_mut(warp) else { return false };
        let first = *lanes & mask == 0;
        *lanes |= mask;
        first
    }

    /// Whether the lanes of a warp have arrived in this phase.
    pub(crate) fn has_arrived(&self, warp: usize, mask: u32) -> bool {
        self.arrived.get(warp).is_some_and(|lanes| lanes & mask == mask)
    }

    pub(crate) fn arriving(&mut self) -> &mut Clock {
        &mut self.arriving
    }

    pub(crate) fn ended(&self) -> &Clock {
        &self.ended
    }
}

impl ClusterState {
    /// Ends the phase of the barrier if all threads that have not ended arrived. `live` has the
    /// lanes of each warp that have not ended.
    fn settle(&mut self, live: impl Iterator<Item = (usize, u32)>) {
        let barrier = &mut self.barrier;
        let mut any = false;
        for (warp, lanes) in live {
            let arrived = barrier.arrived.get(warp).copied().unwrap_or(0);
            if lanes & !arrived != 0 {
                return;
            }
            any |= arrived != 0;
        }
        if any {
            barrier.arrived.fill(0);
            barrier.ended = std::mem::take(&mut barrier.arriving);
            barrier.phase += 1;
            self.events += 1;
        }
    }
}

/// A cluster that runs, or has yielded.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    blocks: Vec<Block>,
    pub(crate) state: ClusterState,
    size: usize,
    random: Option<Random>,
    next: usize,
    /// Waits given up since the last event, and the number of events then.
    patience: u32,
    events: u64,
}

impl Cluster {
    /// Begins cluster `number`, with memory left from earlier ones.
    pub(crate) fn start(&mut self, env: &Environment<'_>, number: u32, seed: Option<u64>) {
        let [cx, cy, cz] = env.cluster;
        let [across, along] = [env.grid[0] / cx, env.grid[1] / cy];
        let first =
            [number % across * cx, number / across % along * cy, number / across / along * cz];
        self.size = (cx * cy * cz) as usize;
        if self.blocks.len() < self.size {
            self.blocks.resize_with(self.size, Block::default);
        }
        self.state.clocks.reset(env.warps * self.size);
        self.state.barrier.reset(env.warps * self.size);
        self.state.states.clear();
        self.state.events = 0;
        self.state.polls = 0;
        for (rank, block) in self.blocks.iter_mut().take(self.size).enumerate() {
            let rank = rank as u32;
            let index =
                [first[0] + rank % cx, first[1] + rank / cx % cy, first[2] + rank / cx / cy];
            let number = index[0] + env.grid[0] * (index[1] + env.grid[1] * index[2]);
            block.start(env, number, rank, seed);
        }
        if self.size > 1 {
            for block in self.blocks.iter_mut().take(self.size) {
                self.state.states.push(std::mem::take(&mut block.state));
            }
        }
        self.random = seed.map(|seed| Random::new(!seed ^ u64::from(number) << 20));
        self.next = 0;
        self.patience = 0;
        self.events = 0;
    }

    /// Runs until the end, or until `budget` instructions are used.
    pub(crate) fn run<'m>(
        &mut self,
        env: &Environment<'m>,
        tally: &mut Tally<'m>,
        budget: u64,
    ) -> Result<Progress, Box<Fault>> {
        let mut left = budget;
        let turn = if self.size == 1 { budget } else { TURN };
        loop {
            let (mut moved, mut done) = (false, 0);
            let first = match &mut self.random {
                Some(random) => random.below(self.size as u64) as usize,
                None => self.next,
            };
            for step in 0..self.size {
                let rank = (first + step) % self.size;
                let before = tally.counts.warp_instructions();
                let progress = self.run_block(env, tally, rank, turn.min(left))?;
                let used = tally.counts.warp_instructions() - before;
                left = left.saturating_sub(used.max(1));
                match progress {
                    Progress::Done => done += 1,
                    Progress::Yielded => moved = true,
                    Progress::Stuck => moved |= used > 0,
                }
                if self.state.polls > POLLS {
                    return Err(self.deadlock());
                }
                if left == 0 {
                    self.next = rank + 1;
                    return Ok(Progress::Yielded);
                }
            }
            if done == self.size {
                return Ok(Progress::Done);
            }
            if !moved {
                self.give_up_waits()?;
            }
        }
    }

    fn run_block<'m>(
        &mut self,
        env: &Environment<'m>,
        tally: &mut Tally<'m>,
        rank: usize,
        budget: u64,
    ) -> Result<Progress, Box<Fault>> {
        let Some(block) = self.blocks.get_mut(rank) else { return Ok(Progress::Done) };
        let state = &mut self.state;
        if let Some(own) = state.states.get_mut(rank) {
            std::mem::swap(own, &mut block.state);
        }
        let result = block.run(env, state, tally, budget);
        if let Some(own) = state.states.get_mut(rank) {
            std::mem::swap(own, &mut block.state);
        }
        let live = self.blocks.iter().take(self.size).enumerate().flat_map(|(rank, block)| {
            block.live().map(move |(warp, lanes)| (rank * env.warps + warp, lanes))
        });
        self.state.settle(live);
        result
    }

    /// Nobody can go on: waits that may give up do so, as `mbarrier.try_wait` does after a time.
    fn give_up_waits(&mut self) -> Result<(), Box<Fault>> {
        if self.state.events != self.events {
            self.events = self.state.events;
            self.patience = 0;
        }
        self.patience += 1;
        let mut any = false;
        for block in self.blocks.iter_mut().take(self.size) {
            any |= block.give_up_waits();
        }
        if any && self.patience <= PATIENCE { Ok(()) } else { Err(self.deadlock()) }
    }

    /// What to say when nobody will ever go on: the first block that waits.
    fn deadlock(&self) -> Box<Fault> {
        let blocks = || self.blocks.iter().take(self.size).enumerate();
        let waiting = blocks().map(|(_, block)| block.waiting()).sum();
        let state = |rank: usize, block| match self.state.states.get(rank) {
            Some(state) => state,
            None => Block::state(block),
        };
        blocks()
            .find_map(|(rank, block)| block.stuck_at_mbarrier(state(rank, block), waiting))
            .or_else(|| blocks().find_map(|(_, block)| block.stuck(waiting)))
            .unwrap_or_else(|| self.timeout(0))
    }

    /// What to say when the launch has run for too long.
    pub(crate) fn timeout(&self, instructions: u64) -> Box<Fault> {
        let running =
            self.blocks.iter().take(self.size).find(|block| block.live().next().is_some());
        running.or(self.blocks.first()).map_or_else(
            || {
                Box::new(Fault {
                    problem: Problem::Timeout { instructions },
                    at: 0,
                    block: 0,
                    thread: 0,
                })
            },
            |block| block.timeout(instructions),
        )
    }

    /// The blocks that have ended, to take from them what they recorded.
    pub(crate) fn states(&mut self) -> impl Iterator<Item = &mut BlockState> {
        let Self { blocks, state, size, .. } = self;
        let alone = if *size == 1 { 1 } else { 0 };
        state.states.iter_mut().chain(blocks.iter_mut().take(alone).map(|block| &mut block.state))
    }
}

impl Context<'_, '_> {
    /// Checks and notes a use of the shared memory of another block.
    pub(crate) fn visit(&mut self, lane: usize, rank: u32, access: Access) -> Result<(), Trap> {
        let (warp, at, warps) = (self.warp(), self.at, self.env.warps);
        let (block, thread) = (self.block.number, self.core.index * LANES + lane);
        let size = self.cluster.states.len().max(1) as u32;
        let checks = self.env.checks;
        let seen = self.cluster.clocks.seen(warp);
        let time = seen.get(warp).copied().unwrap_or(0);
        let first = rank as usize * warps;
        let begun = seen.iter().skip(first).take(warps).any(|time| *time > 0);
        let Some(state) = self.cluster.states.get_mut(rank as usize) else {
            return Err(Trap::lane(lane, Problem::ClusterRank { rank, size }));
        };
        if !checks.clusters {
            return Ok(());
        }
        if state.ended {
            let access = access.name();
            return Err(Trap::lane(lane, Problem::ClusterEnded { access, rank }));
        }
        let visit = Visit { warp, time, at, access, block, thread };
        match state.visits.iter_mut().find(|old| old.warp == warp) {
            Some(old) => *old = visit,
            None => state.visits.push(visit),
        }
        if !begun {
            self.note(lane, Problem::ClusterNotBegun { access: access.name(), rank }, None);
        }
        Ok(())
    }

    /// `barrier.cluster.arrive`.
    pub(crate) fn arrive_at_cluster(&mut self, mask: u32, releases: bool) -> Result<(), Trap> {
        let (warp, lane) = (self.warp(), lanes(mask).next().unwrap_or(0));
        let cluster = &mut *self.cluster;
        if !cluster.barrier.arrive(warp, mask) {
            return Err(Trap::lane(lane, Problem::ClusterBarrier { operation: "arrive" }));
        }
        if releases {
            cluster.clocks.release(warp, cluster.barrier.arriving());
        }
        Ok(())
    }
}
