//! Device memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use bytemuck::{NoUninit, Pod};

use crate::check::{EPOCHS, GlobalShadow};

/// Where device addresses begin. Nothing of the host is mapped there, so a host that takes a
/// device address for a pointer faults.
const FIRST: u64 = 0x7000_0000_0000;
/// How far apart the addresses of devices begin.
const APART: u64 = 1 << 38;
/// Addresses between two allocations that belong to neither.
const GAP: u64 = 2 << 20;
/// What fresh device memory holds.
const FRESH: u8 = 0xcb;

/// Why a request of the host was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The device has not that much memory left.
    #[error("{bytes} bytes wanted, {free} free")]
    Full {
        /// Bytes wanted.
        bytes: u64,
        /// Bytes free.
        free: u64,
    },
    /// Nothing is allocated there, or less than was asked for.
    #[error("{bytes} bytes at {address:#x} are not inside a live allocation{}", freed_note(*.freed))]
    Outside {
        /// The first address.
        address: u64,
        /// Bytes from there on.
        bytes: u64,
        /// Whether memory there was freed.
        freed: bool,
    },
    /// Only the address that an allocation gave can be freed.
    #[error("{address:#x} is not the beginning of a live allocation{}", freed_note(*.freed))]
    NotAllocated {
        /// The address.
        address: u64,
        /// Whether it was freed before.
        freed: bool,
    },
}

fn freed_note(freed: bool) -> &'static str {
    if freed { " (freed before)" } else { "" }
}

/// The memory of a device.
///
/// Addresses are never given out twice, so a use after free is always found.
#[derive(Debug)]
pub struct Memory {
    live: BTreeMap<u64, Arc<Allocation>>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    used: u64,
    capacity: u64,
    launches: AtomicU64,
}

/// A piece of device memory. Kernels of several host threads use it at once, as on a device;
/// every access is atomic, so that a race in a kernel is no race in this program.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    /// Constant memory.
    pub(crate) read_only: bool,
    cells: Box<[AtomicU64]>,
    pub(crate) shadow: GlobalShadow,
}

impl Default for Memory {
    fn default() -> Self {
        Self::with_capacity(1 << 40)
    }
}

impl Memory {
    /// Memory of at most `capacity` bytes. The host's own memory is taken as it is allocated.
    pub fn with_capacity(capacity: u64) -> Self {
        Self::of_device(capacity, 0)
    }

    /// Memory of one of several devices, whose addresses are distinct. Devices from the 64th on
    /// share theirs.
    pub fn of_device(capacity: u64, device: u64) -> Self {
        let first = FIRST + device % 64 * APART;
        Self {
            live: BTreeMap::new(),
            freed: BTreeMap::new(),
            next: first,
            used: 0,
            capacity,
            launches: AtomicU64::new(0),
        }
    }

    /// Bytes allocated now.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The most bytes that can be allocated.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Number of live allocations.
    pub fn allocations(&self) -> usize {
        self.live.len()
    }

    /// Allocates `bytes`, aligned to 512, and gives their address.
    ///
    /// # Errors
    ///
    /// When the capacity would be exceeded.
    pub fn allocate(&mut self, bytes: u64) -> Result<u64, MemoryError> {
        self.allocate_as(bytes, false)
    }

    pub(crate) fn allocate_as(&mut self, bytes: u64, read_only: bool) -> Result<u64, MemoryError> {
        let free = self.capacity - self.used;
        let words = usize::try_from(bytes.div_ceil(8)).unwrap_or(usize::MAX);
        if bytes > free || bytes > 1 << 44 {
            return Err(MemoryError::Full { bytes, free });
        }
        let mut cells = Vec::new();
        cells.try_reserve_exact(words).map_err(|_| MemoryError::Full { bytes, free })?;
        let pattern = u64::from_ne_bytes([FRESH; 8]);
        cells.resize_with(words, || AtomicU64::new(pattern));
        let base = self.next;
        self.next = (base + bytes + GAP).next_multiple_of(512);
        self.used += bytes;
        let allocation = Allocation {
            base,
            bytes,
            read_only,
            cells: cells.into_boxed_slice(),
            shadow: GlobalShadow::new(bytes),
        };
        self.live.insert(base, Arc::new(allocation));
        Ok(base)
    }

