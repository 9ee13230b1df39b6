//! What is known of every byte of device memory: whether it was written, and by which block.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Launches are told apart modulo this; before a number is used again, records are dropped.
pub(crate) const EPOCHS: u64 = 1 << 12;

/// The shadow of an allocation.
#[derive(Debug)]
pub(crate) struct GlobalShadow {
    bytes: u64,
    /// A bit for each byte: whether it was written.
    written: Box<[AtomicU8]>,
    /// Made by the first launch that looks for races.
    races: OnceLock<Box<[Word]>>,
}

/// The last accesses of 4 bytes.
#[derive(Debug, Default)]
struct Word {
    write: AtomicU64,
    read: AtomicU64,
}

/// Who accesses memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accessor<'a> {
    /// The launch, below [`EPOCHS`] and not 0.
    pub(crate) epoch: u64,
    /// The block's number in the grid.
    pub(crate) block: u32,
    /// Whether the block has taken part in a synchronization with others through an atomic.
    pub(crate) acquired: bool,
    /// How often each block has published what it wrote: a fence, then an atomic.
    pub(crate) releases: &'a [AtomicU8],
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Atomic,
    /// A volatile, relaxed or acquiring load: it may meet atomics and stores of its kind.
    Observe,
}

impl Access {
    pub(crate) fn reads(self) -> bool {
        self != Self::Write
    }

    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Atomic)
    }
}

/// Two accesses of different blocks that nothing orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The block of the earlier access.
    pub(crate) block: u32,
    /// What that one did.
    pub(crate) earlier: Access,
}

// A record: 12 bits of launch, 32 of block, 8 of releases, 4 of bytes, and whether it was atomic
// or of several blocks.
const ATOMIC: u64 = 1;
const SEVERAL: u64 = 2;

fn record(epoch: u64, block: u32, releases: u8, bytes: u64, flags: u64) -> u64 {
    epoch << 52 | u64::from(block) << 20 | u64::from(releases) << 12 | bytes << 8 | flags
}

impl GlobalShadow {
    pub(crate) fn new(bytes: u64) -> Self {
        let mut written = Vec::new();
        written.resize_with(bytes.div_ceil(8) as usize, || AtomicU8::new(0));
        Self { bytes, written: written.into_boxed_slice(), races: OnceLock::new() }
    }

    /// Notes that bytes were written.
    pub(crate) fn initialize(&self, offset: u64, bytes: u64) {
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let Some(cell) = self.written.get((at / 8) as usize) else { return };
            let count = (8 - at % 8).min(end - at);
            let mask = (((1u32 << count) - 1) << (at % 8)) as u8;
            // Most writes find their bytes marked.
            if cell.load(Relaxed) & mask != mask {
                cell.fetch_or(mask, Relaxed);
            }
            at += count;
        }
    }

    /// Whether all of the bytes were written.
    pub(crate) fn is_initialized(&self, offset: u64, bytes: u64) -> bool {
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let Some(cell) = self.written.get((at / 8) as usize) else { return true };
            let count = (8 - at % 8).min(end - at);
            let mask = (((1u32 << count) - 1) << (at % 8)) as u8;
            if cell.load(Relaxed) & mask != mask {
                return false;
            }
            at += count;
        }
        true
    }

    /// Takes over what is known of the bytes that were copied here.
    pub(crate) fn copy(&self, offset: u64, from: &Self, from_offset: u64, bytes: u64) {
        for index in 0..bytes {
            if from.is_initialized(from_offset + index, 1) {
                self.initialize(offset + index, 1);
            } else if let Some(cell) = self.written.get(((offset + index) / 8) as usize) {
                cell.fetch_and(!(1 << ((offset + index) % 8)), Relaxed);
            }
        }
    }

    /// Forgets all accesses.
    pub(crate) fn forget_accesses(&self) {
        for word in self.races.get().into_iter().flatten() {
            word.write.store(0, Relaxed);
            word.read.store(0, Relaxed);
        }
    }

    /// Notes an access and finds one by another block that nothing orders before this one.
    #[inline]
    pub(crate) fn access(
        &self,
        offset: u64,
        bytes: u64,
        access: Access,
        by: &Accessor<'_>,
    ) -> Option<Conflict> {
        let words = self.races.get_or_init(|| {
            let count = self.bytes.div_ceil(4) as usize;
            std::iter::repeat_with(Word::default).take(count).collect()
        });
        let mut found = None;
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let Some(word) = words.get((at / 4) as usize) else { break };
            let count = (4 - at % 4).min(end - at);
            let mask = ((1 << count) - 1) << (at % 4);
            if let Some(conflict) = word.access(mask, access, by) {
                found = Some(conflict);
            }
            at += count;
        }
        found
    }
}

