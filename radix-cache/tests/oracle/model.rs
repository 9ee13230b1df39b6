//! The naive cache: a list of prefixes, one for each cached page, searched from end to end.
//!
//! It knows neither nodes nor splits nor an order of leaves. What it does, the tree has to do.

use std::collections::BTreeSet;

use radix_cache::{Namespace, PageId, Policy, Tier, Token};

use crate::windows::{Windowed, Windows};

/// One cached page, known by everything that leads up to it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) namespace: Namespace,
    /// All tokens from the start of the prompt to the end of this page.
    pub(crate) prefix: Vec<Token>,
    /// Its page on the device, if it is there.
    pub(crate) page: Option<PageId>,
    /// Whether it has a copy on the host.
    pub(crate) host: bool,
    /// Whether a transfer copies it at the moment.
    pub(crate) moving: bool,
    /// Its page of the windowed group, if it has one.
    pub(crate) windowed: Option<Windowed>,
    pub(crate) hits: u32,
    pub(crate) used: u64,
    pub(crate) created: u64,
    pub(crate) priority: i32,
    pub(crate) until: u64,
}

/// One held prefix.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) namespace: Namespace,
    pub(crate) prefix: Vec<Token>,
    pub(crate) priority: i32,
    pub(crate) until: u64,
}

impl Hold {
    pub(crate) fn new(namespace: Namespace, prefix: &[Token]) -> Self {
        Self { namespace, prefix: prefix.to_vec(), priority: 0, until: 0 }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) entries: Vec<Entry>,
    pub(crate) page_size: usize,
    pub(crate) policy: Policy,
    pub(crate) host_policy: Policy,
    pub(crate) now: u64,
    pub(crate) windows: Windows,
    clock: u64,
}

impl Model {
    pub(crate) fn new(page_size: usize, policy: Policy, host_policy: Policy) -> Self {
        let (entries, windows) = (Vec::new(), Windows::default());
        Self { entries, page_size, policy, host_policy, now: 0, windows, clock: 0 }
    }

    /// The pages of the longest prefix on the device that can be used.
    pub(crate) fn matching(&self, namespace: Namespace, tokens: &[Token]) -> Vec<PageId> {
        let path = self.prefixes_of(tokens);
        let mut pages: Vec<PageId> =
            path.map_while(|prefix| self.find(namespace, prefix)?.page).collect();
        while !self.is_window_there(namespace, &tokens[..pages.len() * self.page_size]) {
            pages.pop();
        }
        pages
    }

    /// How many pages behind those could be loaded from the host.
    pub(crate) fn loadable(&self, namespace: Namespace, tokens: &[Token]) -> usize {
        let on_device = self.matching(namespace, tokens).len();
        let behind = self.prefixes_of(tokens).skip(on_device);
        let entries = behind.map_while(|prefix| self.find(namespace, prefix));
        entries.take_while(|entry| entry.page.is_none() && !entry.moving).count()
    }

    /// Notes a use of a prefix and of everything on the way to it.
    pub(crate) fn touch(&mut self, namespace: Namespace, prefix: &[Token]) {
        self.clock += 1;
        let clock = self.clock;
        self.on_the_way(namespace, prefix, |entry| entry.used = clock);
    }

    pub(crate) fn hit(&mut self, namespace: Namespace, prefix: &[Token]) {
        self.on_the_way(namespace, prefix, |entry| entry.hits += 1);
    }

    pub(crate) fn raise(&mut self, hold: &Hold) {
        self.on_the_way(hold.namespace, &hold.prefix, |entry| {
            entry.priority = entry.priority.max(hold.priority);
            entry.until = entry.until.max(hold.until);
        });
    }

