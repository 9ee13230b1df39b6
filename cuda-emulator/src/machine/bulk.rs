//! Bulk copies: between device memory and shared memory, of lines and of tiles of tensors.

use crate::check::{Access, Problem};
use crate::count::WRITTEN;

use super::context::{Context, Trap};
use super::launch::SHARED_LIMIT;
use super::memory::Allocation;
use super::tensor_map::{RANK, Swizzle, TensorMap, TensorType};

/// How a reduction changes a value.
pub(crate) type Update = fn(u64, u64, u64) -> u64;

/// A copy to shared memory that has not arrived.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Where the first byte goes, before the swizzle.
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) swizzle: Swizzle,
    /// A reduction and the bytes of its elements.
    pub(crate) update: Option<(Update, usize)>,
    pub(crate) signal: Signal,
    pub(crate) at: u32,
}

/// What a copy tells its mbarrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The number of its bytes.
    Bytes,
    /// That one more thread has arrived.
    Arrival,
    /// Nothing: another one tells.
    Nothing,
}

/// A copy from shared to device memory that has not been done.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) target: Target,
    pub(crate) update: Option<(Update, usize)>,
    pub(crate) at: u32,
}

/// Where a store goes.
#[derive(Debug)]
pub(crate) enum Target {
    Line(u64),
    Tile(Box<TensorMap>, [i32; RANK]),
}

/// A part of a tile that lies in the tensor: where in the tile, its address, and bytes.
type Piece = (usize, u64, usize);

impl TensorMap {
    /// The parts of a tile that lie in the tensor, row by row.
    pub(crate) fn pieces(&self, coordinates: &[i32; RANK]) -> Vec<Piece> {
        let bytes = self.element.bytes();
        let rows: u64 = (1..self.rank()).map(|d| self.tile_size(d)).product();
        let row_bytes = self.row_bytes();
        // The part of a row that lies inside is the same for all rows.
        let start = i64::from(coordinates[0]);
        let size = i64::try_from(self.sizes.first().copied().unwrap_or(0)).unwrap_or(i64::MAX);
        let length = (row_bytes / bytes) as i64;
        let (first, end) = (start.max(0), (start + length).min(size));
        if first >= end {
            return Vec::new();
        }
        let mut all = Vec::new();
        'rows: for row in 0..rows {
            let mut rest = row;
            let mut address = self.address.wrapping_add(first as u64 * bytes);
            for (dimension, first) in coordinates.iter().enumerate().take(self.rank()).skip(1) {
                let size = self.tile_size(dimension);
                let step = rest % size * self.step(dimension);
                rest /= size;
                let index = i64::from(*first) + step as i64;
                let limit = self.sizes.get(dimension).copied().unwrap_or(1);
                if index < 0 || index as u64 >= limit {
                    continue 'rows;
                }
                let stride = self.strides.get(dimension - 1).copied().unwrap_or(0);
                address = address.wrapping_add((index as u64).wrapping_mul(stride));
            }
            let at = row * row_bytes + (first - start) as u64 * bytes;
            all.push((at as usize, address, ((end - first) as u64 * bytes) as usize));
        }
        all
    }

    /// What copies of tiles don't do.
    pub(crate) fn unsupported(&self) -> Option<String> {
        let span = self.swizzle.span();
        let bytes = self.tile_bytes();
        if bytes > SHARED_LIMIT as u64 {
            return Some(format!("a tile of {bytes} bytes, more than shared memory has"));
        }
        if self.interleave != 0 {
            return Some("interleaved tensors are not supported".to_owned());
        }
        if matches!(self.element, TensorType::Tfloat32 | TensorType::Tfloat32Ftz) {
            return Some(format!("elements of type {:?} are not supported", self.element));
        }
        if self.swizzle != Swizzle::None && self.row_bytes() < span {
            let bytes = self.row_bytes();
            return Some(format!("rows of {bytes} bytes under a swizzle of {span}"));
        }
        None
    }
}