    /// Frees what [`Self::allocate`] gave.
    ///
    /// # Errors
    ///
    /// When `address` isn't the beginning of a live allocation.
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let Some(allocation) = self.live.remove(&address) else {
            let freed = self.was_freed(address);
            return Err(MemoryError::NotAllocated { address, freed });
        };
        self.used -= allocation.bytes;
        self.freed.insert(address, allocation.bytes);
        Ok(())
    }

    /// Copies bytes of the host to the device.
    ///
    /// # Errors
    ///
    /// When the destination isn't inside of one live allocation; nothing is copied then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let (allocation, offset) = self.range(address, bytes.len() as u64)?;
        allocation.store_bytes(offset, bytes);
        allocation.shadow.initialize(offset, bytes.len() as u64);
        Ok(())
    }

    /// Copies bytes of the device to the host.
    ///
    /// # Errors
    ///
    /// When the source isn't inside of one live allocation; nothing is copied then.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let (allocation, offset) = self.range(address, bytes.len() as u64)?;
        allocation.load_bytes(offset, bytes);
        Ok(())
    }

    /// Allocates room for `values` and copies them there.
    ///
    /// # Errors
    ///
    /// When the capacity would be exceeded.
    pub fn upload<T: NoUninit>(&mut self, values: &[T]) -> Result<u64, MemoryError> {
        let bytes = bytemuck::cast_slice(values);
        let address = self.allocate(bytes.len() as u64)?;
        self.write(address, bytes)?;
        Ok(address)
    }

    /// Copies `count` values to the host.
    ///
    /// # Errors
    ///
    /// When they aren't inside of one live allocation.
    pub fn download<T: Pod>(&self, address: u64, count: usize) -> Result<Vec<T>, MemoryError> {
        // Asked first: a count beyond the allocation must not take memory of the host.
        self.range(address, (count as u64).saturating_mul(size_of::<T>() as u64))?;
        let mut values = vec![T::zeroed(); count];
        self.read(address, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Repeats `pattern` over `count` elements from `address` on.
    ///
    /// # Errors
    ///
    /// When the destination isn't inside of one live allocation; nothing is written then.
    pub fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), MemoryError> {
        let bytes = count.saturating_mul(pattern.len() as u64);
        let (allocation, offset) = self.range(address, bytes)?;
        for index in 0..count {
            allocation.store_bytes(offset + index * pattern.len() as u64, pattern);
        }
        allocation.shadow.initialize(offset, bytes);
        Ok(())
    }

    /// Copies within the device; what was never written stays never written.
    ///
    /// # Errors
    ///
    /// When source or destination isn't inside of one live allocation; nothing is copied then.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        let (target, target_offset) = self.range(to, bytes)?;
        let (source, source_offset) = self.range(from, bytes)?;
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
        source.load_bytes(source_offset, &mut buffer);
        target.store_bytes(target_offset, &buffer);
        target.shadow.copy(target_offset, &source.shadow, source_offset, bytes);
        Ok(())
    }

    /// Whether all of the bytes were written since they were allocated; false outside of live
    /// allocations.
    pub fn is_written(&self, address: u64, bytes: u64) -> bool {
        self.range(address, bytes)
            .is_ok_and(|(allocation, offset)| allocation.shadow.is_initialized(offset, bytes))
    }

    /// The beginning and size of the live allocation that `address` lies in.
    pub fn find(&self, address: u64) -> Option<(u64, u64)> {
        let allocation = self.live.range(..=address).next_back()?.1;
        (address < allocation.base + allocation.bytes.max(1))
            .then_some((allocation.base, allocation.bytes))
    }

    fn range(&self, address: u64, bytes: u64) -> Result<(&Allocation, u64), MemoryError> {
        self.live
            .range(..=address)
            .next_back()
            .map(|(_, allocation)| (allocation.as_ref(), address - allocation.base))
            .filter(|(allocation, offset)| {
                offset.checked_add(bytes).is_some_and(|end| end <= allocation.bytes)
            })
            .ok_or_else(|| MemoryError::Outside { address, bytes, freed: self.was_freed(address) })
    }

    fn was_freed(&self, address: u64) -> bool {
        self.freed
            .range(..=address)
            .next_back()
            .is_some_and(|(base, bytes)| address < base + (*bytes).max(1))
    }

    /// A number for a launch, by which shadows tell its accesses from those of others; the launches
    /// of peers that it shares memory with get other numbers.
    pub(crate) fn next_epoch(&self, peers: &[&Self]) -> u64 {
        let all = || std::iter::once(self).chain(peers.iter().copied());
        let count = all().map(|memory| memory.launches.load(Relaxed)).max().unwrap_or(0);
        for memory in all() {
            let before = memory.launches.swap(count + 1, Relaxed);
            // Numbers are used again after a while: until then records must be gone.
            if before > 0 && (before - 1) / (EPOCHS - 1) != count / (EPOCHS - 1) {
                for allocation in memory.live.values() {
                    allocation.shadow.forget_accesses();
                }
            }
        }
        count % (EPOCHS - 1) + 1
    }

    /// What a launch sees.
    pub(crate) fn view<'a>(&'a self, peers: &Peers<'a>) -> View<'a> {
        let mut live: Vec<&Allocation> = self.live.values().map(Arc::as_ref).collect();
        for peer in peers.memories {
            let visible = |allocation: &&'a Allocation| (peers.visible)(allocation.base);
            live.extend(peer.live.values().map(Arc::as_ref).filter(visible));
        }
        live.sort_unstable_by_key(|allocation| allocation.base);
        View { live, memory: self, peers: peers.memories.to_vec() }
    }
}