    /// Adds pages behind a hold's prefix and moves the hold. Returns those that were present.
    pub(crate) fn insert(
        &mut self,
        hold: &mut Hold,
        tokens: &[Token],
        pages: &[PageId],
    ) -> Vec<PageId> {
        let mut present = Vec::new();
        for (own, &page) in tokens.chunks(self.page_size).zip(pages) {
            hold.prefix.extend_from_slice(own);
            if let Some(index) = self.position(hold.namespace, &hold.prefix) {
                match self.entries[index].page {
                    Some(page) => present.push(page),
                    None => self.entries[index].page = Some(page),
                }
                continue;
            }
            self.entries.push(Entry {
                namespace: hold.namespace,
                prefix: hold.prefix.clone(),
                page: Some(page),
                host: false,
                moving: false,
                windowed: None,
                hits: 0,
                used: 0,
                created: self.clock,
                priority: hold.priority,
                until: hold.until,
            });
        }
        self.touch(hold.namespace, &hold.prefix);
        self.raise(hold);
        present
    }

    /// The page that the device would lose next.
    pub(crate) fn first_to_go(&self, holds: &[Hold]) -> Option<usize> {
        let on_device = |entry: &Entry| entry.page.is_some();
        let idle = self.idle_leaves(holds, on_device);
        idle.min_by_key(|&index| self.rank(self.policy, &self.entries[index]))
    }

    /// Takes up to `pages` pages off the device that nobody holds or continues there, in the
    /// order of the policy.
    pub(crate) fn evict(&mut self, pages: usize, holds: &[Hold]) -> Vec<PageId> {
        let mut freed = Vec::new();
        while freed.len() < pages {
            let Some(first) = self.first_to_go(holds) else {
                break;
            };
            freed.extend(self.entries[first].page.take());
            if !self.entries[first].host {
                self.remove(first);
            }
        }
        freed
    }

    /// Takes up to `pages` copies off the host that nobody holds or continues there.
    pub(crate) fn evict_host(&mut self, pages: usize, holds: &[Hold]) {
        for _ in 0..pages {
            let idle = self.idle_leaves(holds, |entry| entry.host);
            let rank = |&index: &usize| self.rank(self.host_policy, &self.entries[index]);
            let Some(first) = idle.min_by_key(rank) else {
                break;
            };
            self.entries[first].host = false;
            if self.entries[first].page.is_none() {
                self.remove(first);
            }
        }
    }

    /// Removes the end of a prefix as far up as nobody holds or continues it.
    pub(crate) fn drop_path(&mut self, gone: &Hold, holds: &[Hold]) -> Vec<PageId> {
        let mut freed = Vec::new();
        for end in (self.page_size..=gone.prefix.len()).rev().step_by(self.page_size) {
            let index = self.position(gone.namespace, &gone.prefix[..end]);
            match index.filter(|&index| self.is_idle_leaf(index, holds, |_| true)) {
                Some(index) => freed.extend(self.remove(index).page),
                None => break,
            }
        }
        freed
    }

    /// What a copy of a prefix to the host would have to copy, from its first page that isn't
    /// there to its end. Nothing if a part of that is on its way.
    pub(crate) fn missing_on_host(&self, hold: &Hold) -> Vec<usize> {
        let path = self.prefixes_of(&hold.prefix);
        let entries = path.filter_map(|prefix| self.position(hold.namespace, prefix));
        let missing: Vec<usize> = entries.skip_while(|&index| self.entries[index].host).collect();
        let moving = missing.iter().any(|&index| self.entries[index].moving);
        if moving { Vec::new() } else { missing }
    }

    /// Makes room on the host, if that is possible at all.
    pub(crate) fn make_host_room(&mut self, pages: usize, free: usize, holds: &[Hold]) -> bool {
        let idle = self.entries.iter().filter(|entry| entry.host && !is_held(entry, holds));
        if free + idle.count() < pages {
            return false;
        }
        self.evict_host(pages.saturating_sub(free), holds);
        true
    }

    /// The entries of a prefix that lie behind its first `from` tokens.
    pub(crate) fn range(&self, hold: &Hold, from: usize) -> Vec<usize> {
        let prefixes = self.prefixes_of(&hold.prefix).filter(|prefix| prefix.len() > from);
        prefixes.filter_map(|prefix| self.position(hold.namespace, prefix)).collect()
    }

