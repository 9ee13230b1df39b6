//! Slots, their page tables, and the pool that fills them.
//!
//! A table of full groups names a page for each position that is computed or launched. A table of
//! windowed groups is as long and keeps the absolute place of each entry; entries that the window
//! has left hold [`PageId::NONE`]:
//!
//! ```text
//!            0                              protected        launched
//! full       |=== the tree's, locked =======|... the sequence's ...|
//! windowed   |------ NONE -------|== reach ==|... the sequence's ...|
//! ```
//!
//! Pages are let go by moving `protected` on: what was the sequence's becomes the tree's, the
//! tree's lock moves to the new place, and windowed pages in front of its window are the tree's
//! to evict. A launched step that still reads them is safe, since launches take effect in order.

mod check;

use std::sync::Arc;

use radix_cache::{CacheConfig, HostTier, LockId, Match, Namespace, PageId, Retention, Token};

use super::config::SchedulerConfig;
use super::error::ScheduleError;
use crate::backend::{GroupId, SlotEvent, SlotId, SlotSampling, Slots, Span};
use crate::kv::{GroupKind, KvPool, PoolError};

/// Beyond its window, a sequence that decodes needs the page that it fills and the next one.
const PAGES_AHEAD: usize = 2;

/// Owns pages, slots and page tables.
#[derive(Debug)]
pub(super) struct Pages {
    pool: KvPool,
    slots: Slots,
    free_slots: Vec<SlotId>,
    /// Since the last launch. They travel with the next one.
    events: Vec<SlotEvent>,
    /// The full one, and the windowed one where the program has windowed groups.
    tables: Vec<Table>,
    /// Keep what sequences leave behind.
    keeps: bool,
    /// Pages that proposed tokens may take beyond the next one.
    draft_pages: usize,
}

/// The page tables of all groups of one kind: one table, which all of them share.
#[derive(Debug)]
struct Table {
    kind: GroupKind,
    /// Where it is kept.
    home: GroupId,
    /// The groups that read it.
    groups: Vec<GroupId>,
}

/// What a running sequence holds: a slot, a lock in the tree, and the pages of its tables behind
/// `protected`. Given back by [`Pages::vacate`], which takes it.
#[derive(Debug)]
pub(super) struct Holding {
    slot: SlotId,
    lock: LockId,
    /// Positions whose pages the tree owns and the lock holds.
    protected: usize,
}

impl Holding {
    pub(super) fn slot(&self) -> SlotId {
        self.slot
    }

    pub(super) fn lock(&self) -> LockId {
        self.lock
    }

    pub(super) fn protected(&self) -> usize {
        self.protected
    }
}

impl Pages {
    pub(super) fn new(config: &SchedulerConfig) -> Result<Self, ScheduleError> {
        let policy = config.eviction_policy;
        let mut cache = CacheConfig::default()
            .page_size(config.page_size)
            .policy(policy)
            .events(config.cache_events);
        if let Some(group) = config.windowed {
            cache = cache.windowed_group(group.window);
        }
        if let Some(tier) = config.host_tier {
            cache = cache.host_tier(HostTier::new(tier.pages).policy(policy).write(tier.write));
        }
        let windowed = config.windowed.map(|group| (group.window, group.pages));
        let host_pages = config.host_tier.map_or(0, |tier| tier.pages);
        let pool = KvPool::new(cache, config.pages, windowed, host_pages)?;
        let of = |kind: GroupKind| {
            let groups = (0..).map(GroupId).zip(&config.groups);
            let groups: Vec<_> =
                groups.filter(|(_, other)| **other == kind).map(|(group, _)| group).collect();
            // Where every group is windowed, the tree still counts in full pages, which then are
            // numbers that no backend hears of.
            let home = groups.first().copied().unwrap_or(GroupId(config.groups.len() as u8));
            Table { kind, home, groups }
        };
        let mut tables = vec![of(GroupKind::Full)];
        tables.extend(config.windowed.map(|_| of(GroupKind::Windowed)));
        let homes = config.groups.len() + usize::from(tables[0].groups.is_empty());
        let slots = config.max_running;
        Ok(Self {
            pool,
            slots: Slots::new(slots, homes),
            free_slots: (0..slots).rev().map(SlotId).collect(),
            // A page for every slot in one step is common: they grow in step.
            events: Vec::with_capacity(2 * slots as usize * tables.len()),
            tables,
            keeps: config.cache,
            draft_pages: config.most_drafted().div_ceil(config.page_size),
        })
    }

    /// The pool, to ask.
    pub(super) fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// The pool, for copies between the tiers, which change no table.
    pub(super) fn pool_mut(&mut self) -> &mut KvPool {
        &mut self.pool
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free_slots.len()
    }

    /// The groups that the host tier copies pages of.
    pub(super) fn full_groups(&self) -> &[GroupId] {
        &self.tables[0].groups
    }

