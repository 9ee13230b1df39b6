//! What a run holds: its tokens, and the numbers and hashes of its pages.

use core::ops::Range;

use crate::hash::page_hash;
use crate::store::{Run, Store, slots_of, take_present};
use crate::types::{PageId, Tier, Token};

/// Tokens compared by one call of `memcmp` before a mismatch is looked for one by one.
const STRIDE: usize = 512;

impl Store {
    /// The slots of a run's pages, in order. A page keeps its slot until it is freed.
    pub(crate) fn slots(&self, run: Run) -> impl Iterator<Item = usize> + '_ {
        slots_of(&self.extents, run).flatten()
    }

    /// The slots of some of a run's pages, a stretch at a time, each with the place of its first
    /// page in the run.
    pub(crate) fn stretches(
        &self,
        run: Run,
        pages: Range<u32>,
    ) -> impl Iterator<Item = (u32, Range<usize>)> + '_ {
        let mut end = 0;
        let stretches = slots_of(&self.extents, run).map(move |slots| {
            let (first, start) = (end, slots.start);
            end += slots.len() as u32;
            let (from, to) = (first.max(pages.start), end.min(pages.end));
            (from, start + (from - first) as usize..start + to.saturating_sub(first) as usize)
        });
        let before_end = stretches.take_while(move |(from, _)| *from < pages.end);
        before_end.filter(|(_, slots)| !slots.is_empty())
    }

    /// How many whole pages at the start of `tokens` equal the start of the run.
    pub(crate) fn common_pages(&self, run: Run, tokens: &[Token]) -> u32 {
        let mut matched = 0;
        let mut rest = tokens;
        for (cached, _) in self.extents_of(run) {
            let length = cached.len().min(rest.len());
            let common = common_prefix(&cached[..length], &rest[..length]);
            matched += common;
            if common < cached.len() {
                break;
            }
            rest = &rest[common..];
        }
        (matched / self.page_size) as u32
    }

    /// The tokens of the run's first page. Empty for an empty run.
    pub(crate) fn first_page(&self, run: Run) -> &[Token] {
        let Some(extent) = self.extents.get(run.head as usize) else {
            return &[];
        };
        let first = extent.start as usize * self.page_size;
        &self.tokens[first..first + self.page_size]
    }

    /// The run's stretches, in order: their tokens and their page numbers on the device.
    pub(crate) fn extents_of(&self, run: Run) -> impl Iterator<Item = (&[Token], &[PageId])> {
        slots_of(&self.extents, run).map(|slots| {
            let tokens = slots.start * self.page_size..slots.end * self.page_size;
            (&self.tokens[tokens], &self.on(Tier::Device)[slots])
        })
    }

    /// Appends the numbers of the run's first `count` pages on a tier.
    pub(crate) fn copy_pages(&self, run: Run, tier: Tier, count: u32, pages: &mut Vec<PageId>) {
        let mut left = count as usize;
        for slots in slots_of(&self.extents, run) {
            let stretch = &self.on(tier)[slots.start..slots.start + slots.len().min(left)];
            pages.extend_from_slice(stretch);
            left -= stretch.len();
            if left == 0 {
                break;
            }
        }
    }

    /// Takes the numbers of the run's pages on a tier away, and lists them.
    pub(crate) fn take_pages(&mut self, run: Run, tier: Tier, taken: &mut Vec<PageId>) {
        for slots in slots_of(&self.extents, run) {
            take_present(&mut self.pages[tier as usize][slots], taken);
        }
    }

    /// Numbers all of the run's pages on a tier.
    pub(crate) fn put_pages(&mut self, run: Run, tier: Tier, mut pages: &[PageId]) {
        for slots in slots_of(&self.extents, run) {
            let (these, others) = pages.split_at(slots.len());
            self.pages[tier as usize][slots].copy_from_slice(these);
            pages = others;
        }
    }

    /// Hashes the run's pages from `from` on, each with the hash of the page before it; the first
    /// of them with `seed`.
    pub(crate) fn chain(&mut self, run: Run, from: u32, seed: u64) {
        let mut parent = seed;
        for slot in slots_of(&self.extents, run).flatten().skip(from as usize) {
            let first = slot * self.page_size;
            parent = page_hash(parent, &self.tokens[first..first + self.page_size]);
            self.hashes[slot] = parent;
        }
    }

    /// The hashes of a stretch of the run's pages.
    pub(crate) fn hashes(&self, run: Run, pages: Range<u32>) -> Vec<u64> {
        let slots = self.slots(run).skip(pages.start as usize).take(pages.len());
        slots.map(|slot| self.hashes[slot]).collect()
    }

    /// The hash of the page in a slot.
    pub(crate) fn hash_at(&self, slot: usize) -> Option<u64> {
        self.hashes.get(slot).copied()
    }

    /// The hash of the page before position `at`; none at the start of the run.
    pub(crate) fn hash_before(&self, run: Run, at: u32) -> Option<u64> {
        if at == 0 {
            return None;
        }
        let (index, inside) = self.locate(run, at);
        let extent = self.extents.get(index as usize)?;
        self.hashes.get((extent.start + inside - 1) as usize).copied()
    }
}

/// The length of the longest common prefix of two slices of equal length.
fn common_prefix(left: &[Token], right: &[Token]) -> usize {
    let strides = left.chunks(STRIDE).zip(right.chunks(STRIDE));
    let mut common = 0;
    for (left, right) in strides {
        if left != right {
            let different = left.iter().zip(right).position(|(left, right)| left != right);
            return common + different.unwrap_or(left.len());
        }
        common += left.len();
    }
    common
}