impl Word {
    #[inline]
    fn access(&self, bytes: u64, access: Access, by: &Accessor<'_>) -> Option<Conflict> {
        let releases = by.releases.get(by.block as usize).map_or(0, |count| count.load(Relaxed));
        let mut found = None;
        let write = self.write.load(Relaxed);
        if let Some(block) = conflicts(write, bytes, by) {
            let atomic = write & ATOMIC != 0;
            if !(atomic && matches!(access, Access::Atomic | Access::Observe)) {
                let earlier = if atomic { Access::Atomic } else { Access::Write };
                found = Some(Conflict { block, earlier });
            }
        }
        if access == Access::Observe {
            return found;
        }
        if access == Access::Read {
            let read = self.read.load(Relaxed);
            let same = read >> 52 == by.epoch;
            let other = same && (read >> 20) as u32 != by.block;
            let merged = if same { (read >> 8 & 15) | bytes } else { bytes };
            let flags = if other || same && read & SEVERAL != 0 { SEVERAL } else { 0 };
            let new = record(by.epoch, by.block, releases, merged, flags);
            if new != read {
                self.read.store(new, Relaxed);
            }
        } else {
            let read = self.read.load(Relaxed);
            let several = read >> 52 == by.epoch
                && read & SEVERAL != 0
                && read >> 8 & bytes != 0
                && !by.acquired;
            if let Some(block) = conflicts(read, bytes, by) {
                found = found.or(Some(Conflict { block, earlier: Access::Read }));
            } else if several {
                let block = (read >> 20) as u32;
                found = found.or(Some(Conflict { block, earlier: Access::Read }));
            }
            let flags = if access == Access::Atomic { ATOMIC } else { 0 };
            let own = write >> 52 == by.epoch && (write >> 20) as u32 == by.block;
            let merged =
                if own && write & ATOMIC == flags { (write >> 8 & 15) | bytes } else { bytes };
            let new = record(by.epoch, by.block, releases, merged, flags);
            if new != write {
                self.write.store(new, Relaxed);
            }
        }
        found
    }
}

/// The block of a record of this launch, if another block made it, on some of the same bytes,
/// and hasn't published it since.
#[inline]
fn conflicts(record: u64, bytes: u64, by: &Accessor<'_>) -> Option<u32> {
    let block = (record >> 20) as u32;
    if record >> 52 != by.epoch || block == by.block || record >> 8 & bytes & 15 == 0 {
        return None;
    }
    let published = by.releases.get(block as usize).map_or(0, |count| count.load(Relaxed));
    let ordered = by.acquired && published != (record >> 12) as u8;
    (!ordered).then_some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn releases() -> Vec<AtomicU8> {
        vec![AtomicU8::new(0), AtomicU8::new(0), AtomicU8::new(0)]
    }

    fn by(block: u32, acquired: bool, releases: &[AtomicU8]) -> Accessor<'_> {
        Accessor { epoch: 1, block, acquired, releases }
    }

    #[test]
    fn blocks_that_share_a_word_but_no_byte_do_not_race() {
        let (shadow, releases) = (GlobalShadow::new(16), releases());
        assert_eq!(shadow.access(0, 2, Access::Write, &by(0, false, &releases)), None);
        assert_eq!(shadow.access(2, 2, Access::Write, &by(1, false, &releases)), None);
    }

    #[test]
    fn a_write_races_with_what_another_block_wrote_or_read() {
        let (shadow, releases) = (GlobalShadow::new(16), releases());
        shadow.access(0, 4, Access::Write, &by(0, false, &releases));
        let conflict = shadow.access(2, 2, Access::Read, &by(1, false, &releases));
        assert_eq!(conflict, Some(Conflict { block: 0, earlier: Access::Write }));
        shadow.access(8, 4, Access::Read, &by(2, false, &releases));
        let conflict = shadow.access(8, 4, Access::Write, &by(1, false, &releases));
        assert_eq!(conflict, Some(Conflict { block: 2, earlier: Access::Read }));
    }

    #[test]
    fn a_published_write_is_ordered_before_a_block_that_synchronized() {
        let (shadow, releases) = (GlobalShadow::new(16), releases());
        shadow.access(0, 4, Access::Write, &by(0, false, &releases));
        releases[0].store(1, Relaxed);
        assert_eq!(shadow.access(0, 4, Access::Read, &by(1, true, &releases)), None);
        assert!(shadow.access(0, 4, Access::Read, &by(2, false, &releases)).is_some());
    }

    #[test]
    fn atomics_do_not_race_with_each_other() {
        let (shadow, releases) = (GlobalShadow::new(16), releases());
        shadow.access(0, 4, Access::Atomic, &by(0, false, &releases));
        assert_eq!(shadow.access(0, 4, Access::Atomic, &by(1, false, &releases)), None);
        assert!(shadow.access(0, 4, Access::Write, &by(2, false, &releases)).is_some());
    }

    #[test]
    fn copies_carry_what_was_never_written() {
        let (a, b) = (GlobalShadow::new(16), GlobalShadow::new(16));
        a.initialize(3, 5);
        b.initialize(0, 16);
        b.copy(2, &a, 0, 8);
        assert!(b.is_initialized(5, 11) && b.is_initialized(0, 2));
        assert!(!b.is_initialized(4, 1));
    }
}