    /// Whether a page that is to be copied on the device has not been launched yet.
    pub(super) fn has_copy_to_launch(&self) -> bool {
        self.events.iter().any(|event| matches!(event, SlotEvent::CopyPage { .. }))
    }

    pub(super) fn probe(&self, namespace: Namespace, tokens: &[Token]) -> Match {
        self.pool.cache().probe(namespace, tokens)
    }

    /// Pages that every kind of group can give.
    pub(super) fn available(&self) -> usize {
        self.available_of(GroupKind::Full).min(self.available_of(GroupKind::Windowed))
    }

    pub(super) fn available_of(&self, kind: GroupKind) -> usize {
        self.pool.available(kind)
    }

    /// Pages beyond those of its tables that a sequence needs for positions below `end`.
    pub(super) fn missing(&self, holding: &Holding, end: usize) -> usize {
        self.pool.pages_for(end).saturating_sub(self.entries(holding))
    }

    /// Positions that its tables have pages for.
    pub(super) fn room(&self, holding: &Holding) -> usize {
        self.entries(holding) * self.pool.page_size()
    }

    /// Most windowed pages that a sequence keeps others from having while it decodes, if it
    /// becomes `longest` positions long: its window and a few more, however long it is.
    pub(super) fn windowed_share(&self, longest: usize) -> usize {
        let Some(reach) = self.pool.reach() else { return 0 };
        self.pool.pages_for(longest).min(reach + PAGES_AHEAD + self.draft_pages)
    }

    /// Windowed pages that it keeps others from having.
    pub(super) fn windowed_held(&self, holding: &Holding) -> usize {
        let Some(reach) = self.pool.reach() else { return 0 };
        let protected = holding.protected / self.pool.page_size();
        self.entries(holding) - protected.saturating_sub(reach)
    }

    /// Locks what is cached of `tokens` and puts it into the tables of a free slot. `None` if no
    /// slot is free. What it holds is given back, or [opened](Self::open).
    pub(super) fn acquire(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
    ) -> Result<Option<Holding>, ScheduleError> {
        let Some(slot) = self.free_slots.pop() else { return Ok(None) };
        let table = self.slots.pages_mut(slot, self.tables[0].home);
        table.clear();
        let acquired =
            self.pool.cache_mut().acquire(namespace, tokens, table).map_err(PoolError::from)?;
        if let Some(windowed) = self.tables.get(1) {
            let table = self.slots.pages_mut(slot, windowed.home);
            table.clear();
            self.pool.windowed_pages(acquired.lock, table)?;
        }
        Ok(Some(Holding { slot, lock: acquired.lock, protected: acquired.tokens }))
    }

    /// Gives back what was acquired and never opened.
    pub(super) fn refuse(&mut self, holding: Holding) -> Result<(), ScheduleError> {
        for table in &self.tables {
            self.slots.pages_mut(holding.slot, table.home).clear();
        }
        self.free_slots.push(holding.slot);
        Ok(self.pool.release(holding.lock, true)?)
    }

    /// A second holding that shares the whole pages of one, with copies of the pages that hold
    /// the next `tail` positions. `None` if no slot is free.
    pub(super) fn branch(
        &mut self,
        parent: &Holding,
        tail: usize,
    ) -> Result<Option<Holding>, ScheduleError> {
        let Some(slot) = self.free_slots.pop() else { return Ok(None) };
        let lock = self.pool.cache_mut().fork(parent.lock).map_err(PoolError::from)?;
        let whole = parent.protected / self.pool.page_size();
        let copied = self.pool.pages_for(tail);
        for table in &self.tables {
            let source = self.slots.pages(parent.slot, table.home)[..whole + copied].to_vec();
            let pages = self.slots.pages_mut(slot, table.home);
            pages.clear();
            pages.extend_from_slice(&source[..whole]);
            self.pool.take(table.kind, copied, pages)?;
            for (&from, &to) in source[whole..].iter().zip(&pages[whole..]) {
                let copy = |&group| SlotEvent::CopyPage { group, from, to };
                self.events.extend(table.groups.iter().map(copy));
            }
        }
        Ok(Some(Holding { slot, lock, protected: parent.protected }))
    }

    /// A sequence moves into the slot. Its tables will grow to `positions`.
    pub(super) fn open(
        &mut self,
        holding: &Holding,
        sampling: Arc<SlotSampling>,
        retention: Retention,
        positions: usize,
    ) -> Result<(), ScheduleError> {
        self.pool.retain(holding.lock, retention)?;
        let pages = self.pool.pages_for(positions);
        self.slots.open(holding.slot, sampling);
        self.events.push(SlotEvent::Open { slot: holding.slot });
        for table in &self.tables {
            let entries = self.slots.pages_mut(holding.slot, table.home);
            entries.reserve(pages.saturating_sub(entries.len()));
            let all = 0..entries.len();
            table.announce(&mut self.slots, &mut self.events, holding.slot, all);
        }
        Ok(())
    }

