//! What is known of the shared memory of a block.

use super::clocks::Clocks;

/// The last accesses of 4 bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    write: Mark,
    /// Two readers of different warps: a writer differs from at least one of them.
    reads: [Mark; 2],
    /// Which of the bytes were written.
    written: u8,
    /// Bits 0 to 3: which of the bytes an asynchronous copy is on its way to. Bits 4 to 7: which
    /// belong to no variable, or in a whole word of [`MBARRIER`], to an mbarrier.
    closed: u8,
    /// How many asynchronous operations read the word.
    reading: u16,
}

/// `closed` of a word of an mbarrier: no copy leads to what belongs to no variable.
const MBARRIER: u8 = 0xff;

/// An access: the actor, its clock and the instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    /// 0 for none.
    clock: u32,
    at: u32,
    actor: u16,
    bytes: u8,
    atomic: bool,
}

/// What an access does.
pub(crate) use super::global::Access;

/// What is wrong with an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The bytes belong to no variable.
    Gap,
    /// The bytes are those of an mbarrier.
    Mbarrier,
    /// A read of bytes that nobody wrote.
    Uninitialized,
    /// An asynchronous copy to the bytes has not been waited for.
    Pending,
    /// A write of bytes that an asynchronous operation still reads.
    Reading,
    /// An asynchronous read of bytes that an ordinary store wrote, with no proxy fence between.
    Unfenced { at: u32 },
    /// An access by another warp that nothing orders before this one.
    Race { actor: u16, at: u32, earlier: Access },
}

/// The shadow of the shared memory of a block.
#[derive(Debug, Default)]
pub(crate) struct SharedShadow {
    words: Vec<Word>,
}

impl SharedShadow {
    /// Begins a block; `gaps` belong to no variable.
    pub(crate) fn reset(&mut self, bytes: usize, gaps: &[std::ops::Range<usize>]) {
        self.words.clear();
        self.words.resize(bytes.div_ceil(4), Word::default());
        for gap in gaps {
            for_words(gap.start, gap.len(), |index, mask| {
                if let Some(word) = self.words.get_mut(index) {
                    word.closed |= mask << 4;
                }
            });
        }
    }

    /// Marks bytes that an asynchronous copy will write.
    pub(crate) fn expect(&mut self, offset: usize, bytes: usize) {
        for_words(offset, bytes, |index, mask| {
            if let Some(word) = self.words.get_mut(index) {
                word.closed |= mask;
            }
        });
    }

    /// Unmarks bytes that an asynchronous copy has written.
    pub(crate) fn arrived(&mut self, offset: usize, bytes: usize) {
        for_words(offset, bytes, |index, mask| {
            if let Some(word) = self.words.get_mut(index)
                && word.closed != MBARRIER
            {
                word.closed &= !mask;
            }
        });
    }

    /// Notes that a copy of an mbarrier has written the bytes.
    pub(crate) fn delivered(
        &mut self,
        offset: usize,
        bytes: usize,
        (actor, clock): (u16, u32),
        at: u32,
    ) {
        self.arrived(offset, bytes);
        for_words(offset, bytes, |index, mask| {
            if let Some(word) = self.words.get_mut(index) {
                word.written |= mask;
                word.write = Mark { clock, at, actor, bytes: mask, atomic: false };
            }
        });
    }

    /// Marks the 8 bytes of an mbarrier, or takes the mark away.
    pub(crate) fn set_mbarrier(&mut self, offset: usize, on: bool) {
        for word in self.words.iter_mut().skip(offset / 4).take(2) {
            word.closed = if on { MBARRIER } else { 0 };
        }
    }

    /// Notes that an asynchronous operation of a warp begins to read, and says what is wrong.
    pub(crate) fn begin_reading(
        &mut self,
        clocks: &Clocks,
        offset: usize,
        bytes: usize,
        warp: usize,
        at: u32,
    ) -> Option<Finding> {
        let (clock, fenced) = (clocks.seen(warp), clocks.fenced(warp));
        let mut found = None;
        for_words(offset, bytes, |index, mask| {
            let Some(word) = self.words.get_mut(index) else { return };
            let mark = Mark { clock: 1, at, actor: warp as u16, bytes: mask, atomic: false };
            let write = word.write;
            if let Some(closed) = word.closed_to(mask) {
                found.get_or_insert(closed);
            } else if word.written & mask != mask {
                found.get_or_insert(Finding::Uninitialized);
            } else if write.races(&mark, clock) {
                found.get_or_insert(write.race());
            } else if clocks.is_warp(write.actor)
                && fenced.get(usize::from(write.actor)).is_none_or(|time| *time < write.clock)
            {
                found.get_or_insert(Finding::Unfenced { at: write.at });
            }
            word.reading = word.reading.saturating_add(1);
        });
        found
    }

