//! The cache itself: locks, insertion and eviction over the tree.

use core::fmt;

use hashbrown::HashMap;

use crate::bugs::SeededBug;
use crate::config::{CacheConfig, Policy};
use crate::error::CacheError;
use crate::events::EventLog;
use crate::leaf_heap::LeafHeap;
use crate::locks::Locks;
use crate::retention::Retention;
use crate::statistics::Statistics;
use crate::tree::{Descent, NodeIndex, Tree};
use crate::types::{Acquired, Counts, Inserted, LockId, Match, Namespace, PageId, Token};

/// A tree of cached token prefixes and the pages that hold their KV.
///
/// The [crate documentation](crate) tells how it is used and what it promises.
pub struct RadixCache {
    pub(crate) tree: Tree,
    pub(crate) roots: HashMap<Namespace, NodeIndex>,
    pub(crate) locks: Locks,
    /// Every unpinned leaf that is not retained, first to go first.
    pub(crate) leaves: LeafHeap,
    /// Every unpinned leaf that is retained, first to expire first.
    pub(crate) retained: LeafHeap,
    pub(crate) policy: Policy,
    pub(crate) counts: Counts,
    /// Counts uses; stands in for time.
    pub(crate) clock: u64,
    /// The caller's clock, in ticks.
    pub(crate) now: u64,
    pub(crate) statistics: Statistics,
    pub(crate) events: EventLog,
}

impl RadixCache {
    /// Builds an empty cache.
    ///
    /// # Errors
    ///
    /// [`CacheError::PageSize`] if the page size is not a power of two between 1 and 512.
    pub fn new(config: CacheConfig) -> Result<Self, CacheError> {
        config.check()?;
        Ok(Self {
            tree: Tree::new(&config),
            roots: HashMap::new(),
            locks: Locks::default(),
            leaves: LeafHeap::default(),
            retained: LeafHeap::default(),
            policy: config.policy,
            counts: Counts::default(),
            clock: 0,
            now: 0,
            statistics: Statistics::default(),
            events: EventLog::new(config.events),
        })
    }

