//! Which slots are free: one bit each, where neighbours merge by themselves.

/// Slots a word covers; the map grows by whole words.
pub(super) const WORD: usize = u64::BITS as usize;

/// A map of slots; a set bit means free.
#[derive(Debug, Default)]
pub(super) struct FreeMap {
    words: Vec<u64>,
    count: usize,
    /// Where the next search for a free slot begins.
    cursor: usize,
}

impl FreeMap {
    /// Free slots.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    /// Adds so many words of free slots.
    pub(super) fn grow(&mut self, words: usize) {
        self.words.resize(self.words.len() + words, u64::MAX);
        self.count += words * WORD;
    }

    /// Looks from here on next time: the neighbours of a run are the best place for its next pages.
    pub(super) fn look_from(&mut self, slot: usize) {
        self.cursor = slot;
    }

    /// Takes the next stretch of free slots, at most `wanted` long: its first slot and length.
    pub(super) fn take(&mut self, wanted: usize) -> (usize, usize) {
        let words = self.words.len();
        let mut word = self.cursor / WORD % words;
        let mut bits = self.words[word] & (u64::MAX << (self.cursor % WORD));
        while bits == 0 {
            word = (word + 1) % words;
            bits = self.words[word];
        }
        let start = word * WORD + bits.trailing_zeros() as usize;
        let mut length = 0;
        while length < wanted {
            let slot = start + length;
            let Some(word) = self.words.get_mut(slot / WORD) else {
                break;
            };
            let offset = slot % WORD;
            let ones = (!(*word >> offset)).trailing_zeros() as usize;
            let taken = ones.min(WORD - offset).min(wanted - length);
            *word &= !(ones_from(offset, taken));
            length += taken;
            if taken < WORD - offset {
                break;
            }
        }
        self.count -= length;
        self.cursor = start + length;
        (start, length)
    }

    /// Slots are free again.
    pub(super) fn give(&mut self, slots: core::ops::Range<usize>) {
        self.count += slots.len();
        let mut slot = slots.start;
        while slot < slots.end {
            let offset = slot % WORD;
            let count = (WORD - offset).min(slots.end - slot);
            self.words[slot / WORD] |= ones_from(offset, count);
            slot += count;
        }
    }
}

/// A word with `count` bits set from `offset` upwards; `count` may be a whole word.
fn ones_from(offset: usize, count: usize) -> u64 {
    match count {
        0 => 0,
        _ => (u64::MAX >> (WORD - count)) << offset,
    }
}
