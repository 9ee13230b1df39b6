//! The windowed group: the naive view of it, its operations, and a memory that shows whether
//! each page holds the KV of its very prefix.

use std::collections::{BTreeSet, HashMap};

use radix_cache::{CacheError, LockId, Namespace, PageId, Token};

use crate::choices::Choices;
use crate::drive::{Driver, Outcome, same, text};
use crate::model::{Entry, Hold, Model, first};

/// Fewer pages than the full group has, so that windows get lost.
pub(crate) const POOL: u32 = 20;
const LONGEST_RUN: usize = 7;

/// The windowed page of a position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windowed {
    page: PageId,
    /// Whether it was in the window of a place where a sequence or a match ended.
    near_end: bool,
    hits: u32,
    used: u64,
    created: u64,
    priority: i32,
    until: u64,
}

/// The group's state besides its pages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Windows {
    /// Positions that a token attends to, its own included, if there is such a group.
    pub(crate) window: Option<usize>,
    clock: u64,
    /// Pages that left with their entries.
    left: Vec<PageId>,
}

/// The caller's side of the group.
#[derive(Debug, Default)]
pub(crate) struct WindowMemory {
    pub(crate) free: Vec<PageId>,
    holds_kv_of: HashMap<PageId, (Namespace, Vec<Token>)>,
}

impl WindowMemory {
    pub(crate) fn new() -> Self {
        Self { free: (0..POOL).map(PageId).collect(), ..Self::default() }
    }
}

impl Model {
    /// Whether a match may end behind `prefix`: each position that the next token attends to
    /// has its windowed page.
    pub(crate) fn is_window_there(&self, namespace: Namespace, prefix: &[Token]) -> bool {
        let Some(window) = self.windows.window else {
            return true;
        };
        let next = prefix.len();
        let attended = (0..next).filter(|position| next - position < window);
        attended.into_iter().all(|position| {
            let end = (position / self.page_size + 1) * self.page_size;
            let entry = self.find(namespace, &prefix[..end]);
            entry.is_some_and(|entry| entry.windowed.is_some())
        })
    }

    /// Whether a page is in the window of a lock: the next token behind its end attends to it.
    fn is_in_window(&self, entry: &Entry, hold: &Hold) -> bool {
        let window = self.windows.window.unwrap_or_default();
        let last = entry.prefix.len() - 1;
        hold.namespace == entry.namespace
            && hold.prefix.starts_with(&entry.prefix)
            && hold.prefix.len() - last < window
    }

    fn in_window(&mut self, hold: &Hold, mut change: impl FnMut(&mut Windowed)) {
        for index in 0..self.entries.len() {
            if self.is_in_window(&self.entries[index], hold)
                && let Some(windowed) = &mut self.entries[index].windowed
            {
                change(windowed);
            }
        }
    }

    pub(crate) fn hit_window(&mut self, hold: &Hold) {
        self.in_window(hold, |page| {
            page.near_end = true;
            page.hits += 1;
        });
    }

