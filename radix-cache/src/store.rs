//! Where the tokens and the page numbers of all nodes live.
//!
//! One slot holds one page: its tokens and its number. Slots sit in flat arrays, and a node's
//! run is a chain of *extents*, stretches of consecutive slots. Runs are therefore compared a
//! stretch at a time, at the speed of `memcmp`; splitting or trimming a run moves no
//! token; and free slots are one bit each in a map, where neighbours merge by themselves. Wear can
//! only cut runs into more extents, which costs time: it never costs memory.

use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::events::page_hash;
use crate::types::{PageId, Token};

/// A node's pages, in order. Owned by exactly one node; [`Store::truncate`] to 0 gives it back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    head: u32,
    tail: u32,
    /// Length in pages.
    pub(crate) pages: u32,
}

impl Run {
    pub(crate) const EMPTY: Self = Self { head: NO_EXTENT, tail: NO_EXTENT, pages: 0 };
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    /// The first slot.
    start: u32,
    /// How many slots.
    length: u32,
    /// The extent that follows in the same run.
    next: u32,
}

const NO_EXTENT: u32 = u32::MAX;
/// Stands where a page has no number.
pub(crate) const NO_PAGE: PageId = PageId(u32::MAX);
/// Slots a word of the free map covers; the arrays grow by whole words.
const WORD: usize = u64::BITS as usize;
/// One slot in so many is kept free, so that looking for one is short.
const SLACK: usize = 16;
/// Tokens compared by one call of `memcmp` before a mismatch is looked for one by one.
const STRIDE: usize = 512;

#[derive(Debug)]
pub(crate) struct Store {
    page_size: usize,
    tokens: Vec<Token>,
    pages: Vec<PageId>,
    /// The chained hash of each slot's page; without events, nothing.
    hashes: Vec<u64>,
    keep_hashes: bool,
    /// The number of each slot's copy on the host; without a host tier, nothing.
    host_pages: Vec<PageId>,
    keep_host_pages: bool,
    /// One bit a slot; set means free.
    free: Vec<u64>,
    free_slots: usize,
    /// Where the next search for a free slot begins.
    cursor: usize,
    extents: Vec<Extent>,
    free_extents: Vec<u32>,
}