    /// Notes that an asynchronous operation of a warp has read.
    pub(crate) fn end_reading(
        &mut self,
        clocks: &Clocks,
        offset: usize,
        bytes: usize,
        warp: usize,
        at: u32,
    ) {
        let now = clocks.seen(warp).get(warp).copied().unwrap_or(0);
        for_words(offset, bytes, |index, mask| {
            if let Some(word) = self.words.get_mut(index) {
                word.reading = word.reading.saturating_sub(1);
                let mark = Mark { clock: now, at, actor: warp as u16, bytes: mask, atomic: false };
                word.note_read(mark);
            }
        });
    }

    /// Notes an access of a warp and says what is wrong with it.
    #[inline]
    pub(crate) fn access(
        &mut self,
        clocks: &Clocks,
        offset: usize,
        bytes: usize,
        access: Access,
        warp: usize,
        at: u32,
    ) -> Option<Finding> {
        let clock = clocks.seen(warp);
        let now = *clock.get(warp)?;
        let mut found = None;
        for_words(offset, bytes, |index, mask| {
            let Some(word) = self.words.get_mut(index) else { return };
            let mark = Mark {
                clock: now,
                at,
                actor: warp as u16,
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
    /// Why the bytes may not be touched at all.
    #[cold]
    fn closed_to(&self, bytes: u8) -> Option<Finding> {
        if self.closed == MBARRIER {
            Some(Finding::Mbarrier)
        } else if self.closed >> 4 & bytes != 0 {
            Some(Finding::Gap)
        } else {
            (self.closed & bytes != 0).then_some(Finding::Pending)
        }
    }

    #[inline(always)]
    fn access(&mut self, mark: Mark, access: Access, clock: &[u32]) -> Option<Finding> {
        let mut found = None;
        if self.closed != 0 {
            found = self.closed_to(mark.bytes);
        }
        if self.reading != 0 && access.writes() {
            found = found.or(Some(Finding::Reading));
        }
        if self.write.races(&mark, clock) && !(self.write.atomic && mark.atomic) {
            found = found.or(Some(self.write.race()));
        }
        if access.reads() && self.written & mark.bytes != mark.bytes {
            found = found.or(Some(Finding::Uninitialized));
        }
        if access == Access::Observe {
            return found;
        }
        if access == Access::Read {
            self.note_read(mark);
        } else {
            for read in &self.reads {
                if read.races(&mark, clock) {
                    found = found.or(Some(Finding::Race {
                        actor: read.actor,
                        at: read.at,
                        earlier: Access::Read,
                    }));
                }
            }
            self.written |= mark.bytes;
            let old = self.write;
            let seen = if old.actor == mark.actor
                && old.clock == mark.clock
                && old.atomic == mark.atomic
            {
                old.bytes
            } else {
                0
            };
            self.write = Mark { bytes: seen | mark.bytes, ..mark };
        }
        found
    }

    #[inline(always)]
    fn note_read(&mut self, mark: Mark) {
        let same = self.reads.iter_mut().find(|read| read.clock == 0 || read.actor == mark.actor);
        let target = match same {
            Some(read) => read,
            None => &mut self.reads[1],
        };
        let seen =
            if target.clock == mark.clock && target.actor == mark.actor { target.bytes } else { 0 };
        *target = Mark { bytes: seen | mark.bytes, ..mark };
    }
}

impl Mark {
    /// Whether this earlier access is of another actor, on the same bytes, and not ordered.
    #[inline(always)]
    fn races(&self, later: &Mark, clock: &[u32]) -> bool {
        self.clock != 0
            && self.actor != later.actor
            && self.bytes & later.bytes != 0
            && clock.get(usize::from(self.actor)).is_none_or(|seen| *seen < self.clock)
    }

    fn race(&self) -> Finding {
        let earlier = if self.atomic { Access::Atomic } else { Access::Write };
        Finding::Race { actor: self.actor, at: self.at, earlier }
    }
}

#[cfg(test)]
mod tests {
    use super::super::clocks::Clock;
    use super::*;

    fn shadow() -> (SharedShadow, Clocks) {
        let (mut shadow, mut clocks) = (SharedShadow::default(), Clocks::default());
        shadow.reset(64, &[]);
        clocks.reset(3);
        (shadow, clocks)
    }

    #[test]
    fn a_barrier_orders_accesses_of_different_warps() {
        let (mut shadow, mut clocks) = shadow();
        assert_eq!(shadow.access(&clocks, 0, 4, Access::Write, 0, 7), None);
        let race = Finding::Race { actor: 0, at: 7, earlier: Access::Write };
        assert_eq!(shadow.access(&clocks, 0, 4, Access::Read, 1, 8), Some(race));
        clocks.synchronize(&[0, 1, 2]);
        assert_eq!(shadow.access(&clocks, 0, 4, Access::Read, 2, 9), None);
        let race = Finding::Race { actor: 2, at: 9, earlier: Access::Read };
        assert_eq!(shadow.access(&clocks, 0, 4, Access::Write, 0, 10), Some(race));
    }

    #[test]
    fn a_barrier_of_two_warps_does_not_order_a_third() {
        let (mut shadow, mut clocks) = shadow();
        shadow.access(&clocks, 0, 4, Access::Write, 0, 1);
        clocks.synchronize(&[0, 1]);
        assert_eq!(shadow.access(&clocks, 0, 4, Access::Read, 1, 2), None);
        assert!(shadow.access(&clocks, 0, 4, Access::Read, 2, 3).is_some());
    }

    #[test]
    fn bytes_that_nobody_wrote_are_found_one_by_one() {
        let (mut shadow, clocks) = shadow();
        shadow.access(&clocks, 5, 1, Access::Write, 0, 1);
        assert_eq!(shadow.access(&clocks, 5, 1, Access::Read, 0, 2), None);
        let found = shadow.access(&clocks, 4, 2, Access::Read, 0, 3);
        assert_eq!(found, Some(Finding::Uninitialized));
    }

    #[test]
    fn bytes_that_a_copy_is_on_its_way_to_may_not_be_touched() {
        let (mut shadow, clocks) = shadow();
        shadow.expect(0, 16);
        let found = shadow.access(&clocks, 12, 4, Access::Read, 0, 1);
        assert_eq!(found, Some(Finding::Pending));
        shadow.arrived(0, 16);
        assert_eq!(shadow.access(&clocks, 12, 4, Access::Write, 0, 2), None);
    }

    #[test]
    fn bytes_between_variables_are_closed() {
        let (mut shadow, clocks) = shadow();
        let gap = 10..32;
        shadow.reset(64, std::slice::from_ref(&gap));
        assert_eq!(shadow.access(&clocks, 8, 2, Access::Write, 0, 1), None);
        assert_eq!(shadow.access(&clocks, 10, 2, Access::Write, 0, 1), Some(Finding::Gap));
        assert_eq!(shadow.access(&clocks, 32, 4, Access::Write, 0, 1), None);
    }

    #[test]
    fn a_copy_is_ordered_before_those_who_acquired_it() {
        let (mut shadow, mut clocks) = shadow();
        let actor = clocks.new_actor();
        let time = clocks.copied(actor);
        shadow.delivered(0, 16, (actor, time), 5);
        let mut clock = Clock::default();
        clock.add(actor, time);
        let race = Finding::Race { actor, at: 5, earlier: Access::Write };
        assert_eq!(shadow.access(&clocks, 0, 4, Access::Read, 1, 6), Some(race));
        clocks.acquire(1, &clock);
        assert_eq!(shadow.access(&clocks, 0, 4, Access::Read, 1, 7), None);
        assert_eq!(shadow.begin_reading(&clocks, 0, 16, 1, 8), None);
    }

    #[test]
    fn asynchronous_readers_need_a_proxy_fence_on_the_way() {
        for (fenced_by, fence_first) in [(None, false), (Some(0), true), (Some(1), false)] {
            let (mut shadow, mut clocks) = shadow();
            shadow.access(&clocks, 0, 16, Access::Write, 0, 3);
            if let (Some(warp), true) = (fenced_by, fence_first) {
                clocks.fence(warp);
            }
            clocks.synchronize(&[0, 1]);
            if let (Some(warp), false) = (fenced_by, fence_first) {
                clocks.fence(warp);
            }
            let found = shadow.begin_reading(&clocks, 0, 16, 1, 9);
            let expected = fenced_by.is_none().then_some(Finding::Unfenced { at: 3 });
            assert_eq!(found, expected);
            assert_eq!(shadow.access(&clocks, 0, 4, Access::Write, 1, 10), Some(Finding::Reading));
            shadow.end_reading(&clocks, 0, 16, 1, 9);
            assert_eq!(shadow.access(&clocks, 4, 4, Access::Write, 1, 11), None);
        }
    }

    #[test]
    fn a_store_after_the_fence_is_not_covered() {
        let (mut shadow, mut clocks) = shadow();
        clocks.fence(0);
        shadow.access(&clocks, 0, 16, Access::Write, 0, 3);
        let found = shadow.begin_reading(&clocks, 0, 16, 0, 9);
        assert_eq!(found, Some(Finding::Unfenced { at: 3 }));
    }

    #[test]
    fn an_mbarrier_is_closed_to_other_accesses() {
        let (mut shadow, clocks) = shadow();
        shadow.set_mbarrier(8, true);
        assert_eq!(shadow.access(&clocks, 12, 4, Access::Read, 0, 1), Some(Finding::Mbarrier));
        shadow.set_mbarrier(8, false);
        assert_eq!(shadow.access(&clocks, 8, 8, Access::Write, 0, 1), None);
    }
}