/// The memories of other devices.
#[derive(Clone, Copy)]
pub struct Peers<'a> {
    /// The memories.
    pub memories: &'a [&'a Memory],
    /// Whether the launch may use the allocation that begins at an address.
    pub visible: &'a dyn Fn(u64) -> bool,
}

impl Default for Peers<'_> {
    fn default() -> Self {
        Self { memories: &[], visible: &|_| false }
    }
}

impl std::fmt::Debug for Peers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("memories", &self.memories.len()).finish_non_exhaustive()
    }
}

/// The live allocations, in the order of their addresses.
#[derive(Debug)]
pub(crate) struct View<'a> {
    live: Vec<&'a Allocation>,
    memory: &'a Memory,
    peers: Vec<&'a Memory>,
}

/// What lies near an address that no allocation covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Near {
    Freed {
        base: u64,
        bytes: u64,
    },
    After {
        base: u64,
        bytes: u64,
    },
    /// Live memory of another device, which the launch may not use.
    OfPeer,
    Nothing,
}

impl<'a> View<'a> {
    /// The allocation that holds `bytes` from `address` on.
    #[inline]
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Option<&'a Allocation> {
        let after = self.live.partition_point(|allocation| allocation.base <= address);
        let allocation = *self.live.get(after.checked_sub(1)?)?;
        allocation.holds(address, bytes).then_some(allocation)
    }

    pub(crate) fn near(&self, address: u64) -> Near {
        for memory in std::iter::once(&self.memory).chain(&self.peers) {
            if let Some((&base, &bytes)) = memory.freed.range(..=address).next_back()
                && address < base + bytes.max(1)
            {
                return Near::Freed { base, bytes };
            }
        }
        let before = self.live.partition_point(|allocation| allocation.base <= address);
        let before = before.checked_sub(1).and_then(|index| self.live.get(index));
        match before {
            Some(one) if address < one.base + one.bytes => {
                Near::After { base: one.base, bytes: one.bytes }
            }
            _ if self.peers.iter().any(|memory| memory.find(address).is_some()) => Near::OfPeer,
            Some(one) => Near::After { base: one.base, bytes: one.bytes },
            None => Near::Nothing,
        }
    }
}

macro_rules! cell {
    ($name:ident, $atomic:ty, $size:literal) => {
        /// The cell at a multiple of its size inside of the allocation.
        #[inline(always)]
        pub(crate) fn $name(&self, offset: u64) -> &$atomic {
            assert!(
                offset.is_multiple_of($size)
                    && offset.saturating_add($size) <= self.cells.len() as u64 * 8
            );
            // SAFETY: the assertion keeps the cell inside of the memory and aligned; memory made
            // of atomics may be changed through shared references.
            unsafe { &*self.cells.as_ptr().cast::<u8>().add(offset as usize).cast::<$atomic>() }
        }
    };
}

