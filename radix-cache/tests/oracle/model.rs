//! The naive cache: a list of prefixes, one for each cached page, searched from end to end.
//!
//! It knows neither nodes nor splits nor an order of leaves. What it does, the tree has to do.

use std::collections::BTreeSet;

use radix_cache::{Namespace, PageId, Policy, Token};

/// One cached page, known by everything that leads up to it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) namespace: Namespace,
    /// All tokens from the start of the prompt to the end of this page.
    pub(crate) prefix: Vec<Token>,
    pub(crate) page: PageId,
    used: u64,
    created: u64,
    hits: u32,
    priority: i32,
    until: u64,
}

/// One held prefix.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) namespace: Namespace,
    pub(crate) prefix: Vec<Token>,
    pub(crate) priority: i32,
    pub(crate) until: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) entries: Vec<Entry>,
    pub(crate) page_size: usize,
    pub(crate) policy: Policy,
    pub(crate) now: u64,
    clock: u64,
}

impl Model {
    pub(crate) fn new(page_size: usize, policy: Policy) -> Self {
        Self { entries: Vec::new(), page_size, policy, now: 0, clock: 0 }
    }

    /// The pages of the longest cached prefix.
    pub(crate) fn matching(&self, namespace: Namespace, tokens: &[Token]) -> Vec<PageId> {
        let ends = (self.page_size..=tokens.len()).step_by(self.page_size);
        ends.map_while(|end| self.find(namespace, &tokens[..end]).map(|entry| entry.page)).collect()
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
        for (own, page) in tokens.chunks(self.page_size).zip(pages) {
            hold.prefix.extend_from_slice(own);
            if let Some(entry) = self.find(hold.namespace, &hold.prefix) {
                present.push(entry.page);
                continue;
            }
            self.entries.push(Entry {
                namespace: hold.namespace,
                prefix: hold.prefix.clone(),
                page: *page,
                used: 0,
                created: self.clock,
                hits: 0,
                priority: hold.priority,
                until: hold.until,
            });
        }
        self.touch(hold.namespace, &hold.prefix);
        self.raise(hold);
        present
    }

    /// Removes up to `pages` pages nobody holds or continues, in the order of the policy.
    pub(crate) fn evict(&mut self, pages: usize, holds: &[Hold]) -> Vec<PageId> {
        let mut freed = Vec::new();
        while freed.len() < pages {
            let idle = (0..self.entries.len()).filter(|&index| self.is_idle_leaf(index, holds));
            let Some(first) = idle.min_by_key(|&index| self.rank(&self.entries[index])) else {
                break;
            };
            freed.push(self.entries.swap_remove(first).page);
        }
        freed
    }

    /// Removes the end of a prefix as far up as nobody holds or continues it.
    pub(crate) fn drop_path(&mut self, gone: &Hold, holds: &[Hold]) -> Vec<PageId> {
        let mut freed = Vec::new();
        for end in (self.page_size..=gone.prefix.len()).rev().step_by(self.page_size) {
            let index = self.position(gone.namespace, &gone.prefix[..end]);
            match index.filter(|&index| self.is_idle_leaf(index, holds)) {
                Some(index) => freed.push(self.entries.swap_remove(index).page),
                None => break,
            }
        }
        freed
    }

    pub(crate) fn prefixes(&self) -> BTreeSet<(Namespace, Vec<Token>)> {
        self.entries.iter().map(|entry| (entry.namespace, entry.prefix.clone())).collect()
    }

    pub(crate) fn locked(&self, holds: &[Hold]) -> usize {
        self.entries.iter().filter(|entry| is_held(entry, holds)).count()
    }

    fn rank(&self, entry: &Entry) -> (bool, i128, u64) {
        if entry.until > self.now {
            return (true, i128::from(entry.until), entry.used);
        }
        let first = match self.policy {
            Policy::Lru => 0,
            Policy::Lfu => i128::from(entry.hits),
            Policy::Fifo => i128::from(entry.created),
            Policy::Mru => -i128::from(entry.used),
            Policy::Priority => i128::from(entry.priority),
            Policy::SegmentedLru => i128::from(entry.hits.min(1)),
            other => panic!("the model does not know {other:?}"),
        };
        (false, first, entry.used)
    }

    fn is_idle_leaf(&self, index: usize, holds: &[Hold]) -> bool {
        let leaf = &self.entries[index];
        let continued = self.entries.iter().any(|other| {
            other.namespace == leaf.namespace
                && other.prefix.len() > leaf.prefix.len()
                && other.prefix.starts_with(&leaf.prefix)
        });
        !continued && !is_held(leaf, holds)
    }

    fn find(&self, namespace: Namespace, prefix: &[Token]) -> Option<&Entry> {
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

fn is_held(entry: &Entry, holds: &[Hold]) -> bool {
    holds
        .iter()
        .any(|hold| hold.namespace == entry.namespace && hold.prefix.starts_with(&entry.prefix))
}