    /// Tokens a page holds.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.tree.store.page_size()
    }

    /// Pages in the cache, by state. Costs nothing.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How much of `tokens` is cached. Changes nothing, not even what counts as recently
    /// used, and allocates nothing: a scheduler may ask for every waiting request.
    #[must_use]
    pub fn probe(&self, namespace: Namespace, tokens: &[Token]) -> Match {
        let Some(&root) = self.roots.get(&self.effective(namespace)) else {
            return Match::default();
        };
        let descent = self.tree.descend(root, tokens, |_, _| {});
        Match { tokens: descent.pages * self.page_size() }
    }

    /// Locks what is cached of `tokens` and appends its pages to `pages`, in order. What one
    /// call matched can't be evicted before the lock is released.
    ///
    /// Without any match the lock holds no page, yet it can be [inserted](Self::insert) behind.
    ///
    /// # Errors
    ///
    /// [`CacheError::Full`] when 32 bits can't number another node or lock.
    pub fn acquire(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
        pages: &mut Vec<PageId>,
    ) -> Result<Acquired, CacheError> {
        self.tree.reserve(0)?;
        self.locks.check_room()?;
        let root = self.root(self.effective(namespace))?;
        let tree = &self.tree;
        let descent = tree.descend(root, tokens, |node, matched| {
            tree.store.copy_pages(tree.node(node).run, matched, pages);
        });
        let end = self.split_at(&descent)?;
        let lock = self.locks.create(end, Retention::default())?;
        self.touch(end);
        self.pin(end);
        if self.policy.counts_hits() {
            self.count_hit(end);
        }
        let matched = descent.pages * self.page_size();
        self.statistics.requests += 1;
        self.statistics.requests_hit += u64::from(matched > 0);
        self.statistics.tokens += tokens.len() as u64;
        self.statistics.tokens_hit += matched as u64;
        Ok(Acquired { lock, tokens: matched })
    }

    /// Caches whole pages that follow a lock's end, and moves the lock to the end of them.
    /// Costs what the run costs, however long the prefix is.
    ///
    /// Pages that are not present yet become the cache's. For the first
    /// [`present_pages`](Inserted::present_pages) of the run the cache has pages already:
    /// those are appended to `canonical`, and the caller **frees its own copies of them and points its
    /// page table at the canonical ones**.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::RaggedRun`] unless `tokens` fill `pages` exactly;
    /// [`CacheError::PageAlreadyCached`] if one of `pages` is the canonical one itself;
    /// [`CacheError::Full`] when 32 bits can't number the new pages. Nothing has changed then.
    pub fn insert(
        &mut self,
        lock: LockId,
        tokens: &[Token],
        pages: &[PageId],
        canonical: &mut Vec<PageId>,
    ) -> Result<Inserted, CacheError> {
        let old_end = self.locks.end(lock)?;
        let retention = *self.locks.retention(lock);
        let page_size = self.page_size();
        if tokens.len() != pages.len() * page_size {
            return Err(CacheError::RaggedRun {
                tokens: tokens.len(),
                pages: pages.len(),
                page_size,
            });
        }
        self.tree.reserve(pages.len())?;

        let present_from = canonical.len();
        let tree = &self.tree;
        let descent = tree.descend(old_end, tokens, |node, matched| {
            tree.store.copy_pages(tree.node(node).run, matched, canonical);
        });
        let present = canonical[present_from..].iter().zip(pages);
        if let Some((&page, _)) = present.clone().find(|(cached, own)| cached == own) {
            canonical.truncate(present_from);
            return Err(CacheError::PageAlreadyCached { page });
        }
        let present_pages = descent.pages;
        let inserted = Inserted { present_pages, new_pages: pages.len() - present_pages };
        #[cfg(feature = "seeded-bugs")]
        self.replace_present(old_end, tokens, pages);

        let unlock_first = self.tree.planted.is(SeededBug::UnlockBeforeLock);
        if unlock_first {
            self.unpin(old_end);
        }
        let new_tokens = &tokens[present_pages * page_size..];
        let new_pages = &pages[present_pages..];
        let attach = self.split_at(&descent)?;
        let mut end = attach;
        if new_pages.is_empty() {
            self.touch(end);
        } else if end == old_end && self.is_ours_to_extend(end, retention) {
            self.tree.extend_leaf(end, new_tokens, new_pages);
            self.counts.locked += new_pages.len();
            self.touch(end);
        } else {
            self.unfile(end);
            self.clock += 1;
            end = self.tree.add_leaf(end, new_tokens, new_pages, self.clock, retention)?;
            self.counts.evictable += new_pages.len();
        }
        if !new_pages.is_empty() {
            self.note_stored(end, self.tree.node(end).run.pages - new_pages.len() as u32);
        }
        self.counts.total += new_pages.len();
        self.statistics.pages_inserted += new_pages.len() as u64;
        self.statistics.pages_duplicate += present_pages as u64;

        // The new end is pinned before the old one is let go, so that no page on the way is
        // ever evictable in between.
        self.pin(end);
        if !unlock_first {
            self.unpin(old_end);
        }
        self.locks.set_end(lock, end);
        self.raise(attach, retention);
        Ok(inserted)
    }

    /// Makes a second lock with the same end, for a sequence that goes on from there by itself.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::Full`] when 32 bits can't number another lock.
    pub fn fork(&mut self, lock: LockId) -> Result<LockId, CacheError> {
        let end = self.locks.end(lock)?;
        let retention = *self.locks.retention(lock);
        let fork = self.locks.create(end, retention)?;
        self.pin(end);
        Ok(fork)
    }

    /// How many tokens a lock holds: from the root to its end.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn locked_tokens(&self, lock: LockId) -> Result<usize, CacheError> {
        let end = self.locks.end(lock)?;
        Ok(self.tree.node(end).end as usize * self.page_size())
    }

    /// Lets go of a lock. What nobody else holds becomes evictable, and counts as used just now.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`], also when the lock is released a second time.
    pub fn release(&mut self, lock: LockId) -> Result<(), CacheError> {
        let end = self.locks.remove(lock)?;
        self.touch(end);
        self.unpin(end);
        Ok(())
    }

    /// Lets go of a lock and frees what then nobody holds or continues, from its end upwards:
    /// what an engine does at the end of a sequence when caching is switched off. Appends the
    /// freed pages to `freed` and returns how many they are.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn release_and_drop(
        &mut self,
        lock: LockId,
        freed: &mut Vec<PageId>,
    ) -> Result<usize, CacheError> {
        let before = freed.len();
        let mut node = self.locks.remove(lock)?;
        self.unpin(node);
        while let Some(leaf) = self.tree.get(node) {
            if leaf.children > 0 || leaf.pins > 0 || self.tree.is_root(node) {
                break;
            }
            node = self.remove_leaf(node, freed);
        }
        Ok(freed.len() - before)
    }

    /// Frees up to `pages` evictable pages, from the tails of unlocked leaves in the order of
    /// the policy. Appends them to `freed` and returns how many they are: fewer than asked for
    /// only when nothing evictable is left.
    pub fn evict(&mut self, pages: usize, freed: &mut Vec<PageId>) -> usize {
        let before = freed.len();
        loop {
            let missing = pages - (freed.len() - before);
            if missing == 0 {
                break;
            }
            let Some(leaf) = self.first_to_go() else {
                break;
            };
            let length = self.tree.node(leaf).run.pages as usize;
            if length <= missing {
                self.remove_leaf(leaf, freed);
            } else {
                self.trim_leaf(leaf, missing, freed);
            }
        }
        freed.len() - before
    }

    /// Drops everything that is not locked. Appends its pages to `freed`.
    pub fn clear(&mut self, freed: &mut Vec<PageId>) {
        self.evict(self.counts.evictable, freed);
    }

    /// Drops everything, locked or not: the device lost its KV. Every lock is dead from here
    /// on, and says so when it is presented. Appends all pages to `freed`.
    pub fn reset(&mut self, freed: &mut Vec<PageId>) {
        self.tree.remove_all(freed);
        self.roots.clear();
        self.note_cleared();
        self.locks.remove_all();
        self.leaves.clear();
        self.retained.clear();
        self.statistics.pages_removed += self.counts.total as u64;
        self.counts = Counts::default();
    }

    /// How many entries of the eviction order were looked at since the cache was built: what
    /// keeping the order costs, in a unit that no clock can blur.
    #[must_use]
    pub fn eviction_order_steps(&self) -> u64 {
        self.leaves.steps() + self.retained.steps()
    }

    /// Plants a known bug, for the tests that have to notice it.
    #[cfg(feature = "seeded-bugs")]
    pub fn plant(&mut self, bug: SeededBug) {
        self.tree.planted.bug = Some(bug);
    }
}