    /// A hold has moved on.
    pub(crate) fn move_window(&mut self, from: &Hold, to: &Hold) {
        self.windows.clock += 1;
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            let is_passed = self.is_in_window(entry, from) && !self.is_in_window(entry, to);
            if let Some(page) = self.entries[index].windowed.as_mut().filter(|_| is_passed) {
                page.used = self.windows.clock;
            }
        }
    }

    /// A hold is gone; the sequence behind it ended if it is `kept`.
    pub(crate) fn close_window(&mut self, hold: &Hold, kept: bool) {
        self.windows.clock += 1;
        let clock = self.windows.clock;
        if kept {
            self.in_window(hold, |page| page.near_end = true);
            self.raise_window(hold);
        }
        self.in_window(hold, |page| page.used = clock);
    }

    pub(crate) fn raise_window(&mut self, hold: &Hold) {
        self.in_window(hold, |page| {
            page.priority = page.priority.max(hold.priority);
            page.until = page.until.max(hold.until);
        });
    }

    /// Offers pages for the last positions of a hold. Returns those that the positions have then.
    fn put(&mut self, hold: &Hold, pages: &[PageId]) -> Vec<PageId> {
        self.windows.clock += 1;
        let clock = self.windows.clock;
        let range = self.range(hold, hold.prefix.len() - pages.len() * self.page_size);
        let put = range.iter().zip(pages).map(|(&index, &page)| {
            let new = Windowed {
                page,
                near_end: false,
                hits: 0,
                used: clock,
                created: clock,
                priority: 0,
                until: 0,
            };
            self.entries[index].windowed.get_or_insert(new).page
        });
        put.collect()
    }

    /// Takes up to `pages` windowed pages away that no window covers.
    pub(crate) fn evict_windowed(&mut self, pages: usize, holds: &[Hold]) -> Vec<PageId> {
        let mut freed = Vec::new();
        while freed.len() < pages {
            let idle = (0..self.entries.len()).filter(|&index| {
                let entry = &self.entries[index];
                !holds.iter().any(|hold| self.is_in_window(entry, hold))
            });
            let ranked = idle.filter_map(|index| {
                let windowed = self.entries[index].windowed.as_ref()?;
                Some((self.rank_windowed(&self.entries[index], windowed), index))
            });
            let Some((_, index)) = ranked.min() else {
                break;
            };
            freed.extend(self.entries[index].windowed.take().map(|windowed| windowed.page));
        }
        freed
    }

    /// Smaller goes first: what is not retained; what windows only passed by; the policy's word;
    /// age; and of what one window left at once, what no short prompt needs, from the front, and
    /// then the rest from the back.
    fn rank_windowed(&self, entry: &Entry, page: &Windowed) -> impl Ord + use<> {
        let position = entry.prefix.len() - self.page_size;
        let in_first_window = position + 1 < self.windows.window.unwrap_or_default();
        let turn = if in_first_window { -(position as i64) } else { position as i64 };
        let turn = (in_first_window, turn);
        if page.until > self.now {
            return (true, true, i128::from(page.until), page.used, turn);
        }
        let seen = Entry {
            hits: page.hits,
            used: page.used,
            created: page.created,
            priority: page.priority,
            ..entry.clone()
        };
        (false, page.near_end, first(self.policy, &seen), page.used, turn)
    }

    /// Notes that an entry is gone.
    pub(crate) fn windowed_left(&mut self, gone: &Entry) {
        self.windows.left.extend(gone.windowed.map(|windowed| windowed.page));
    }

    /// Pages left although their entries stay.
    pub(crate) fn lose(&mut self, pages: Vec<PageId>) {
        self.windows.left.extend(pages);
    }

    pub(crate) fn take_left(&mut self) -> Vec<PageId> {
        std::mem::take(&mut self.windows.left)
    }

    /// Windowed pages: all, and those in some window.
    fn windowed(&self, holds: &[Hold]) -> (usize, usize) {
        let there = self.entries.iter().filter(|entry| entry.windowed.is_some());
        let locked =
            there.clone().filter(|entry| holds.iter().any(|hold| self.is_in_window(entry, hold)));
        (there.count(), locked.count())
    }

    pub(crate) fn windowed_prefixes(&self) -> BTreeSet<(Namespace, Vec<Token>)> {
        let there = self.entries.iter().filter(|entry| entry.windowed.is_some());
        there.map(|entry| (entry.namespace, entry.prefix.clone())).collect()
    }

    /// The windowed pages of a hold's window, back from its end to the first that is not there,
    /// with their prefixes.
    fn window_of(&self, hold: &Hold) -> Vec<(PageId, &[Token])> {
        let range = self.range(hold, 0);
        let window = range.iter().map(|&index| &self.entries[index]).rev();
        let window = window.take_while(|entry| self.is_in_window(entry, hold));
        let pages = window.map_while(|entry| Some((entry.windowed?.page, &entry.prefix[..])));
        let mut pages: Vec<_> = pages.collect();
        pages.reverse();
        pages
    }
}

impl Driver {
    pub(crate) fn step_windows(&mut self, choices: &mut dyn Choices) -> Outcome {
        match choices.below(8) {
            0..5 => match self.pick(choices) {
                Some(index) => self.put(choices, index),
                None => Ok(()),
            },
            5 | 6 => {
                let pages = 1 + choices.below(3);
                self.evict_windowed(pages)
            }
            _ => self.misuse_windows(choices),
        }
    }

    /// What an engine does behind an insertion, as far back as it likes.
    pub(crate) fn put(&mut self, choices: &mut dyn Choices, index: usize) -> Outcome {
        let held = self.holds[index].prefix.len() / self.setup.page_size;
        let count = choices.below(LONGEST_RUN + 1).min(held);
        if self.windowed.free.len() < count {
            self.evict_windowed(count - self.windowed.free.len())?;
        }
        let count = count.min(self.windowed.free.len());
        let own = self.windowed.free.split_off(self.windowed.free.len() - count);
        let expected = self.model.put(&self.holds[index], &own);
        let mut canonical = vec![PageId(u32::MAX)];
        let taken = self.cache.put_windowed(self.locks[index], &own, &mut canonical);
        same!(&canonical[1..], &expected[..], "canonical windowed pages");
        let (mine, others): (Vec<_>, Vec<_>) =
            own.iter().zip(&expected).partition(|(own, there)| own == there);
        same!(taken, Ok(mine.len()), "windowed pages that were taken");
        self.windowed.free.extend(others.into_iter().map(|(own, _)| own));
        let hold = &self.holds[index];
        for (number, page) in expected.iter().rev().enumerate() {
            if own.contains(page) {
                let end = hold.prefix.len() - number * self.setup.page_size;
                let computed_for = (hold.namespace, hold.prefix[..end].to_vec());
                self.windowed.holds_kv_of.insert(*page, computed_for);
            }
        }
        Ok(())
    }

