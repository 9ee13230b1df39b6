//! Shared memory as instructions see it: of the own block, and of other blocks of the cluster.

use crate::check::{Access, Clocks, Finding, Problem};

use super::cluster::cluster_address;
use super::context::{BlockState, Context, Place, Trap};

impl<'m> Context<'_, 'm> {
    /// A place in shared memory, by its offset.
    #[inline(always)]
    pub(crate) fn shared(
        &mut self,
        lane: usize,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Place<'m>, Trap> {
        let size = self.block.shared.len() as u64;
        if offset.saturating_add(bytes) > size {
            if let Some((rank, offset)) = cluster_address(offset) {
                return self.peer(lane, rank, offset, bytes, access);
            }
            return self.outside_of("shared memory", size, lane, offset, bytes, access);
        }
        if !offset.is_multiple_of(bytes) {
            return self.refused(lane, offset, bytes, access, false);
        }
        if self.env.checks.shadows_shared() {
            self.watch_shared(lane, offset as usize, bytes as usize, access)?;
        }
        Ok(Place::Shared(offset as usize))
    }

    /// A place in the shared memory of a block of the cluster.
    #[cold]
    fn peer(
        &mut self,
        lane: usize,
        rank: u32,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Place<'m>, Trap> {
        if rank == self.block.rank {
            return self.shared(lane, offset, bytes, access);
        }
        self.visit(lane, rank, access)?;
        let (warp, at) = (self.warp(), self.at);
        let shadows = self.env.checks.shadows_shared();
        let Some((state, clocks)) = self.split(rank) else { return Ok(Place::Nowhere) };
        let size = state.shared.len() as u64;
        if offset.saturating_add(bytes) > size {
            return self.outside_of("shared memory", size, lane, offset, bytes, access);
        }
        if !offset.is_multiple_of(bytes) {
            return self.refused(lane, offset, bytes, access, false);
        }
        let offset = offset as usize;
        if shadows
            && let Some(finding) =
                state.shadow.access(clocks, offset, bytes as usize, access, warp, at)
        {
            self.tell(lane, finding, offset as u64, bytes, access)?;
        }
        Ok(Place::Peer(rank, offset))
    }

    /// The number of this warp in the cluster.
    #[inline(always)]
    pub(crate) fn warp(&self) -> usize {
        self.block.rank as usize * self.env.warps + self.core.index
    }

    /// A block of the cluster and the cluster's clocks.
    pub(crate) fn split(&mut self, rank: u32) -> Option<(&mut BlockState, &mut Clocks)> {
        let clocks = &mut self.cluster.clocks;
        if rank == self.block.rank {
            return Some((self.block, clocks));
        }
        self.cluster.states.get_mut(rank as usize).map(|state| (state, clocks))
    }

    #[inline(always)]
    fn watch_shared(
        &mut self,
        lane: usize,
        offset: usize,
        bytes: usize,
        access: Access,
    ) -> Result<(), Trap> {
        let (warp, at) = (self.warp(), self.at);
        match self.block.shadow.access(&self.cluster.clocks, offset, bytes, access, warp, at) {
            None => Ok(()),
            Some(finding) => self.tell(lane, finding, offset as u64, bytes as u64, access),
        }
    }

    /// Notes what the shadow of shared memory found, or stops the kernel.
    #[cold]
    pub(crate) fn tell(
        &mut self,
        lane: usize,
        finding: Finding,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<(), Trap> {
        let checks = &self.env.checks;
        let kind = access;
        let access = kind.name();
        let (wanted, problem, other) = match finding {
            Finding::Gap if checks.bounds => {
                let place = self.env.kernel.gap_name(offset);
                let problem = Problem::OutOfBounds { access, address: offset, bytes, place };
                return Err(Trap::lane(lane, problem));
            }
            Finding::Gap => return Ok(()),
            Finding::Mbarrier => {
                (checks.mbarriers, Problem::MbarrierTouched { access, offset }, None)
            }
            Finding::Uninitialized => {
                (checks.uninitialized_shared, Problem::UninitializedShared { offset, bytes }, None)
            }
            Finding::Pending => {
                (checks.async_copies, Problem::AsyncCopyPending { access, offset }, None)
            }
            Finding::Reading => {
                (checks.async_copies, Problem::AsyncReadPending { access, offset }, None)
            }
            Finding::Unfenced { at } => {
                (checks.proxy_fences, Problem::ProxyFence { offset }, Some(at))
            }
            Finding::Race { actor, at, .. } if !self.cluster.clocks.is_warp(actor) => {
                (checks.shared_races, Problem::CopyRace { access, offset }, Some(at))
            }
            Finding::Race { actor, at, earlier } => {
                let warp = u32::from(actor) % self.env.warps.max(1) as u32;
                let earlier = earlier.name();
                let problem = Problem::SharedRace { access, offset, earlier, warp };
                (checks.shared_races, problem, Some(at))
            }
        };
        if wanted {
            self.note(lane, problem, other);
        }
        Ok(())
    }

    /// Marks shared memory that a `cp.async` will write. Issuing a copy to bytes that others still
    /// use is a race, as if it wrote at once.
    pub(crate) fn issue_copy(
        &mut self,
        lane: usize,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Trap> {
        self.watch_shared(lane, offset, bytes, Access::Write)?;
        self.block.shadow.expect(offset, bytes);
        Ok(())
    }
}
