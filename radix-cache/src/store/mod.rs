//! Where the tokens and the page numbers of all nodes live.
//!
//! One slot holds one page: its tokens and its number. Slots sit in flat arrays, and a node's
//! run is a chain of *extents*, stretches of consecutive slots. Runs are therefore compared a
//! stretch at a time, at the speed of `memcmp`; splitting or trimming a run moves no
//! token; and free slots are one bit each in a map, where neighbours merge by themselves. Wear can
//! only cut runs into more extents, which costs time: it never costs memory.

mod free_map;
mod runs;
#[cfg(test)]
mod tests;

use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::store::free_map::{FreeMap, WORD};
use crate::types::{PageId, Tier, Token};

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
/// One slot in so many is kept free, so that looking for one is short.
const SLACK: usize = 16;

#[derive(Debug)]
pub(crate) struct Store {
    page_size: usize,
    tokens: Vec<Token>,
    /// The number of each slot's page on each tier; without a host tier, no numbers there.
    pages: [Vec<PageId>; 2],
    has_host: bool,
    /// The chained hash of each slot's page; without events, nothing.
    hashes: Vec<u64>,
    keep_hashes: bool,
    free: FreeMap,
    extents: Vec<Extent>,
    free_extents: Vec<u32>,
}

impl Store {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        Self {
            page_size: config.page_size,
            tokens: Vec::new(),
            pages: Default::default(),
            has_host: config.host.is_some(),
            hashes: Vec::new(),
            keep_hashes: config.events > 0,
            free: FreeMap::default(),
            extents: Vec::new(),
            free_extents: Vec::new(),
        }
    }

    pub(crate) fn page_size(&self) -> usize {
        self.page_size
    }

    /// Slots there are, used or not.
    pub(crate) fn slots_in_all(&self) -> usize {
        self.on(Tier::Device).len()
    }

    /// Slots in use.
    pub(crate) fn used(&self) -> usize {
        self.slots_in_all() - self.free.count()
    }

    /// Bytes reserved for tokens and page numbers.
    pub(crate) fn content_bytes(&self) -> usize {
        let pages = self.on(Tier::Device).capacity() * size_of::<PageId>();
        self.tokens.capacity() * size_of::<Token>() + pages
    }

    /// Bytes reserved for extents and the free map.
    pub(crate) fn structure_bytes(&self) -> usize {
        self.extents.capacity() * size_of::<Extent>()
            + self.free_extents.capacity() * size_of::<u32>()
            + self.on(Tier::Host).capacity() * size_of::<PageId>()
            + self.hashes.capacity() * size_of::<u64>()
            + self.free.bytes()
    }

    /// Makes room for so many pages, so that appending them can't fail.
    pub(crate) fn reserve(&mut self, pages: usize) -> Result<(), CacheError> {
        let slack = (self.used() + pages) / SLACK;
        let Some(missing) = (pages + slack).checked_sub(self.free.count() + 1) else {
            return Ok(());
        };
        let words = missing / WORD + 1;
        let slots = self.slots_in_all() + words * WORD;
        if slots >= NO_EXTENT as usize {
            return Err(CacheError::Full { pages });
        }
        self.tokens.resize(slots * self.page_size, 0);
        self.pages[Tier::Device as usize].resize(slots, PageId::NONE);
        if self.has_host {
            self.pages[Tier::Host as usize].resize(slots, PageId::NONE);
        }
        if self.keep_hashes {
            self.hashes.resize(slots, 0);
        }
        self.free.grow(words);
        Ok(())
    }

    /// Adds pages to the end of a run, after [`reserve`](Self::reserve) made room for them.
    pub(crate) fn append(&mut self, run: &mut Run, mut tokens: &[Token], mut pages: &[PageId]) {
        if run.tail != NO_EXTENT {
            let tail = self.extents[run.tail as usize];
            self.free.look_from((tail.start + tail.length) as usize);
        }
        while !pages.is_empty() {
            let (start, length) = self.free.take(pages.len());
            let (these_tokens, other_tokens) = tokens.split_at(length * self.page_size);
            let (these_pages, other_pages) = pages.split_at(length);
            let first = start * self.page_size;
            self.tokens[first..first + these_tokens.len()].copy_from_slice(these_tokens);
            self.pages[Tier::Device as usize][start..start + length].copy_from_slice(these_pages);
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
            let [device, host] = &mut self.pages;
            if self.has_host {
                take_present(&mut device[slots.clone()], freed);
                take_present(&mut host[slots.clone()], freed_on_host);
            } else {
                freed.extend_from_slice(&device[slots.clone()]);
            }
            self.free.give(slots);
            self.free_extents.push(cut.head);
            cut.head = extent.next;
        }
    }

    /// The page of each slot on a tier.
    fn on(&self, tier: Tier) -> &Vec<PageId> {
        &self.pages[tier as usize]
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
        let page = core::mem::replace(page, PageId::NONE);
        if page != PageId::NONE {
            to.push(page);
        }
    }
}