    fn evict_windowed(&mut self, pages: usize) -> Outcome {
        let mut freed = Vec::new();
        let count = self.cache.evict_windowed(pages, &mut freed);
        same!(count, freed.len(), "number of evicted windowed pages");
        let holds = self.all_holds();
        same!(&freed, &self.model.evict_windowed(pages, &holds), "evicted windowed pages");
        self.windowed.free.extend(freed);
        Ok(())
    }

    /// Pages that left with their full pages come back.
    pub(crate) fn take_back_windowed(&mut self) -> Outcome {
        let freed: BTreeSet<PageId> = self.cache.take_freed_windowed().collect();
        let expected: BTreeSet<PageId> = self.model.take_left().into_iter().collect();
        same!(&freed, &expected, "windowed pages that left with their full pages");
        self.windowed.free.extend(freed);
        Ok(())
    }

    pub(crate) fn compare_windows(&self) -> Outcome {
        let counts = self.cache.counts().windowed;
        let (total, locked) = self.model.windowed(&self.all_holds());
        same!((counts.total, counts.locked), (total, locked), "windowed pages, and locked ones");
        same!(counts.evictable, total - locked, "evictable windowed pages");
        same!(self.windowed.free.len() + total, POOL as usize, "windowed capacity");
        for (&lock, hold) in self.locks.iter().zip(&self.holds) {
            self.read_window(lock, hold)?;
        }
        Ok(())
    }

    /// Everything that the next token of a sequence would read has to be there and right.
    fn read_window(&self, lock: LockId, hold: &Hold) -> Outcome {
        let mut pages = Vec::new();
        let start = self.cache.windowed_pages(lock, &mut pages).map_err(text)?;
        let expected = self.model.window_of(hold);
        let numbers: Vec<PageId> = expected.iter().map(|(page, _)| *page).collect();
        same!(&pages, &numbers, "pages of a window");
        let reached = hold.prefix.len() - pages.len() * self.setup.page_size;
        same!(start, reached, "start of a window");
        for (page, prefix) in expected {
            let right = (hold.namespace, prefix.to_vec());
            same!(self.windowed.holds_kv_of.get(&page), Some(&right), "windowed KV that is read");
        }
        Ok(())
    }

    /// A match has to come with all that the next token attends to.
    pub(crate) fn read_match(&self, lock: LockId, hold: &Hold) -> Outcome {
        let Some(window) = self.model.windows.window else {
            return Ok(());
        };
        let mut pages = Vec::new();
        let start = self.cache.windowed_pages(lock, &mut pages).map_err(text)?;
        let first = (hold.prefix.len() + 1).saturating_sub(window).min(hold.prefix.len());
        same!(start <= first, true, "a window that is complete");
        self.read_window(lock, hold)
    }

    fn misuse_windows(&mut self, choices: &mut dyn Choices) -> Outcome {
        let Some(index) = self.pick(choices) else {
            return Ok(());
        };
        let (lock, hold) = (self.locks[index], &self.holds[index]);
        let mut canonical = Vec::new();
        let held = hold.prefix.len() / self.setup.page_size;
        let refused = self.cache.put_windowed(lock, &vec![PageId(0); held + 1], &mut canonical);
        same!(
            refused,
            Err(CacheError::WindowedBeyondStart { pages: held + 1, held }),
            "windowed pages beyond the start"
        );
        if held == 0 {
            return Ok(());
        }
        let refused = self.cache.put_windowed(lock, &[PageId(u32::MAX)], &mut canonical);
        same!(refused, Err(CacheError::ReservedPage), "a windowed page that is none");
        if let Some(&(page, _)) = self.model.window_of(hold).last() {
            let refused = self.cache.put_windowed(lock, &[page], &mut canonical);
            same!(refused, Err(CacheError::PageAlreadyCached { page }), "a second time");
        }
        same!(canonical.len(), 0, "canonical pages of a refused call");
        Ok(())
    }
}
