//! What instructions work on beyond registers: memory, the block, and what watches and counts.

use std::collections::{BTreeMap, HashMap};
use std::mem::{Discriminant, discriminant};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::check::{Access, Accessor, Checks, Problem, SharedShadow};
use crate::count::{Counts, Sectors, wavefronts};
use crate::ptx::Space;

use super::bulk::Store;
use super::cluster::ClusterState;
use super::groups::Groups;
use super::kernel::Kernel;
use super::mbarrier::{Mbarrier, Phase};
use super::memory::{Allocation, Near, View};
use super::names::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use super::ops::Wgmma;
use super::registers::{LANES, Registers};
use super::stack::Saved;

/// Why a warp can't go on.
#[derive(Debug)]
pub(crate) struct Trap {
    pub(crate) problem: Problem,
    pub(crate) lane: Option<usize>,
}

impl Trap {
    pub(crate) fn lane(lane: usize, problem: Problem) -> Self {
        Self { problem, lane: Some(lane) }
    }

    pub(crate) fn warp(problem: Problem) -> Self {
        Self { problem, lane: None }
    }
}

/// What is the same for all blocks of a launch.
#[derive(Debug)]
pub(crate) struct Environment<'m> {
    pub(crate) kernel: &'m Kernel,
    pub(crate) memory: View<'m>,
    pub(crate) parameters: Vec<u8>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Blocks of a cluster along x, y and z.
    pub(crate) cluster: [u32; 3],
    /// Warps of a block.
    pub(crate) warps: usize,
    /// Shared memory with what lies between variables.
    pub(crate) shared_bytes: usize,
    /// Shared memory as a device has it.
    pub(crate) total_shared: u32,
    pub(crate) dynamic_shared: u32,
    pub(crate) checks: Checks,
    pub(crate) count_memory: bool,
    pub(crate) record_sectors: bool,
    pub(crate) epoch: u64,
    pub(crate) releases: Vec<AtomicU8>,
    pub(crate) perturb: Option<u32>,
}

/// What is the same for all warps of a block.
#[derive(Debug, Default)]
pub(crate) struct BlockState {
    /// Its number in the grid.
    pub(crate) number: u32,
    pub(crate) index: [u32; 3],
    /// Its rank in its cluster.
    pub(crate) rank: u32,
    pub(crate) shared: Vec<u8>,
    pub(crate) shadow: SharedShadow,
    /// By their offsets.
    pub(crate) mbarriers: BTreeMap<u64, Mbarrier>,
    /// Whether all of its threads have ended.
    pub(crate) ended: bool,
    /// The last uses of its shared memory by warps of other blocks.
    pub(crate) visits: Vec<Visit>,
    /// For each warpgroup, the `wgmma` that its warps execute, in order.
    pub(crate) warpgroups: Vec<Vec<u32>>,
    /// Whether a fence was executed since the block last published its writes.
    pub(crate) fenced: bool,
    /// Whether the block took part in a synchronization through an atomic.
    pub(crate) acquired: bool,
    /// The sectors of device memory that the block touched, for the L2 model.
    pub(crate) sectors: Vec<u64>,
}

/// What a host thread gathers over the blocks that it runs.
#[derive(Debug, Default)]
pub(crate) struct Tally<'m> {
    pub(crate) counts: Counts,
    pub(crate) findings: HashMap<(u32, Discriminant<Problem>), Found>,
    /// For each instruction: passes or sectors, the ideal, and executions.
    pub(crate) conflicts: HashMap<u32, [u64; 3]>,
    pub(crate) scattered: HashMap<u32, [u64; 3]>,
    /// The allocation that was used last.
    recent: Option<&'m Allocation>,
}

/// A problem found, the first time and how often.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) problem: Problem,
    pub(crate) block: u32,
    pub(crate) thread: usize,
    /// The instruction of the other access of a race.
    pub(crate) other: Option<u32>,
    pub(crate) count: u64,
}

/// A use of the shared memory of another block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visit {
    /// The warp of the cluster, and its time.
    pub(crate) warp: usize,
    pub(crate) time: u32,
    pub(crate) at: u32,
    pub(crate) access: Access,
    pub(crate) block: u32,
    pub(crate) thread: usize,
}

/// What a warp waits for besides barriers of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// An mbarrier of its block.
    Mbarrier { offset: u64, phase: Phase },
    /// A phase of the cluster's barrier.
    Cluster { phase: u64 },
}

/// A copy of `cp.async` on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy {
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    pub(crate) data: [u8; 16],
}

