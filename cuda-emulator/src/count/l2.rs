//! A model of the L2 cache.
//!
//! The model sees the sectors of one block after the other, in the order of the grid, however the
//! blocks were scheduled: its counts are the same in every run. A real L2 sees blocks interleaved,
//! hashes addresses over slices and has a policy that nobody published.

use std::collections::BTreeMap;

use serde::Serialize;

/// The shape of an L2 cache: lines of 128 bytes in 4 sectors, 16 ways, the least recently used
/// line goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CacheModel {
    /// Its size in bytes.
    pub bytes: u64,
}

impl CacheModel {
    /// The 40 MB of an A100.
    pub const A100: Self = Self { bytes: 40 << 20 };
    /// The 50 MB of an H100.
    pub const H100: Self = Self { bytes: 50 << 20 };
}

const WAYS: usize = 16;
/// Marks a sector of a stream as written.
pub(crate) const WRITTEN: u64 = 1 << 63;

/// The cache, and blocks that wait for those before them.
#[derive(Debug)]
pub(crate) struct L2 {
    sets: Vec<[Line; WAYS]>,
    time: u64,
    waiting: BTreeMap<u64, Vec<u64>>,
    next: u64,
    misses: u64,
    write_backs: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Line {
    tag: u64,
    /// 0 for an empty line.
    used: u64,
    valid: u8,
    dirty: u8,
}

impl L2 {
    pub(crate) fn new(model: CacheModel) -> Self {
        let sets = (model.bytes / 128 / WAYS as u64).clamp(1, 1 << 22) as usize;
        Self {
            sets: vec![[Line::default(); WAYS]; sets],
            time: 0,
            waiting: BTreeMap::new(),
            next: 0,
            misses: 0,
            write_backs: 0,
        }
    }

    /// Takes the sectors that a block touched; each is its address divided by 32.
    pub(crate) fn block(&mut self, number: u64, stream: Vec<u64>) {
        self.waiting.insert(number, stream);
        while let Some(stream) = self.waiting.remove(&self.next) {
            self.next += 1;
            for sector in stream {
                self.touch(sector & !WRITTEN, sector & WRITTEN != 0);
            }
        }
    }

    /// Misses and write-backs, once all blocks are through.
    pub(crate) fn finish(mut self) -> (u64, u64) {
        for line in self.sets.iter().flatten() {
            self.write_backs += u64::from(line.dirty.count_ones());
        }
        (self.misses, self.write_backs)
    }

    fn touch(&mut self, sector: u64, write: bool) {
        self.time += 1;
        let tag = sector / 4;
        let bit = 1u8 << (sector % 4);
        // Fibonacci hashing spreads strides over the sets.
        let index = (tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % self.sets.len();
        let Some(set) = self.sets.get_mut(index) else { return };
        let found = set.iter().position(|line| line.used != 0 && line.tag == tag);
        let oldest = || set.iter().enumerate().min_by_key(|(_, line)| line.used).map_or(0, |o| o.0);
        let way = found.unwrap_or_else(oldest);
        let line = &mut set[way];
        if found.is_none() {
            self.write_backs += u64::from(line.dirty.count_ones());
            *line = Line { tag, ..Line::default() };
        }
        line.used = self.time;
        if write {
            // Whole sectors are written without being read first.
            line.dirty |= bit;
        } else if line.valid & bit == 0 {
            self.misses += 1;
        }
        line.valid |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_read_once() {
        let mut l2 = L2::new(CacheModel { bytes: 1 << 20 });
        for block in 0..4 {
            l2.block(block, (0..1000).collect());
        }
        assert_eq!(l2.finish(), (1000, 0));
    }

    #[test]
    fn what_does_not_fit_is_read_again() {
        let mut l2 = L2::new(CacheModel { bytes: 1 << 12 });
        for block in 0..2 {
            l2.block(block, (0..1000).collect());
        }
        assert_eq!(l2.finish().0, 2000);
    }

    #[test]
    fn the_order_in_which_blocks_end_does_not_matter() {
        let streams: Vec<Vec<u64>> = (0..8).map(|b| (b * 50..b * 50 + 100).collect()).collect();
        let mut forward = L2::new(CacheModel { bytes: 1 << 12 });
        let mut backward = L2::new(CacheModel { bytes: 1 << 12 });
        for (number, stream) in streams.iter().enumerate() {
            forward.block(number as u64, stream.clone());
        }
        for (number, stream) in streams.iter().enumerate().rev() {
            backward.block(number as u64, stream.clone());
        }
        assert_eq!(forward.finish(), backward.finish());
    }

    #[test]
    fn changed_sectors_are_written_back_once() {
        let mut l2 = L2::new(CacheModel { bytes: 1 << 20 });
        l2.block(0, (0..100).map(|sector| sector | WRITTEN).collect());
        l2.block(1, (0..100).collect());
        assert_eq!(l2.finish(), (0, 100));
    }
}
