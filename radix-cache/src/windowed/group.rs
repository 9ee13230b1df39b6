//! What the cache remembers of the windowed group: its pages, who holds them, and who goes first.

use core::ops::Range;

use crate::config::Policy;
use crate::order::{Order, Place, Rank, Record};
use crate::rank_heap::Numbered;
use crate::tree::NodeIndex;
use crate::types::{PageId, WindowedCounts};

/// The place of a windowed page in the group's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryIndex(u32);

impl EntryIndex {
    pub(super) const NONE: Self = Self(u32::MAX);

    fn index(self) -> usize {
        self.0 as usize
    }
}

impl Numbered for EntryIndex {
    fn number(self) -> usize {
        self.index()
    }
}

/// One page of the windowed group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowedPage {
    pub(crate) page: PageId,
    /// Where the store keeps the tokens and the full page of the same position.
    pub(crate) slot: u32,
    /// The root of its namespace.
    pub(crate) root: NodeIndex,
    /// Pages between the start of the prompt and this one.
    pub(super) position: u32,
    /// Whether it was in the window of a place where a sequence or a match ended. The others were
    /// only passed by, and nobody has ever asked for them.
    pub(crate) near_end: bool,
    pub(crate) record: Record,
}

/// Smaller goes first: those that were only passed by; then the policy's word; then the turn among
/// those that one window left together.
pub(super) type WindowedRank = (bool, Rank, u32);

/// The state of the windowed group.
///
/// The order of eviction is lazy. A lock touches each page of its window, often hundreds, so
/// holding a page does not take it out of the order and letting it go does not move it. Ranks only
/// grow (one that shrinks is moved at once), so whoever comes first in the order, and is neither held
/// nor misplaced, is first in truth; whoever is one of the two is put right when found.
#[derive(Debug)]
pub(crate) struct WindowedGroup {
    policy: Policy,
    /// How many pages the window in front of a position covers at most.
    pub(super) reach: u32,
    pub(super) pages: Vec<WindowedPage>,
    pub(super) free: Vec<EntryIndex>,
    /// The windowed page of each slot of the store.
    pub(super) of_slot: Vec<EntryIndex>,
    /// How many locks' windows cover each slot, whether a page is there or not.
    pub(super) holds: Vec<u32>,
    pub(super) order: Order<EntryIndex, WindowedRank>,
    counts: WindowedCounts,
    /// Counts what changes the order; stands in for time.
    pub(super) clock: u64,
    /// The caller's clock, in ticks.
    now: u64,
    /// Pages that left the cache with their full pages and that nobody has taken yet.
    left: Vec<PageId>,
}

impl WindowedGroup {
    /// An empty group whose window covers `tokens` positions, at least 1.
    pub(crate) fn new(tokens: usize, page_size: usize, policy: Policy) -> Self {
        // Its own position is in a token's window, and is not cached before it is computed.
        let reach = tokens.saturating_sub(1).div_ceil(page_size);
        Self {
            policy,
            reach: u32::try_from(reach).unwrap_or(u32::MAX),
            pages: Vec::new(),
            free: Vec::new(),
            of_slot: Vec::new(),
            holds: Vec::new(),
            order: Order::default(),
            counts: WindowedCounts::default(),
            clock: 0,
            now: 0,
            left: Vec::new(),
        }
    }

    pub(crate) fn counts(&self) -> WindowedCounts {
        self.counts
    }

    pub(crate) fn clock(&self) -> u64 {
        self.clock
    }

    /// Sets the clock of a group that is restored.
    pub(crate) fn set_clock(&mut self, clock: u64) {
        self.clock = clock;
    }