/// A warp's own state, as far as instructions see it.
#[derive(Debug, Default)]
pub(crate) struct Core {
    pub(crate) registers: Registers,
    pub(crate) index: usize,
    /// Lanes whose threads have not ended.
    pub(crate) live: u32,
    /// Local memory, one lane after the other.
    pub(crate) local: Vec<u8>,
    /// `cp.async` on their way.
    pub(crate) copies: Groups<Copy>,
    /// Bulk stores on their way.
    pub(crate) stores: Groups<Store>,
    pub(crate) wgmma: Wgmma,
    /// What it waits for, and whether that took too long.
    pub(crate) waiting: Option<Waiting>,
    pub(crate) expired: bool,
    /// Bytes of frames of each lane, and what functions that are active twice held.
    pub(crate) stack: [usize; LANES],
    pub(crate) saved: Vec<Saved>,
    /// The phase of the cluster's barrier that it waited for last.
    pub(crate) cluster_waits: u64,
    /// Instructions executed.
    pub(crate) executed: u64,
}

/// What an instruction is executed with.
#[derive(Debug)]
pub(crate) struct Context<'a, 'm> {
    pub(crate) env: &'a Environment<'m>,
    pub(crate) core: &'a mut Core,
    pub(crate) block: &'a mut BlockState,
    pub(crate) cluster: &'a mut ClusterState,
    pub(crate) tally: &'a mut Tally<'m>,
    /// The instruction.
    pub(crate) at: u32,
}

/// A place that an access goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'m> {
    Global(&'m Allocation, u64),
    Shared(usize),
    /// Shared memory of another block of the cluster, by its rank.
    Peer(u32, usize),
    Local(usize),
    Parameter(usize),
    /// Nowhere: reads give zeros.
    Nowhere,
}

/// The lanes of a mask.
#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            lane
        })
    })
}

