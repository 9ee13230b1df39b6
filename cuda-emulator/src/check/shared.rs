//! What is known of the shared memory of a block.
//!
//! Each warp has a vector clock; a barrier joins the clocks of those who take part. An access is
//! ordered after an earlier one if the warp's clock has passed that one.

/// The last accesses of 4 bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    write: Mark,
    /// Two readers of different warps: a writer differs from at least one of them.
    reads: [Mark; 2],
    /// Which of the bytes were written.
    written: u8,
    /// Which of the bytes a `cp.async` is on its way to.
    pending: u8,
}

/// An access: the warp, its clock and the instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    /// 0 for none.
    clock: u32,
    at: u32,
    warp: u8,
    bytes: u8,
    atomic: bool,
}

/// What an access does.
pub(crate) use super::global::Access;

/// What is wrong with an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A read of bytes that nobody wrote.
    Uninitialized,
    /// A `cp.async` to the bytes has not been waited for.
    Pending,
    /// An access by another warp that no barrier orders before this one.
    Race { warp: u8, at: u32, earlier: Access },
}

/// The shadow of the shared memory of a block.
#[derive(Debug, Default)]
pub(crate) struct SharedShadow {
    words: Vec<Word>,
    /// `clocks[warp][other]`: how far of `other` the warp has seen.
    clocks: Vec<Vec<u32>>,
}

impl SharedShadow {
    /// Begins a block.
    pub(crate) fn reset(&mut self, bytes: usize, warps: usize) {
        self.words.clear();
        self.words.resize(bytes.div_ceil(4), Word::default());
        self.clocks.clear();
        for warp in 0..warps {
            let mut clock = vec![0; warps];
            clock[warp] = 1;
            self.clocks.push(clock);
        }
    }

    /// Orders what the warps did before whatever any of them does from now on.
    pub(crate) fn synchronize(&mut self, warps: &[usize]) {
        let Some(count) = self.clocks.first().map(Vec::len) else { return };
        let mut joined = vec![0; count];
        for clock in warps.iter().filter_map(|warp| self.clocks.get(*warp)) {
            for (all, one) in joined.iter_mut().zip(clock) {
                *all = (*all).max(*one);
            }
        }
        for &warp in warps {
            if let Some(clock) = self.clocks.get_mut(warp) {
                clock.copy_from_slice(&joined);
                clock[warp] += 1;
            }
        }
    }

    /// Marks bytes that a `cp.async` will write, or has written.
    pub(crate) fn set_pending(&mut self, offset: usize, bytes: usize, pending: bool) {
        for_words(offset, bytes, |index, mask| {
            if let Some(word) = self.words.get_mut(index) {
                word.pending = if pending { word.pending | mask } else { word.pending & !mask };
            }
        });
    }

    /// Notes an access and says what is wrong with it.
    #[inline]
    pub(crate) fn access(
        &mut self,
        offset: usize,
        bytes: usize,
        access: Access,
        warp: usize,
        at: u32,
    ) -> Option<Finding> {
        let clock = self.clocks.get(warp)?;
        let now = *clock.get(warp)?;
        let mut found = None;
        for_words(offset, bytes, |index, mask| {
            let Some(word) = self.words.get_mut(index) else { return };
            let mark = Mark {
                clock: now,
                at,
                warp: warp as u8,
                bytes: mask,
                atomic: matches!(access, Access::Atomic | Access::Observe),
            };
            if let Some(finding) = word.access(mark, access, clock) {
                found.get_or_insert(finding);
            }
        });
        found
    }
}

/// Calls `f` with each word's index and which of its bytes are meant.
#[inline(always)]
fn for_words(offset: usize, bytes: usize, mut f: impl FnMut(usize, u8)) {
    let mut at = offset;
    let end = offset + bytes;
    while at < end {
        let count = (4 - at % 4).min(end - at);
        f(at / 4, (((1u32 << count) - 1) << (at % 4)) as u8);
        at += count;
    }
}