impl Allocation {
    #[inline(always)]
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.base && address - self.base + bytes <= self.bytes
    }

    cell!(cell8, AtomicU8, 1);
    cell!(cell16, AtomicU16, 2);
    cell!(cell32, AtomicU32, 4);
    cell!(cell64, AtomicU64, 8);

    /// Loads 1, 2, 4 or 8 bytes.
    #[inline(always)]
    pub(crate) fn load(&self, offset: u64, bytes: u64) -> u64 {
        match bytes {
            1 => u64::from(self.cell8(offset).load(Relaxed)),
            2 => u64::from(self.cell16(offset).load(Relaxed)),
            4 => u64::from(self.cell32(offset).load(Relaxed)),
            _ => self.cell64(offset).load(Relaxed),
        }
    }

    /// Stores the low 1, 2, 4 or 8 bytes.
    #[inline(always)]
    pub(crate) fn store(&self, offset: u64, bytes: u64, value: u64) {
        match bytes {
            1 => self.cell8(offset).store(value as u8, Relaxed),
            2 => self.cell16(offset).store(value as u16, Relaxed),
            4 => self.cell32(offset).store(value as u32, Relaxed),
            _ => self.cell64(offset).store(value, Relaxed),
        }
    }

    /// Changes 2, 4 or 8 bytes at once, and gives what they were.
    pub(crate) fn update(&self, offset: u64, bytes: u64, f: impl Fn(u64) -> u64) -> u64 {
        match bytes {
            2 => {
                let change = |old| Some(f(u64::from(old)) as u16);
                let old = self.cell16(offset).fetch_update(Relaxed, Relaxed, change);
                u64::from(old.unwrap_or_else(|old| old))
            }
            4 => {
                let change = |old| Some(f(u64::from(old)) as u32);
                let old = self.cell32(offset).fetch_update(Relaxed, Relaxed, change);
                u64::from(old.unwrap_or_else(|old| old))
            }
            _ => {
                let old = self.cell64(offset).fetch_update(Relaxed, Relaxed, |old| Some(f(old)));
                old.unwrap_or_else(|old| old)
            }
        }
    }

    pub(crate) fn load_bytes(&self, offset: u64, bytes: &mut [u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            if at.is_multiple_of(8) && rest.len() >= 8 {
                let (word, after) = rest.split_at_mut(8);
                word.copy_from_slice(&self.load(at, 8).to_ne_bytes());
                rest = after;
                at += 8;
            } else {
                let (byte, after) = rest.split_at_mut(1);
                byte[0] = self.load(at, 1) as u8;
                rest = after;
                at += 1;
            }
        }
    }

    pub(crate) fn store_bytes(&self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            if at.is_multiple_of(8)
                && let Some((word, after)) = rest.split_first_chunk()
            {
                self.store(at, 8, u64::from_ne_bytes(*word));
                rest = after;
                at += 8;
            } else if let Some((byte, after)) = rest.split_first() {
                self.store(at, 1, u64::from(*byte));
                rest = after;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_at_any_offset() {
        let mut memory = Memory::default();
        let address = memory.allocate(100).unwrap();
        let bytes: Vec<u8> = (0..61).collect();
        memory.write(address + 3, &bytes).unwrap();
        let mut back = vec![0; 61];
        memory.read(address + 3, &mut back).unwrap();
        assert_eq!(back, bytes);
        memory.read(address + 64, &mut back[..1]).unwrap();
        assert_eq!(back[0], FRESH);
    }

    #[test]
    fn ranges_beyond_an_allocation_are_refused() {
        let mut memory = Memory::with_capacity(1000);
        let address = memory.allocate(100).unwrap();
        assert!(memory.write(address + 90, &[0; 11]).is_err());
        assert_eq!(memory.allocate(901), Err(MemoryError::Full { bytes: 901, free: 900 }));
        memory.free(address).unwrap();
        assert_eq!(memory.free(address), Err(MemoryError::NotAllocated { address, freed: true }));
        assert_eq!(
            memory.write(address, &[0]),
            Err(MemoryError::Outside { address, bytes: 1, freed: true })
        );
        assert_ne!(memory.allocate(100).unwrap(), address);
    }
}