impl fmt::Debug for RadixCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RadixCache")
            .field("page_size", &self.page_size())
            .field("policy", &self.policy)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl RadixCache {
    fn effective(&self, namespace: Namespace) -> Namespace {
        if self.tree.planted.is(SeededBug::IgnoreNamespace) {
            return Namespace(0);
        }
        namespace
    }

    /// The root of a namespace; a new one if it has none.
    pub(crate) fn root(&mut self, namespace: Namespace) -> Result<NodeIndex, CacheError> {
        if let Some(&root) = self.roots.get(&namespace) {
            return Ok(root);
        }
        let root = self.tree.add_root(namespace)?;
        self.roots.insert(namespace, root);
        Ok(root)
    }

    /// The node that ends where a descent stopped, made by a split if need be.
    fn split_at(&mut self, descent: &Descent) -> Result<NodeIndex, CacheError> {
        match descent.part {
            None => Ok(descent.node),
            Some((node, at)) => self.tree.split(node, at),
        }
    }

    /// Whether a lock at `end` may make the node longer: nobody else ends there or continues it,
    /// and new pages would be kept and evicted just as those that are there.
    fn is_ours_to_extend(&self, end: NodeIndex, retention: Retention) -> bool {
        let node = self.tree.node(end);
        node.pins == 1
            && node.children == 0
            && !self.tree.is_root(end)
            && node.retention == retention
            && (node.hits == 0 || !self.policy.counts_hits())
            && self.policy != Policy::Fifo
    }

    /// [`SeededBug::ReplaceOnInsert`].
    #[cfg(feature = "seeded-bugs")]
    fn replace_present(&mut self, end: NodeIndex, tokens: &[Token], pages: &[PageId]) {
        if !self.tree.planted.is(SeededBug::ReplaceOnInsert) {
            return;
        }
        let mut hits = Vec::new();
        self.tree.descend(end, tokens, |node, matched| hits.push((node, matched)));
        let mut rest = pages;
        for (node, matched) in hits {
            let (these, others) = rest.split_at(matched as usize);
            self.tree.store.replace_pages(self.tree.node(node).run, these);
            rest = others;
        }
    }
}