    /// Takes pages, so that the tables reach to `end`.
    pub(super) fn grow(&mut self, holding: &Holding, end: usize) -> Result<(), ScheduleError> {
        let (old, needed) = (self.entries(holding), self.pool.pages_for(end));
        if needed <= old {
            return Ok(());
        }
        for table in &self.tables {
            let entries = self.slots.pages_mut(holding.slot, table.home);
            self.pool.take(table.kind, needed - old, entries)?;
            table.announce(&mut self.slots, &mut self.events, holding.slot, old..needed);
        }
        Ok(())
    }

    /// Moves what is whole, computed and known into the tree, and lets go of what the window has
    /// left.
    pub(super) fn protect(
        &mut self,
        holding: &mut Holding,
        tokens: &[Token],
        computed: usize,
    ) -> Result<(), ScheduleError> {
        let page_size = self.pool.page_size();
        let cacheable = self.pool.floor_page(computed.min(tokens.len()));
        if cacheable <= holding.protected {
            return Ok(());
        }
        let (slot, lock) = (holding.slot, holding.lock);
        let (from, to) = (holding.protected / page_size, cacheable / page_size);
        let entries = self.slots.pages_mut(slot, self.tables[0].home);
        let new = &tokens[holding.protected..cacheable];
        let present = self.pool.insert(lock, new, &mut entries[from..to])?.present_pages;
        if present > 0 {
            let changed = from..from + present;
            self.tables[0].announce(&mut self.slots, &mut self.events, slot, changed);
        }
        holding.protected = cacheable;
        if let (Some(windowed), Some(reach)) = (self.tables.get(1), self.pool.reach()) {
            let entries = self.slots.pages_mut(slot, windowed.home);
            let is_repointed = self.pool.put_windowed(lock, &mut entries[from..to])?;
            let left = to.saturating_sub(reach);
            let first = from.saturating_sub(reach).min(left);
            entries[first..left].fill(PageId::NONE);
            let changed = first..if is_repointed { to } else { left };
            windowed.announce(&mut self.slots, &mut self.events, slot, changed);
        }
        Ok(())
    }

    /// Gives slot, lock and own pages back.
    pub(super) fn vacate(&mut self, holding: Holding) -> Result<(), ScheduleError> {
        let Holding { slot, lock, protected } = holding;
        let own = protected / self.pool.page_size();
        for table in &self.tables {
            let entries = self.slots.pages_mut(slot, table.home);
            let mine = entries.get(own..).unwrap_or_default();
            // What was to be announced of its table is gone with it, and what was to be copied
            // into its pages must not reach whoever has them next.
            self.events.retain(|event| match event {
                SlotEvent::Pages { slot: other, .. } => *other != slot,
                SlotEvent::CopyPage { group, to, .. } => {
                    !(table.groups.contains(group) && mine.contains(to))
                }
                _ => true,
            });
            self.pool.give(table.kind, mine)?;
            entries.clear();
            table.mirror(&mut self.slots, slot);
        }
        self.pool.release(lock, self.keeps)?;
        self.events.push(SlotEvent::Close { slot });
        self.free_slots.push(slot);
        Ok(())
    }

    /// The device lost its KV: nothing is cached. Holdings must have been given back.
    pub(super) fn reset(&mut self) -> Result<(), PoolError> {
        self.pool.reset()
    }

    /// Changes the slot events since the last launch for an empty list, which keeps its memory.
    pub(super) fn swap_events(&mut self, events: &mut Vec<SlotEvent>) {
        events.clear();
        std::mem::swap(events, &mut self.events);
    }

    fn entries(&self, holding: &Holding) -> usize {
        self.slots.pages(holding.slot, self.tables[0].home).len()
    }
}

impl Table {
    /// Tells the device that entries of a slot's table have changed.
    fn announce(
        &self,
        slots: &mut Slots,
        events: &mut Vec<SlotEvent>,
        slot: SlotId,
        changed: std::ops::Range<usize>,
    ) {
        self.mirror(slots, slot);
        if !changed.is_empty() {
            let entries = Span { start: changed.start as u32, len: changed.len() as u32 };
            let event = |&group| SlotEvent::Pages { slot, group, entries };
            events.extend(self.groups.iter().map(event));
        }
    }

    /// Copies the table to where the other groups look for it.
    fn mirror(&self, slots: &mut Slots, slot: SlotId) {
        for &group in self.groups.iter().filter(|&&group| group != self.home) {
            let entries: Vec<PageId> = slots.pages(slot, self.home).to_vec();
            slots.pages_mut(slot, group).clone_from(&entries);
        }
    }
}