    /// Whether the device's part of the cache ends with an entry that nobody holds.
    pub(crate) fn is_idle_on_device(&self, index: usize, holds: &[Hold]) -> bool {
        self.is_idle_leaf(index, holds, |entry| entry.page.is_some())
    }

    pub(crate) fn prefixes(&self, tier: Tier) -> BTreeSet<(Namespace, Vec<Token>)> {
        let there = self.entries.iter().filter(|entry| match tier {
            Tier::Device => entry.page.is_some(),
            _ => entry.host,
        });
        there.map(|entry| (entry.namespace, entry.prefix.clone())).collect()
    }

    pub(crate) fn locked(&self, holds: &[Hold]) -> usize {
        let on_device = self.entries.iter().filter(|entry| entry.page.is_some());
        on_device.filter(|entry| is_held(entry, holds)).count()
    }

    /// What is left of it after a restart.
    pub(crate) fn restarted(&self) -> Self {
        let mut restarted = self.clone();
        restarted.entries.retain(|entry| entry.page.is_some());
        for entry in &mut restarted.entries {
            entry.host = false;
        }
        restarted
    }

    fn remove(&mut self, index: usize) -> Entry {
        let gone = self.entries.swap_remove(index);
        self.windowed_left(&gone);
        gone
    }

    fn rank(&self, policy: Policy, entry: &Entry) -> (bool, i128, u64) {
        if entry.until > self.now {
            return (true, i128::from(entry.until), entry.used);
        }
        (false, first(policy, entry), entry.used)
    }

    fn idle_leaves(
        &self,
        holds: &[Hold],
        is_there: impl Fn(&Entry) -> bool + Copy,
    ) -> impl Iterator<Item = usize> {
        let there = (0..self.entries.len()).filter(move |&index| is_there(&self.entries[index]));
        there.filter(move |&index| self.is_idle_leaf(index, holds, is_there))
    }

    fn is_idle_leaf(
        &self,
        index: usize,
        holds: &[Hold],
        is_there: impl Fn(&Entry) -> bool,
    ) -> bool {
        let leaf = &self.entries[index];
        let continued = self.entries.iter().filter(|other| is_there(other)).any(|other| {
            other.namespace == leaf.namespace
                && other.prefix.len() > leaf.prefix.len()
                && other.prefix.starts_with(&leaf.prefix)
        });
        !continued && !is_held(leaf, holds)
    }

    /// All prefixes of whole pages, shortest first.
    fn prefixes_of<'a>(&self, tokens: &'a [Token]) -> impl Iterator<Item = &'a [Token]> + use<'a> {
        let ends = (self.page_size..=tokens.len()).step_by(self.page_size);
        ends.map(|end| &tokens[..end])
    }

    pub(crate) fn find(&self, namespace: Namespace, prefix: &[Token]) -> Option<&Entry> {
        self.position(namespace, prefix).map(|index| &self.entries[index])
    }

    fn position(&self, namespace: Namespace, prefix: &[Token]) -> Option<usize> {
        self.entries.iter().position(|entry| entry.namespace == namespace && entry.prefix == prefix)
    }

    fn on_the_way(
        &mut self,
        namespace: Namespace,
        prefix: &[Token],
        mut change: impl FnMut(&mut Entry),
    ) {
        let entries = self.entries.iter_mut();
        entries
            .filter(|entry| entry.namespace == namespace && prefix.starts_with(&entry.prefix))
            .for_each(&mut change);
    }
}

pub(crate) fn first(policy: Policy, entry: &Entry) -> i128 {
    match policy {
        Policy::Lru => 0,
        Policy::Lfu => i128::from(entry.hits),
        Policy::Fifo => i128::from(entry.created),
        Policy::Mru => -i128::from(entry.used),
        Policy::Priority => i128::from(entry.priority),
        Policy::SegmentedLru => i128::from(entry.hits.min(1)),
        other => panic!("the model does not know {other:?}"),
    }
}

fn is_held(entry: &Entry, holds: &[Hold]) -> bool {
    holds
        .iter()
        .any(|hold| hold.namespace == entry.namespace && hold.prefix.starts_with(&entry.prefix))
}
