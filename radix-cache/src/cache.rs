//! The cache itself: locks, insertion and eviction over the tree.

use hashbrown::HashMap;

use crate::bugs::SeededBug;
use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::leaf_heap::{LeafHeap, Rank};
use crate::locks::Locks;
use crate::tree::{Descent, NodeIndex, Tree};
use crate::types::{Acquired, Counts, Inserted, LockId, Match, Namespace, PageId, Token};

/// A tree of cached token prefixes and the pages that hold their KV.
///
/// The [crate documentation](crate) tells how it is used and what it promises.
#[derive(Debug)]
pub struct RadixCache {
    pub(crate) tree: Tree,
    pub(crate) roots: HashMap<Namespace, NodeIndex>,
    /// The namespace of each root, to find its entry in `roots` when it goes.
    pub(crate) namespaces: HashMap<NodeIndex, Namespace>,
    pub(crate) locks: Locks,
    /// Every unpinned leaf, first to go first.
    pub(crate) leaves: LeafHeap,
    pub(crate) counts: Counts,
    /// Counts uses; stands in for time.
    pub(crate) clock: u64,
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
            namespaces: HashMap::new(),
            locks: Locks::default(),
            leaves: LeafHeap::default(),
            counts: Counts::default(),
            clock: 0,
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
        let lock = self.locks.create(end)?;
        self.touch(end);
        self.pin(end);
        Ok(Acquired { lock, tokens: descent.pages * self.page_size() })
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
        let mut end = self.split_at(&descent)?;
        if new_pages.is_empty() {
            self.touch(end);
        } else if end == old_end && self.is_ours_to_extend(end) {
            self.tree.extend_leaf(end, new_tokens, new_pages);
            self.counts.locked += new_pages.len();
            self.touch(end);
        } else {
            self.leaves.remove(end);
            self.clock += 1;
            end = self.tree.add_leaf(end, new_tokens, new_pages, self.clock)?;
            self.counts.evictable += new_pages.len();
        }
        self.counts.total += new_pages.len();

        // The new end is pinned before the old one is let go, so that no page on the way is
        // ever evictable in between.
        self.pin(end);
        if !unlock_first {
            self.unpin(old_end);
        }
        self.locks.set_end(lock, end);
        Ok(inserted)
    }

    /// Makes a second lock with the same end, for a sequence that goes on from there by itself.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::Full`] when 32 bits can't number another lock.
    pub fn fork(&mut self, lock: LockId) -> Result<LockId, CacheError> {
        let end = self.locks.end(lock)?;
        let fork = self.locks.create(end)?;
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
        self.namespaces.clear();
        self.locks.remove_all();
        self.leaves.clear();
        self.counts = Counts::default();
    }

    /// How many entries of the eviction order were looked at since the cache was built: what
    /// keeping the order costs, in a unit that no clock can blur.
    #[must_use]
    pub fn eviction_order_steps(&self) -> u64 {
        self.leaves.steps()
    }

    /// Plants a known bug, for the tests that have to notice it.
    #[cfg(feature = "seeded-bugs")]
    pub fn plant(&mut self, bug: SeededBug) {
        self.tree.planted.bug = Some(bug);
    }
}

impl RadixCache {
    /// Where an unpinned leaf stands in the order of eviction.
    pub(crate) fn rank(&self, leaf: NodeIndex) -> Rank {
        (0, self.tree.node(leaf).used)
    }

    fn effective(&self, namespace: Namespace) -> Namespace {
        if self.tree.planted.is(SeededBug::IgnoreNamespace) {
            return Namespace(0);
        }
        namespace
    }

    /// The root of a namespace; a new one if it has none.
    fn root(&mut self, namespace: Namespace) -> Result<NodeIndex, CacheError> {
        if let Some(&root) = self.roots.get(&namespace) {
            return Ok(root);
        }
        let root = self.tree.add_root()?;
        self.roots.insert(namespace, root);
        self.namespaces.insert(root, namespace);
        Ok(root)
    }

    fn drop_root(&mut self, root: NodeIndex) {
        if let Some(namespace) = self.namespaces.remove(&root) {
            self.roots.remove(&namespace);
        }
        self.tree.remove(root, &mut Vec::new());
    }

    /// The node that ends where a descent stopped, made by a split if need be.
    fn split_at(&mut self, descent: &Descent) -> Result<NodeIndex, CacheError> {
        match descent.part {
            None => Ok(descent.node),
            Some((node, at)) => self.tree.split(node, at),
        }
    }

    /// Whether a lock at `end` may make the node longer: nobody else ends there or continues it.
    fn is_ours_to_extend(&self, end: NodeIndex) -> bool {
        let node = self.tree.node(end);
        node.pins == 1 && node.children == 0 && !self.tree.is_root(end)
    }

    /// Notes a use. Ancestors count as used too; they learn of it when they become leaves,
    /// which is the first time that it matters.
    fn touch(&mut self, node: NodeIndex) {
        self.clock += 1;
        self.tree.node_mut(node).used = self.clock;
    }

    /// Adds a pin. A node that had none pins its parent in turn.
    fn pin(&mut self, mut node: NodeIndex) {
        while let Some(pinned) = self.tree.get_mut(node) {
            pinned.pins += 1;
            if pinned.pins > 1 {
                return;
            }
            let pages = pinned.run.pages as usize;
            let parent = pinned.parent;
            self.counts.evictable -= pages;
            self.counts.locked += pages;
            if !self.tree.planted.is(SeededBug::EvictLocked) {
                self.leaves.remove(node);
            }
            node = parent;
        }
    }

    /// Takes a pin away. A node that has none left takes one from its parent in turn.
    fn unpin(&mut self, mut node: NodeIndex) {
        while let Some(unpinned) = self.tree.get_mut(node) {
            unpinned.pins -= 1;
            if unpinned.pins > 0 {
                return;
            }
            let pages = unpinned.run.pages as usize;
            let parent = unpinned.parent;
            self.counts.locked -= pages;
            self.counts.evictable += pages;
            self.became_idle(node);
            node = parent;
        }
    }

    /// Files a node that lost its last pin or its last child: a leaf may be evicted from here on,
    /// a root without children has no purpose.
    fn became_idle(&mut self, node: NodeIndex) {
        let idle = self.tree.node(node);
        if idle.pins > 0 || idle.children > 0 {
            return;
        }
        if self.tree.is_root(node) {
            self.drop_root(node);
        } else if self.leaves.rank_of(node).is_none() {
            self.leaves.insert(node, self.rank(node));
        }
    }

    fn first_to_go(&self) -> Option<NodeIndex> {
        self.leaves.first()
    }

    /// Removes an unpinned leaf and returns its parent, which may now be a leaf itself.
    fn remove_leaf(&mut self, leaf: NodeIndex, freed: &mut Vec<PageId>) -> NodeIndex {
        let gone = self.tree.node(leaf);
        let (pages, used) = (gone.run.pages as usize, gone.used);
        self.leaves.remove(leaf);
        let parent = self.tree.remove(leaf, freed);
        self.counts.evictable -= pages;
        self.counts.total -= pages;
        let heir = self.tree.node_mut(parent);
        heir.used = heir.used.max(used);
        self.became_idle(parent);
        parent
    }

    /// Frees the last `pages` pages of an unpinned leaf that has more of them.
    fn trim_leaf(&mut self, leaf: NodeIndex, pages: usize, freed: &mut Vec<PageId>) {
        self.tree.trim(leaf, pages, freed);
        self.counts.evictable -= pages;
        self.counts.total -= pages;
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