    /// Takes the pages that left the cache with their full pages.
    pub(crate) fn take_left(&mut self) -> impl Iterator<Item = PageId> + '_ {
        self.left.drain(..)
    }

    /// Pages leave the cache outside of [`evict`](Self::evict).
    pub(crate) fn leave(&mut self, pages: impl IntoIterator<Item = PageId>) {
        self.left.extend(pages);
    }

    /// The positions that the window in front of `end` covers, in pages.
    pub(super) fn window(&self, end: u32) -> Range<u32> {
        end.saturating_sub(self.reach)..end
    }

    /// Makes room for so many slots.
    pub(crate) fn grow(&mut self, slots: usize) {
        if self.holds.len() < slots {
            self.of_slot.resize(slots, EntryIndex::NONE);
            self.holds.resize(slots, 0);
        }
    }

    pub(crate) fn at(&self, slot: usize) -> Option<&WindowedPage> {
        self.pages.get(self.of_slot[slot].index())
    }

    pub(super) fn at_mut(&mut self, slot: usize) -> Option<&mut WindowedPage> {
        self.pages.get_mut(self.of_slot[slot].index())
    }

    /// For each of some slots, whether it has a page.
    pub(super) fn present(&self, slots: Range<usize>) -> impl Iterator<Item = bool> {
        self.of_slot[slots].iter().map(|&index| index != EntryIndex::NONE)
    }

    /// Changes the pages of some slots.
    pub(super) fn change(&mut self, slots: Range<usize>, change: impl Fn(&mut WindowedPage)) {
        for index in &self.of_slot[slots] {
            if let Some(page) = self.pages.get_mut(index.index()) {
                change(page);
            }
        }
    }

    /// One more window covers some slots.
    pub(super) fn hold(&mut self, slots: Range<usize>) {
        let mut locked = 0;
        let there = self.of_slot[slots.clone()].iter().map(|&index| index != EntryIndex::NONE);
        for (holds, is_there) in self.holds[slots].iter_mut().zip(there) {
            *holds += 1;
            locked += usize::from(*holds == 1 && is_there);
        }
        self.counts.evictable -= locked;
        self.counts.locked += locked;
    }

    /// A window leaves some slots.
    pub(super) fn let_go(&mut self, slots: Range<usize>) {
        let used = self.clock;
        for slot in slots {
            self.holds[slot] -= 1;
            if let Some(left) = self.at_mut(slot) {
                left.record.used = used;
                if self.holds[slot] == 0 {
                    self.counts.locked -= 1;
                    self.counts.evictable += 1;
                    self.file(self.of_slot[slot]);
                }
            }
        }
    }

    /// Adds a page at a slot that has none.
    pub(crate) fn add(&mut self, added: WindowedPage) {
        let slot = added.slot as usize;
        let index = match self.free.pop() {
            Some(index) => {
                self.pages[index.index()] = added;
                index
            }
            None => {
                // There is at most one a slot, and slots are numbered in 32 bits.
                self.pages.push(added);
                EntryIndex((self.pages.len() - 1) as u32)
            }
        };
        self.of_slot[slot] = index;
        self.counts.total += 1;
        if self.holds[slot] > 0 {
            self.counts.locked += 1;
        } else {
            self.counts.evictable += 1;
            self.file(index);
        }
    }

    /// Takes an unheld page away from a slot, if one is there.
    pub(super) fn remove(&mut self, slot: usize) -> Option<WindowedPage> {
        let removed = self.at(slot).copied()?;
        let index = core::mem::replace(&mut self.of_slot[slot], EntryIndex::NONE);
        self.order.remove(index);
        self.free.push(index);
        self.counts.evictable -= 1;
        self.counts.total -= 1;
        Some(removed)
    }

    /// Forgets everything; its pages are those that left.
    pub(crate) fn reset(&mut self) {
        let of_slot = self.of_slot.iter();
        let present = of_slot.filter_map(|index| self.pages.get(index.index()));
        self.left.extend(present.map(|there| there.page));
        self.pages.clear();
        self.free.clear();
        self.of_slot.fill(EntryIndex::NONE);
        self.holds.fill(0);
        self.order.clear();
        self.counts = WindowedCounts::default();
    }

    /// Takes the page that goes first of those that no window covers.
    pub(crate) fn evict(&mut self) -> Option<WindowedPage> {
        let slot = self.first_to_go()?;
        self.remove(slot)
    }

    /// The slot whose page goes next.
    fn first_to_go(&mut self) -> Option<usize> {
        loop {
            let first = self.order.first()?;
            let page = &self.pages[first.index()];
            let slot = page.slot as usize;
            let is_held = self.holds[slot] > 0;
            let place = self.expected_place(page);
            if !is_held && self.order.place_of(first) == Some(place) {
                return Some(slot);
            }
            self.order.remove(first);
            if !is_held {
                self.order.insert(first, place);
            }
        }
    }

    /// Tells the time. Those whose retention is over queue with the others again.
    pub(crate) fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        while let Some(first) = self.order.first_retained() {
            let is_over = |(_, (_, (until, _), _)): &Place<WindowedRank>| *until <= self.now;
            if !self.order.place_of(first).is_some_and(|place| is_over(&place)) {
                break;
            }
            self.order.remove(first);
            let page = &self.pages[first.index()];
            if self.holds[page.slot as usize] == 0 {
                self.order.insert(first, self.expected_place(page));
            }
        }
    }

    /// Where an unheld page belongs.
    pub(super) fn expected_place(&self, page: &WindowedPage) -> Place<WindowedRank> {
        let (is_retained, rank) = page.record.place(self.policy, self.now);
        (is_retained, (is_retained || page.near_end, rank, self.turn(page.position)))
    }

    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.capacity() * size_of::<WindowedPage>()
            + (self.free.capacity() + self.of_slot.capacity()) * size_of::<EntryIndex>()
            + self.holds.capacity() * size_of::<u32>()
            + self.left.capacity() * size_of::<PageId>()
            + self.order.bytes()
    }

    fn file(&mut self, index: EntryIndex) {
        let page = &self.pages[index.index()];
        // When a retention is over, a rank may shrink: what is retained is never left among others.
        let is_retained = page.record.is_retained(self.now);
        if self.policy != Policy::Mru && self.order.is_filed(index, is_retained) {
            return;
        }
        let place = self.expected_place(page);
        self.order.remove(index);
        self.order.insert(index, place);
    }

    /// Whose turn it is among pages that one window left together. First from the front, for what
    /// is further back keeps the end matchable. The first window of a prompt goes last and from
    /// its back, for there every shorter prefix can be matched by itself.
    fn turn(&self, position: u32) -> u32 {
        if position < self.reach { u32::MAX - position } else { position }
    }
}

impl WindowedPage {
    /// The page of a position of a prompt, kept in a slot below a root.
    pub(crate) fn new(
        page: PageId,
        (root, position, slot): (NodeIndex, u32, usize),
        record: Record,
    ) -> Self {
        Self { page, slot: slot as u32, root, position, near_end: false, record }
    }
}