impl<'m> Context<'_, 'm> {
    /// Notes a problem that doesn't stop the kernel.
    pub(crate) fn note(&mut self, lane: usize, problem: Problem, other: Option<u32>) {
        let (block, thread) = (self.block.number, self.core.index * LANES + lane);
        self.tally
            .findings
            .entry((self.at, discriminant(&problem)))
            .or_insert(Found { problem, block, thread, other, count: 0 })
            .count += 1;
    }

    /// Notes a problem of another instruction and thread.
    pub(crate) fn note_at(&mut self, at: u32, (block, thread): (u32, usize), problem: Problem) {
        self.tally
            .findings
            .entry((at, discriminant(&problem)))
            .or_insert(Found { problem, block, thread, other: None, count: 0 })
            .count += 1;
    }

    /// Where an access of a lane goes. Notes what checks find, stops where a device would.
    #[inline(always)]
    pub(crate) fn place(
        &mut self,
        space: Space,
        lane: usize,
        address: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Place<'m>, Trap> {
        match space {
            Space::Global | Space::Const => self.global(lane, address, bytes, access),
            Space::Shared => self.shared(lane, address, bytes, access),
            Space::Local => self.local(lane, address, bytes, access),
            Space::Param => self.parameter(lane, address, bytes, access),
            Space::Generic => match address {
                SHARED_WINDOW..LOCAL_WINDOW => {
                    self.shared(lane, address - SHARED_WINDOW, bytes, access)
                }
                LOCAL_WINDOW..PARAM_WINDOW => {
                    self.local(lane, address - LOCAL_WINDOW, bytes, access)
                }
                PARAM_WINDOW.. if address < PARAM_WINDOW + WINDOW => {
                    self.parameter(lane, address - PARAM_WINDOW, bytes, access)
                }
                _ => self.global(lane, address, bytes, access),
            },
        }
    }

    #[inline(always)]
    fn global(
        &mut self,
        lane: usize,
        address: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Place<'m>, Trap> {
        let recent = self.tally.recent.filter(|recent| recent.holds(address, bytes));
        let allocation = match recent {
            Some(recent) => recent,
            None => match self.env.memory.find(address, bytes) {
                Some(found) => {
                    self.tally.recent = Some(found);
                    found
                }
                None => return self.outside(lane, address, bytes, access),
            },
        };
        let offset = address - allocation.base;
        if !offset.is_multiple_of(bytes) || allocation.read_only && access.writes() {
            return self.refused(lane, address, bytes, access, allocation.read_only);
        }
        let checks = &self.env.checks;
        if checks.uninitialized_global || checks.global_races {
            self.watch_global(lane, allocation, offset, bytes, access);
        } else if access.writes() {
            allocation.shadow.initialize(offset, bytes);
        }
        Ok(Place::Global(allocation, offset))
    }

    pub(crate) fn watch_global(
        &mut self,
        lane: usize,
        allocation: &Allocation,
        offset: u64,
        bytes: u64,
        access: Access,
    ) {
        let address = allocation.base + offset;
        if access.reads()
            && self.env.checks.uninitialized_global
            && !allocation.shadow.is_initialized(offset, bytes)
        {
            self.note(lane, Problem::UninitializedGlobal { address, bytes }, None);
        }
        if access.writes() {
            allocation.shadow.initialize(offset, bytes);
        }
        // A grid of one block has nobody to race with.
        if self.env.checks.global_races && self.env.releases.len() > 1 && !allocation.read_only {
            let by = Accessor {
                epoch: self.env.epoch,
                block: self.block.number,
                acquired: self.block.acquired,
                releases: &self.env.releases,
            };
            if let Some(conflict) = allocation.shadow.access(offset, bytes, access, &by) {
                let problem = Problem::GlobalRace {
                    access: access.name(),
                    address,
                    earlier: conflict.earlier.name(),
                    block: conflict.block,
                };
                self.note(lane, problem, None);
            }
        }
    }

    #[cold]
    pub(crate) fn outside(
        &self,
        lane: usize,
        address: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Place<'m>, Trap> {
        if !self.env.checks.bounds {
            return Ok(Place::Nowhere);
        }
        let access = access.name();
        let place = match self.env.memory.near(address) {
            Near::Freed { bytes: size, .. } => {
                return Err(Trap::lane(
                    lane,
                    Problem::UseAfterFree { access, address, bytes, size },
                ));
            }
            Near::After { base, bytes } => {
                let offset = address - base;
                format!("offset {offset} of an allocation of {bytes} bytes")
            }
            Near::OfPeer => "memory of another device, to which there is no access".to_owned(),
            Near::Nothing => "where nothing was ever allocated".to_owned(),
        };
        Err(Trap::lane(lane, Problem::OutOfBounds { access, address, bytes, place }))
    }

    #[cold]
    pub(crate) fn refused(
        &self,
        lane: usize,
        address: u64,
        bytes: u64,
        access: Access,
        read_only: bool,
    ) -> Result<Place<'m>, Trap> {
        if !self.env.checks.bounds {
            return Ok(Place::Nowhere);
        }
        let problem = if read_only && access.writes() {
            Problem::ReadOnly { address }
        } else {
            Problem::Misaligned { access: access.name(), address, bytes }
        };
        Err(Trap::lane(lane, problem))
    }

    fn local(
        &mut self,
        lane: usize,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Place<'m>, Trap> {
        let size = self.env.kernel.local_bytes as u64;
        if offset.saturating_add(bytes) > size {
            return self.outside_of("local memory", size, lane, offset, bytes, access);
        }
        if !offset.is_multiple_of(bytes) {
            return self.refused(lane, offset, bytes, access, false);
        }
        Ok(Place::Local(lane * self.env.kernel.local_bytes + offset as usize))
    }

    fn parameter(
        &mut self,
        lane: usize,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Place<'m>, Trap> {
        let size = self.env.parameters.len() as u64;
        if offset.saturating_add(bytes) > size {
            return self.outside_of("the parameters", size, lane, offset, bytes, access);
        }
        if access.writes() || !offset.is_multiple_of(bytes) {
            return self.refused(lane, offset, bytes, access, access.writes());
        }
        Ok(Place::Parameter(offset as usize))
    }

    #[cold]
    pub(crate) fn outside_of(
        &self,
        what: &str,
        size: u64,
        lane: usize,
        address: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Place<'m>, Trap> {
        if !self.env.checks.bounds {
            return Ok(Place::Nowhere);
        }
        let place = format!("outside of the {size} bytes of {what}");
        let access = access.name();
        Err(Trap::lane(lane, Problem::OutOfBounds { access, address, bytes, place }))
    }

    /// Loads 1, 2, 4 or 8 bytes, `offset` bytes into a place.
    #[inline(always)]
    pub(crate) fn load(&self, place: Place<'m>, offset: usize, bytes: usize) -> u64 {
        match place {
            Place::Global(allocation, at) => allocation.load(at + offset as u64, bytes as u64),
            Place::Shared(at) => load_from(&self.block.shared, at + offset, bytes),
            Place::Peer(rank, at) => self
                .cluster
                .states
                .get(rank as usize)
                .map_or(0, |state| load_from(&state.shared, at + offset, bytes)),
            Place::Local(at) => load_from(&self.core.local, at + offset, bytes),
            Place::Parameter(at) => load_from(&self.env.parameters, at + offset, bytes),
            Place::Nowhere => 0,
        }
    }

    /// Stores the low 1, 2, 4 or 8 bytes, `offset` bytes into a place.
    #[inline(always)]
    pub(crate) fn store(&mut self, place: Place<'m>, offset: usize, bytes: usize, value: u64) {
        match place {
            Place::Global(allocation, at) => {
                allocation.store(at + offset as u64, bytes as u64, value);
            }
            Place::Shared(at) => store_to(&mut self.block.shared, at + offset, bytes, value),
            Place::Peer(rank, at) => {
                if let Some(state) = self.cluster.states.get_mut(rank as usize) {
                    store_to(&mut state.shared, at + offset, bytes, value);
                }
            }
            Place::Local(at) => store_to(&mut self.core.local, at + offset, bytes, value),
            Place::Parameter(_) | Place::Nowhere => {}
        }
    }

    /// Loads 16 bytes.
    #[inline(always)]
    pub(crate) fn load_16(&self, place: Place<'m>) -> [u8; 16] {
        if let Place::Shared(at) = place
            && let Some(bytes) = self.block.shared.get(at..).and_then(<[u8]>::first_chunk)
        {
            return *bytes;
        }
        bytemuck::cast([self.load(place, 0, 8).to_le_bytes(), self.load(place, 8, 8).to_le_bytes()])
    }

    /// Stores 16 bytes.
    #[inline(always)]
    pub(crate) fn store_16(&mut self, place: Place<'m>, bytes: [u8; 16]) {
        let [low, high]: [[u8; 8]; 2] = bytemuck::cast(bytes);
        self.store(place, 0, 8, u64::from_le_bytes(low));
        self.store(place, 8, 8, u64::from_le_bytes(high));
    }

    /// Counts a warp's access of device memory.
    pub(crate) fn count_global(&mut self, sectors: &Sectors, bytes: u64, write: bool) {
        let touched = sectors.all().len() as u64;
        let counts = &mut self.tally.counts;
        if write {
            counts.global_bytes_stored += bytes;
            counts.sectors_stored += touched;
        } else {
            counts.global_bytes_loaded += bytes;
            counts.sectors_loaded += touched;
        }
        if self.env.checks.coalescing {
            let entry = self.tally.scattered.entry(self.at).or_default();
            entry[0] += touched;
            entry[1] += bytes.div_ceil(32);
            entry[2] += 1;
        }
        if self.env.record_sectors {
            let flag = if write { crate::count::WRITTEN } else { 0 };
            self.block.sectors.extend(sectors.all().iter().map(|sector| sector | flag));
        }
    }

    /// Counts a warp's access of shared memory.
    pub(crate) fn count_shared(&mut self, offsets: &[u64; LANES], mask: u32, bytes: u64) {
        let (passes, ideal) = wavefronts(offsets, mask, bytes);
        self.add_wavefronts(passes, ideal);
    }

    pub(crate) fn add_wavefronts(&mut self, passes: u64, ideal: u64) {
        let counts = &mut self.tally.counts;
        counts.shared_accesses += 1;
        counts.shared_wavefronts += passes;
        counts.shared_wavefronts_ideal += ideal;
        if passes > ideal && self.env.checks.bank_conflicts {
            let entry = self.tally.conflicts.entry(self.at).or_default();
            entry[0] += passes;
            entry[1] += ideal;
            entry[2] += 1;
        }
    }

    /// A fence: what the block wrote before it can be published.
    pub(crate) fn fence(&mut self) {
        self.block.fenced = true;
    }

    /// An atomic on device memory: publishes what a fence has covered, and sees what other
    /// blocks published.
    pub(crate) fn synchronize_blocks(&mut self, releases: bool) {
        self.block.acquired = true;
        if (self.block.fenced || releases)
            && let Some(count) = self.env.releases.get(self.block.number as usize)
        {
            count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
            self.block.fenced = false;
        }
    }

    /// Fails unless all lanes that `mask` names, and that have not ended, are among `active`.
    pub(crate) fn require_lanes(&self, mask: u32, active: u32) -> Result<(), Trap> {
        if !self.env.checks.divergence {
            return Ok(());
        }
        let missing = mask & self.core.live & !active;
        if missing != 0 {
            return Err(Trap::warp(Problem::LanesMissing { mask, missing }));
        }
        match lanes(active & !mask).next() {
            Some(lane) => Err(Trap::lane(lane, Problem::LaneNotNamed { mask })),
            None => Ok(()),
        }
    }
}

#[inline(always)]
fn load_from(memory: &[u8], at: usize, bytes: usize) -> u64 {
    let Some(rest) = memory.get(at..at + bytes) else { return 0 };
    let mut value = [0; 8];
    match bytes {
        4 => value[..4].copy_from_slice(rest),
        8 => value.copy_from_slice(rest),
        _ => value[..bytes].copy_from_slice(rest),
    }
    u64::from_le_bytes(value)
}

#[inline(always)]
fn store_to(memory: &mut [u8], at: usize, bytes: usize, value: u64) {
    let Some(rest) = memory.get_mut(at..at + bytes) else { return };
    match bytes {
        4 => rest.copy_from_slice(&(value as u32).to_le_bytes()),
        8 => rest.copy_from_slice(&value.to_le_bytes()),
        _ => rest.copy_from_slice(&value.to_le_bytes()[..bytes]),
    }
}