impl Word {
    #[inline(always)]
    fn access(&mut self, mark: Mark, access: Access, clock: &[u32]) -> Option<Finding> {
        let mut found = None;
        if self.pending & mark.bytes != 0 {
            found = Some(Finding::Pending);
        }
        if self.write.races(&mark, clock) && !(self.write.atomic && mark.atomic) {
            let earlier = if self.write.atomic { Access::Atomic } else { Access::Write };
            found =
                found.or(Some(Finding::Race { warp: self.write.warp, at: self.write.at, earlier }));
        }
        if access.reads() && self.written & mark.bytes != mark.bytes {
            found = found.or(Some(Finding::Uninitialized));
        }
        if access == Access::Observe {
            return found;
        }
        if access == Access::Read {
            let same = self.reads.iter_mut().find(|read| read.clock == 0 || read.warp == mark.warp);
            let target = match same {
                Some(read) => read,
                None => &mut self.reads[1],
            };
            let seen = if target.clock == mark.clock && target.warp == mark.warp {
                target.bytes
            } else {
                0
            };
            *target = Mark { bytes: seen | mark.bytes, ..mark };
        } else {
            for read in &self.reads {
                if read.races(&mark, clock) {
                    found = found.or(Some(Finding::Race {
                        warp: read.warp,
                        at: read.at,
                        earlier: Access::Read,
                    }));
                }
            }
            self.written |= mark.bytes;
            let old = self.write;
            let seen =
                if old.warp == mark.warp && old.clock == mark.clock && old.atomic == mark.atomic {
                    old.bytes
                } else {
                    0
                };
            self.write = Mark { bytes: seen | mark.bytes, ..mark };
        }
        found
    }
}

impl Mark {
    /// Whether this earlier access is of another warp, on the same bytes, and not ordered.
    #[inline(always)]
    fn races(&self, later: &Mark, clock: &[u32]) -> bool {
        self.clock != 0
            && self.warp != later.warp
            && self.bytes & later.bytes != 0
            && clock.get(self.warp as usize).is_some_and(|seen| *seen < self.clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shadow() -> SharedShadow {
        let mut shadow = SharedShadow::default();
        shadow.reset(64, 3);
        shadow
    }

    #[test]
    fn a_barrier_orders_accesses_of_different_warps() {
        let mut shadow = shadow();
        assert_eq!(shadow.access(0, 4, Access::Write, 0, 7), None);
        let race = Finding::Race { warp: 0, at: 7, earlier: Access::Write };
        assert_eq!(shadow.access(0, 4, Access::Read, 1, 8), Some(race));
        shadow.synchronize(&[0, 1, 2]);
        assert_eq!(shadow.access(0, 4, Access::Read, 2, 9), None);
        let race = Finding::Race { warp: 2, at: 9, earlier: Access::Read };
        assert_eq!(shadow.access(0, 4, Access::Write, 0, 10), Some(race));
    }

    #[test]
    fn a_barrier_of_two_warps_does_not_order_a_third() {
        let mut shadow = shadow();
        shadow.access(0, 4, Access::Write, 0, 1);
        shadow.synchronize(&[0, 1]);
        assert_eq!(shadow.access(0, 4, Access::Read, 1, 2), None);
        assert!(shadow.access(0, 4, Access::Read, 2, 3).is_some());
    }

    #[test]
    fn bytes_that_nobody_wrote_are_found_one_by_one() {
        let mut shadow = shadow();
        shadow.access(5, 1, Access::Write, 0, 1);
        assert_eq!(shadow.access(5, 1, Access::Read, 0, 2), None);
        assert_eq!(shadow.access(4, 2, Access::Read, 0, 3), Some(Finding::Uninitialized));
    }

    #[test]
    fn bytes_that_a_copy_is_on_its_way_to_may_not_be_touched() {
        let mut shadow = shadow();
        shadow.set_pending(0, 16, true);
        assert_eq!(shadow.access(12, 4, Access::Read, 0, 1), Some(Finding::Pending));
        shadow.set_pending(0, 16, false);
        assert_eq!(shadow.access(12, 4, Access::Write, 0, 2), None);
    }
}