impl Store {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        Self {
            page_size: config.page_size,
            tokens: Vec::new(),
            pages: Vec::new(),
            hashes: Vec::new(),
            keep_hashes: config.events > 0,
            host_pages: Vec::new(),
            keep_host_pages: config.host.is_some(),
            free: Vec::new(),
            free_slots: 0,
            cursor: 0,
            extents: Vec::new(),
            free_extents: Vec::new(),
        }
    }

    pub(crate) fn page_size(&self) -> usize {
        self.page_size
    }

    /// The slots of a run's pages, in order. A page keeps its slot until it is freed.
    pub(crate) fn slots(&self, run: Run) -> impl Iterator<Item = usize> + '_ {
        slots_of(&self.extents, run).flatten()
    }

    /// Slots there are, used or not.
    pub(crate) fn slots_in_all(&self) -> usize {
        self.pages.len()
    }

    /// Slots in use.
    pub(crate) fn used(&self) -> usize {
        self.pages.len() - self.free_slots
    }

    /// Bytes reserved for tokens and page numbers.
    pub(crate) fn content_bytes(&self) -> usize {
        self.tokens.capacity() * size_of::<Token>() + self.pages.capacity() * size_of::<PageId>()
    }

    /// Bytes reserved for extents and the free map.
    pub(crate) fn structure_bytes(&self) -> usize {
        self.extents.capacity() * size_of::<Extent>()
            + self.free_extents.capacity() * size_of::<u32>()
            + self.host_pages.capacity() * size_of::<PageId>()
            + (self.free.capacity() + self.hashes.capacity()) * size_of::<u64>()
    }

    /// Makes room for so many pages, so that appending them can't fail.
    pub(crate) fn reserve(&mut self, pages: usize) -> Result<(), CacheError> {
        let slack = (self.used() + pages) / SLACK;
        let Some(missing) = (pages + slack).checked_sub(self.free_slots + 1) else {
            return Ok(());
        };
        let words = missing / WORD + 1;
        let slots = self.pages.len() + words * WORD;
        if slots >= NO_EXTENT as usize {
            return Err(CacheError::Full { pages });
        }
        self.tokens.resize(slots * self.page_size, 0);
        self.pages.resize(slots, NO_PAGE);
        if self.keep_host_pages {
            self.host_pages.resize(slots, NO_PAGE);
        }
        if self.keep_hashes {
            self.hashes.resize(slots, 0);
        }
        self.free.resize(slots / WORD, u64::MAX);
        self.free_slots += words * WORD;
        Ok(())
    }

    /// Adds pages to the end of a run, after [`reserve`](Self::reserve) made room for them.
    pub(crate) fn append(&mut self, run: &mut Run, mut tokens: &[Token], mut pages: &[PageId]) {
        if run.tail != NO_EXTENT {
            let tail = self.extents[run.tail as usize];
            self.cursor = (tail.start + tail.length) as usize;
        }
        while !pages.is_empty() {
            let (start, length) = self.take_free(pages.len());
            let (these_tokens, other_tokens) = tokens.split_at(length * self.page_size);
            let (these_pages, other_pages) = pages.split_at(length);
            let first = start * self.page_size;
            self.tokens[first..first + these_tokens.len()].copy_from_slice(these_tokens);
            self.pages[start..start + length].copy_from_slice(these_pages);
            self.link(run, start as u32, length as u32);
            (tokens, pages) = (other_tokens, other_pages);
        }
    }

    /// Cuts a run in two: `run` keeps what follows the first `at` pages, which are returned.
    pub(crate) fn split(&mut self, run: &mut Run, at: u32) -> Run {
        let (index, inside) = self.locate(*run, at);
        let extent = self.extents[index as usize];
        let lower_head = if inside == extent.length {
            extent.next
        } else {
            self.new_extent(Extent {
                start: extent.start + inside,
                length: extent.length - inside,
                next: extent.next,
            })
        };
        self.extents[index as usize].length = inside;
        self.extents[index as usize].next = NO_EXTENT;
        let upper = Run { head: run.head, tail: index, pages: at };
        run.head = lower_head;
        // The last extent of the whole was the one that was cut: its second part is now last.
        if run.tail == index {
            run.tail = lower_head;
        }
        run.pages -= at;
        upper
    }

    /// Frees what follows the first `keep` pages of a run, and lists those pages, of the device and
    /// of the host.
    pub(crate) fn truncate(
        &mut self,
        run: &mut Run,
        keep: u32,
        freed: &mut Vec<PageId>,
        freed_on_host: &mut Vec<PageId>,
    ) {
        let mut cut = if keep == 0 {
            core::mem::replace(run, Run::EMPTY)
        } else if keep < run.pages {
            let upper = self.split(run, keep);
            core::mem::replace(run, upper)
        } else {
            return;
        };
        while cut.head != NO_EXTENT {
            let extent = self.extents[cut.head as usize];
            let start = extent.start as usize;
            let slots = start..start + extent.length as usize;
            if self.keep_host_pages {
                take_present(&mut self.pages[slots.clone()], freed);
                take_present(&mut self.host_pages[slots.clone()], freed_on_host);
            } else {
                freed.extend_from_slice(&self.pages[slots.clone()]);
            }
            self.mark_free(slots);
            self.free_extents.push(cut.head);
            cut.head = extent.next;
        }
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

    /// The run's stretches, in order: their tokens and their page numbers.
    pub(crate) fn extents_of(&self, run: Run) -> impl Iterator<Item = (&[Token], &[PageId])> {
        slots_of(&self.extents, run).map(|slots| {
            let tokens = slots.start * self.page_size..slots.end * self.page_size;
            (&self.tokens[tokens], &self.pages[slots])
        })
    }

    /// Appends the numbers of the run's first `count` pages.
    pub(crate) fn copy_pages(&self, run: Run, count: u32, pages: &mut Vec<PageId>) {
        let mut left = count as usize;
        for (_, stretch) in self.extents_of(run) {
            let stretch = &stretch[..stretch.len().min(left)];
            pages.extend_from_slice(stretch);
            left -= stretch.len();
            if left == 0 {
                break;
            }
        }
    }

    /// Takes the numbers of the run's pages on the device away, and lists them.
    pub(crate) fn take_pages(&mut self, run: Run, taken: &mut Vec<PageId>) {
        for slots in slots_of(&self.extents, run) {
            take_present(&mut self.pages[slots], taken);
        }
    }

    /// Takes the numbers of the run's pages on the host away, and lists them.
    pub(crate) fn take_host_pages(&mut self, run: Run, taken: &mut Vec<PageId>) {
        for slots in slots_of(&self.extents, run) {
            take_present(&mut self.host_pages[slots], taken);
        }
    }

    /// Numbers all of the run's pages on the device.
    pub(crate) fn put_pages(&mut self, run: Run, mut pages: &[PageId]) {
        for slots in slots_of(&self.extents, run) {
            let (these, others) = pages.split_at(slots.len());
            self.pages[slots].copy_from_slice(these);
            pages = others;
        }
    }

    /// Numbers all of the run's pages on the host.
    pub(crate) fn put_host_pages(&mut self, run: Run, mut pages: &[PageId]) {
        for slots in slots_of(&self.extents, run) {
            let (these, others) = pages.split_at(slots.len());
            self.host_pages[slots].copy_from_slice(these);
            pages = others;
        }
    }

    /// Appends the numbers of the run's pages on the host.
    pub(crate) fn copy_host_pages(&self, run: Run, pages: &mut Vec<PageId>) {
        for slots in slots_of(&self.extents, run) {
            pages.extend_from_slice(&self.host_pages[slots]);
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
    pub(crate) fn hashes(&self, run: Run, pages: core::ops::Range<u32>) -> Vec<u64> {
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

    /// Overwrites the numbers of the run's first pages.
    #[cfg(feature = "seeded-bugs")]
    pub(crate) fn replace_pages(&mut self, run: Run, mut pages: &[PageId]) {
        for slots in slots_of(&self.extents, run) {
            let count = slots.len().min(pages.len());
            self.pages[slots.start..slots.start + count].copy_from_slice(&pages[..count]);
            pages = &pages[count..];
        }
    }

    /// The extent that holds the page before position `at` (from 1), and how many of its slots
    /// come before `at`.
    fn locate(&self, run: Run, at: u32) -> (u32, u32) {
        let mut index = run.head;
        let mut before = at;
        loop {
            let extent = self.extents[index as usize];
            if before <= extent.length {
                return (index, before);
            }
            before -= extent.length;
            index = extent.next;
        }
    }

    fn link(&mut self, run: &mut Run, start: u32, length: u32) {
        run.pages += length;
        if run.tail != NO_EXTENT {
            let tail = &mut self.extents[run.tail as usize];
            if tail.start + tail.length == start {
                tail.length += length;
                return;
            }
        }
        let index = self.new_extent(Extent { start, length, next: NO_EXTENT });
        if run.tail == NO_EXTENT {
            run.head = index;
        } else {
            self.extents[run.tail as usize].next = index;
        }
        run.tail = index;
    }

    fn new_extent(&mut self, extent: Extent) -> u32 {
        if let Some(index) = self.free_extents.pop() {
            self.extents[index as usize] = extent;
            return index;
        }
        // There is at most one extent a slot, and slots are numbered in 32 bits.
        self.extents.push(extent);
        (self.extents.len() - 1) as u32
    }

    /// Takes the next stretch of free slots, at most `wanted` long: its first slot and length.
    fn take_free(&mut self, wanted: usize) -> (usize, usize) {
        let words = self.free.len();
        let mut word = self.cursor / WORD % words;
        let mut bits = self.free[word] & (u64::MAX << (self.cursor % WORD));
        while bits == 0 {
            word = (word + 1) % words;
            bits = self.free[word];
        }
        let start = word * WORD + bits.trailing_zeros() as usize;
        let mut length = 0;
        while length < wanted {
            let slot = start + length;
            let Some(word) = self.free.get_mut(slot / WORD) else {
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
        self.free_slots -= length;
        self.cursor = start + length;
        (start, length)
    }

    fn mark_free(&mut self, slots: core::ops::Range<usize>) {
        self.free_slots += slots.len();
        let mut slot = slots.start;
        while slot < slots.end {
            let offset = slot % WORD;
            let count = (WORD - offset).min(slots.end - slot);
            self.free[slot / WORD] |= ones_from(offset, count);
            slot += count;
        }
    }
}

/// The slots of a run, a stretch at a time.
fn slots_of(extents: &[Extent], run: Run) -> impl Iterator<Item = core::ops::Range<usize>> {
    let mut next = run.head;
    core::iter::from_fn(move || {
        let extent = extents.get(next as usize)?;
        next = extent.next;
        let start = extent.start as usize;
        Some(start..start + extent.length as usize)
    })
}

/// Moves the numbers that are there.
fn take_present(from: &mut [PageId], to: &mut Vec<PageId>) {
    for page in from {
        let page = core::mem::replace(page, NO_PAGE);
        if page != NO_PAGE {
            to.push(page);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contents(store: &Store, run: Run) -> (Vec<Token>, Vec<PageId>) {
        let mut all = (Vec::new(), Vec::new());
        for (tokens, pages) in store.extents_of(run) {
            all.0.extend_from_slice(tokens);
            all.1.extend_from_slice(pages);
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn runs_keep_their_pages_through_growth_splits_and_cuts(
            page_size in prop::sample::select(vec![1usize, 4, 32]),
            steps in prop::collection::vec((0u8..4, any::<u16>(), 1usize..150), 1..120),
        ) {
            let mut store = Store::new(&CacheConfig::default().page_size(page_size));
            let mut live: Vec<(Run, Vec<PageId>)> = Vec::new();
            let mut number = 0;
            for (kind, pick, amount) in steps {
                let pick = if live.is_empty() { 0 } else { usize::from(pick) % live.len() };
                if kind == 0 || live.is_empty() {
                    live.push((Run::EMPTY, Vec::new()));
                }
                let index = if kind == 0 { live.len() - 1 } else { pick };
                let (run, model) = &mut live[index];
                if kind <= 1 {
                    let pages: Vec<PageId> = (number..number + amount as u32).map(PageId).collect();
                    number += amount as u32;
                    let tokens: Vec<Token> =
                        pages.iter().flat_map(|page| vec![page.0; page_size]).collect();
                    store.reserve(amount).unwrap();
                    store.append(run, &tokens, &pages);
                    model.extend(pages);
                } else if kind == 2 && run.pages > 1 {
                    let at = 1 + amount as u32 % (run.pages - 1);
                    let upper = store.split(run, at);
                    let lower = model.split_off(at as usize);
                    let upper_model = core::mem::replace(model, lower);
                    live.push((upper, upper_model));
                } else if kind == 3 {
                    let keep = run.pages.saturating_sub(amount as u32);
                    let mut freed = Vec::new();
                    store.truncate(run, keep, &mut freed, &mut Vec::new());
                    prop_assert_eq!(freed, model.split_off(keep as usize));
                    if keep == 0 {
                        live.swap_remove(index);
                    }
                }
                let used: usize = live.iter().map(|(_, model)| model.len()).sum();
                prop_assert_eq!(store.used(), used);
                for (run, model) in &live {
                    let (tokens, pages) = contents(&store, *run);
                    prop_assert_eq!(&pages, model);
                    prop_assert_eq!(run.pages as usize, model.len());
                    let expected: Vec<Token> =
                        model.iter().flat_map(|page| vec![page.0; page_size]).collect();
                    prop_assert_eq!(&tokens, &expected);
                    prop_assert_eq!(store.common_pages(*run, &tokens), run.pages);
                }
            }
        }
    }

    #[test]
    fn a_mismatch_inside_a_page_does_not_count_it() {
        let mut store = Store::new(&CacheConfig::default().page_size(4));
        let mut run = Run::EMPTY;
        let tokens: Vec<Token> = (0..4096).collect();
        let pages: Vec<PageId> = (0..1024).map(PageId).collect();
        store.reserve(pages.len()).unwrap();
        store.append(&mut run, &tokens, &pages);
        for different in [0, 3, 4, 511, 512, 2047, 4095] {
            let mut query = tokens.clone();
            query[different] += 1;
            assert_eq!(store.common_pages(run, &query) as usize, different / 4);
        }
        assert_eq!(store.common_pages(run, &tokens[..10]), 2);
    }
}