impl<'m> Context<'_, 'm> {
    /// Bytes of device memory that lie in one allocation, for a copy.
    pub(crate) fn global_range(
        &mut self,
        lane: usize,
        address: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Option<(&'m Allocation, u64)>, Trap> {
        let Some(allocation) = self.env.memory.find(address, bytes) else {
            return self.outside(lane, address, bytes, access).map(|_| None);
        };
        if allocation.read_only && access.writes() {
            return self.refused(lane, address, bytes, access, true).map(|_| None);
        }
        let offset = address - allocation.base;
        self.watch_global(lane, allocation, offset, bytes, access);
        Ok(Some((allocation, offset)))
    }

    /// Counts the sectors of a piece of device memory that a copy moves.
    fn count_piece(&mut self, address: u64, bytes: u64, write: bool) {
        let (first, last) = (address / 32, address.saturating_add(bytes.max(1) - 1) / 32);
        let counts = &mut self.tally.counts;
        if write {
            counts.global_bytes_stored += bytes;
            counts.sectors_stored += last - first + 1;
        } else {
            counts.global_bytes_loaded += bytes;
            counts.sectors_loaded += last - first + 1;
        }
        if self.env.record_sectors {
            let flag = if write { WRITTEN } else { 0 };
            self.block.sectors.extend((first..=last).map(|sector| sector | flag));
        }
    }

    /// Reads a line of device memory.
    pub(crate) fn read_line(
        &mut self,
        lane: usize,
        address: u64,
        bytes: u64,
    ) -> Result<Vec<u8>, Trap> {
        let found = self.global_range(lane, address, bytes, Access::Read)?;
        let mut data = vec![0; bytes as usize];
        if let Some((allocation, offset)) = found {
            allocation.load_bytes(offset, &mut data);
        }
        self.count_piece(address, bytes, false);
        Ok(data)
    }

    /// Reads a tile; what lies outside of the tensor is filled.
    pub(crate) fn read_tile(
        &mut self,
        lane: usize,
        map: &TensorMap,
        coordinates: &[i32; RANK],
    ) -> Result<Vec<u8>, Trap> {
        // All bits set is a NaN in every format.
        let fill = if map.fill_nan { 0xff } else { 0 };
        let mut data = vec![fill; map.tile_bytes() as usize];
        for (at, address, bytes) in map.pieces(coordinates) {
            let line = self.read_line(lane, address, bytes as u64)?;
            if let Some(place) = data.get_mut(at..at + bytes) {
                place.copy_from_slice(&line);
            }
        }
        if map.element == TensorType::Float32Ftz {
            for word in data.as_chunks_mut::<4>().0 {
                *word = super::float::flush(f32::from_le_bytes(*word)).to_le_bytes();
            }
        }
        Ok(data)
    }

    /// Sends a copy on its way to shared memory of a block of the cluster.
    pub(crate) fn send(
        &mut self,
        lane: usize,
        rank: u32,
        mbarrier: u64,
        flight: Flight,
    ) -> Result<(), Trap> {
        let (warp, at) = (self.warp(), self.at);
        if rank != self.block.rank {
            self.visit(lane, rank, Access::Write)?;
        }
        let checks = self.env.checks;
        let (offset, bytes) = (flight.offset, flight.data.len() as u64);
        // Reductions of several threads may meet.
        let alone = flight.update.is_none();
        let Some((state, clocks)) = self.split(rank) else { return Ok(()) };
        let size = state.shared.len() as u64;
        if offset.saturating_add(bytes) > size {
            return self
                .outside_of("shared memory", size, lane, offset, bytes, Access::Write)
                .map(|_| ());
        }
        let Some(barrier) = state.mbarriers.get_mut(&mbarrier) else {
            return self.no_mbarrier(lane, mbarrier);
        };
        let (owner, time) = barrier.owner;
        barrier.fenced |= clocks.fenced(warp).get(owner).is_some_and(|fenced| *fenced >= time);
        let fenced = barrier.fenced;
        let finding = if checks.shadows_shared() {
            let (offset, bytes) = (offset as usize, bytes as usize);
            let access = Access::Write;
            let found = alone.then(|| state.shadow.access(clocks, offset, bytes, access, warp, at));
            state.shadow.expect(offset, bytes);
            found.flatten()
        } else {
            None
        };
        barrier.flights.push(flight);
        if checks.mbarriers && !fenced {
            self.note(lane, Problem::MbarrierUnfenced { offset: mbarrier }, None);
        }
        match finding {
            Some(finding) => self.tell(lane, finding, offset, bytes, Access::Write),
            None => Ok(()),
        }
    }

    /// Says that there is no mbarrier.
    pub(crate) fn no_mbarrier(&self, lane: usize, offset: u64) -> Result<(), Trap> {
        if self.env.checks.mbarriers {
            return Err(Trap::lane(lane, Problem::MbarrierUninitialized { offset }));
        }
        Ok(())
    }

    /// Lets the copies of an mbarrier of this block arrive, until a phase has ended.
    pub(crate) fn deliver(&mut self, mbarrier: u64) -> Result<(), Trap> {
        let block = &mut *self.block;
        let Some(barrier) = block.mbarriers.get_mut(&mbarrier) else { return Ok(()) };
        let flights = std::mem::take(&mut barrier.flights);
        let mut flights = flights.into_iter();
        for flight in flights.by_ref() {
            let bytes = flight.data.len() as u64;
            flight.write(&mut block.shared);
            if self.env.checks.shadows_shared() {
                let actor = barrier.actor;
                let time = self.cluster.clocks.copied(actor);
                let (offset, bytes) = (flight.offset as usize, bytes as usize);
                block.shadow.delivered(offset, bytes, (actor, time), flight.at);
                barrier.arriving().add(actor, time);
            }
            let over = match flight.signal {
                Signal::Bytes => barrier.complete(bytes),
                Signal::Arrival => barrier.arrive(1).map_err(Trap::warp)?,
                Signal::Nothing => false,
            };
            if over {
                self.cluster.events += 1;
                self.cluster.polls = 0;
                break;
            }
        }
        barrier.flights.extend(flights);
        Ok(())
    }

    /// Notes that a bulk store begins to read shared memory.
    pub(crate) fn begin_store(&mut self, lane: usize, store: Store) -> Result<(), Trap> {
        let (offset, bytes) = (store.offset, store.bytes);
        let size = self.block.shared.len() as u64;
        if offset.saturating_add(bytes) > size {
            return self
                .outside_of("shared memory", size, lane, offset, bytes, Access::Read)
                .map(|_| ());
        }
        self.begin_reading(lane, offset, bytes)?;
        self.core.stores.start(lane, store);
        Ok(())
    }

    /// Checks and marks shared memory that an asynchronous operation reads.
    pub(crate) fn begin_reading(
        &mut self,
        lane: usize,
        offset: u64,
        bytes: u64,
    ) -> Result<(), Trap> {
        if !self.env.checks.shadows_shared() {
            return Ok(());
        }
        let (warp, at) = (self.warp(), self.at);
        let (clocks, shadow) = (&self.cluster.clocks, &mut self.block.shadow);
        let found = shadow.begin_reading(clocks, offset as usize, bytes as usize, warp, at);
        found.map_or(Ok(()), |finding| self.tell(lane, finding, offset, bytes, Access::Read))
    }

    /// Unmarks shared memory that an asynchronous operation has read.
    pub(crate) fn end_reading(&mut self, offset: u64, bytes: u64, at: u32) {
        if self.env.checks.shadows_shared() {
            let warp = self.warp();
            let (clocks, shadow) = (&self.cluster.clocks, &mut self.block.shadow);
            shadow.end_reading(clocks, offset as usize, bytes as usize, warp, at);
        }
    }

    /// Does a bulk store.
    pub(crate) fn finish_store(&mut self, lane: usize, store: &Store) -> Result<(), Trap> {
        self.end_reading(store.offset, store.bytes, store.at);
        let (swizzle, pieces) = match &store.target {
            Target::Line(address) => (Swizzle::None, vec![(0, *address, store.bytes as usize)]),
            Target::Tile(map, coordinates) => (map.swizzle, map.pieces(coordinates)),
        };
        for (at, address, bytes) in pieces {
            let data: Vec<u8> = (0..bytes as u64)
                .map(|index| swizzle.apply(store.offset + at as u64 + index) as usize)
                .map(|from| self.block.shared.get(from).copied().unwrap_or(0))
                .collect();
            let access = if store.update.is_some() { Access::Atomic } else { Access::Write };
            let Some((allocation, offset)) =
                self.global_range(lane, address, bytes as u64, access)?
            else {
                continue;
            };
            match store.update {
                None => allocation.store_bytes(offset, &data),
                Some((update, size)) => {
                    for (index, element) in data.chunks_exact(size).enumerate() {
                        let mut value = [0; 8];
                        value[..size].copy_from_slice(element);
                        let value = u64::from_le_bytes(value);
                        let offset = offset + (index * size) as u64;
                        allocation.update(offset, size as u64, |old| update(old, value, 0));
                    }
                }
            }
            if !self.env.checks.uninitialized_global && !self.env.checks.global_races {
                allocation.shadow.initialize(offset, bytes as u64);
            }
            self.count_piece(address, bytes as u64, true);
        }
        Ok(())
    }
}

impl Flight {
    fn write(&self, shared: &mut [u8]) {
        if let Some((update, size)) = self.update {
            let at = self.offset as usize;
            let Some(place) = shared.get_mut(at..at + size) else { return };
            let (mut old, mut value) = ([0; 8], [0; 8]);
            old[..size].copy_from_slice(place);
            value[..self.data.len().min(8)].copy_from_slice(&self.data);
            let new = update(u64::from_le_bytes(old), u64::from_le_bytes(value), 0);
            place.copy_from_slice(&new.to_le_bytes()[..size]);
            return;
        }
        // The swizzle moves whole pieces of 16 bytes; short copies have none.
        for (index, piece) in self.data.chunks(16).enumerate() {
            let at = self.swizzle.apply(self.offset + 16 * index as u64) as usize;
            if let Some(place) = shared.get_mut(at..at + piece.len()) {
                place.copy_from_slice(piece);
            }
        }
    }
}
