//! The cache itself: locks, insertion and eviction over the tree.

use core::fmt;

use hashbrown::HashMap;

use crate::config::{CacheConfig, Policy};
use crate::error::CacheError;
use crate::events::EventLog;
use crate::locks::Locks;
use crate::node::{Node, NodeIndex};
use crate::order::LeafOrder;
use crate::retention::Retention;
use crate::statistics::Statistics;
use crate::store::NO_PAGE;
use crate::tiers::HostState;
use crate::tree::{Descent, Tree};
use crate::types::{Acquired, Counts, Inserted, LockId, Match, Namespace, PageId, Token};
use crate::windowed::{Found, WindowedGroup};

/// A tree of cached token prefixes and the pages that hold their KV.
///
/// The [crate documentation](crate) tells how it is used and what it promises.
pub struct RadixCache {
    pub(crate) tree: Tree,
    pub(crate) roots: HashMap<Namespace, NodeIndex>,
    pub(crate) locks: Locks,
    /// Every unpinned leaf of the device's part, first to go first.
    pub(crate) leaves: LeafOrder,
    pub(crate) policy: Policy,
    /// Whether anything asks for [`hits`](Node::hits).
    counts_hits: bool,
    /// Whether anything asks for the time of insertion.
    counts_age: bool,
    /// The second tier, if there is one.
    pub(crate) host: Option<HostState>,
    /// The second page group, if there is one.
    pub(crate) windowed: Option<WindowedGroup>,
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
    /// [`CacheError::PageSize`] if the page size is not a power of two between 1 and 512;
    /// [`CacheError::EmptyWindow`] and [`CacheError::WindowWithHostTier`].
    pub fn new(config: CacheConfig) -> Result<Self, CacheError> {
        config.check()?;
        Ok(Self {
            tree: Tree::new(&config),
            roots: HashMap::new(),
            locks: Locks::default(),
            leaves: LeafOrder::default(),
            policy: config.policy,
            counts_hits: config.counts_hits(),
            counts_age: config.counts_age(),
            host: config.host.map(HostState::new),
            windowed: config
                .window
                .map(|window| WindowedGroup::new(window, config.page_size, config.policy)),
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
        let windowed = self.windowed.as_ref().map(WindowedGroup::counts).unwrap_or_default();
        Counts { windowed, ..self.counts }
    }

    /// How much of `tokens` is cached and, with a windowed group, can be used. Changes nothing, not even what counts as recently
    /// used, and allocates nothing: a scheduler may ask for every waiting request.
    #[must_use]
    pub fn probe(&self, namespace: Namespace, tokens: &[Token]) -> Match {
        let Some(&root) = self.roots.get(&namespace) else {
            return Match::default();
        };
        let descent = self.find(root, tokens, |_, _| {}).descent;
        let matched = descent.pages * self.page_size();
        Match { tokens: matched, host_tokens: self.loadable(&descent, &tokens[matched..]) }
    }

    /// Locks what is cached of `tokens` and appends its pages to `pages`, in order. What one
    /// call matched can't be evicted before the lock is released.
    ///
    /// With a windowed group, `pages` are those of the full group;
    /// [`windowed_pages`](Self::windowed_pages) names the others.
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
        self.reserve(0)?;
        self.locks.check_room()?;
        let root = self.root(namespace)?;
        let (tree, before) = (&self.tree, pages.len());
        let Found { descent, full_pages } = self.find(root, tokens, |node, matched| {
            tree.store.copy_pages(tree.node(node).run, matched, pages);
        });
        pages.truncate(before + descent.pages);
        let end = self.split_at(&descent)?;
        let lock = self.locks.create(end, Retention::default())?;
        self.touch(end);
        self.pin(end);
        if self.counts_hits {
            self.count_hit(end);
        }
        self.open_window(end);
        self.hit_window(end);
        let matched = descent.pages * self.page_size();
        self.statistics.requests += 1;
        self.statistics.requests_hit += u64::from(matched > 0);
        self.statistics.tokens += tokens.len() as u64;
        self.statistics.tokens_hit += matched as u64;
        self.statistics.tokens_out_of_window +=
            ((full_pages - descent.pages) * self.page_size()) as u64;
        Ok(Acquired { lock, tokens: matched })
    }

    /// Caches whole pages that follow a lock's end, and moves the lock to the end of them.
    /// Costs what the run costs, however long the prefix is.
    ///
    /// Pages that are not present yet become the cache's. For the first
    /// [`present_pages`](Inserted::present_pages) of the run the cache has pages already: those
    /// are appended to `canonical`, and the caller **frees its own copies of them and points its
    /// page table at the canonical ones**.
    ///
    /// With a windowed group, these are pages of the full group, and
    /// [`put_windowed`](Self::put_windowed) follows with the others.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`]; [`CacheError::RaggedRun`] unless `tokens` fill `pages` exactly;
    /// [`CacheError::ReservedPage`]; [`CacheError::PageAlreadyCached`] if one of `pages` is the
    /// canonical one itself;
    /// [`CacheError::Full`] when 32 bits can't number the new pages. Nothing has changed then.
    pub fn insert(
        &mut self,
        lock: LockId,
        tokens: &[Token],
        pages: &[PageId],
        canonical: &mut Vec<PageId>,
    ) -> Result<Inserted, CacheError> {
        let old_end = self.locks.end(lock)?;
        let old_position = self.tree.node(old_end).end;
        let retention = *self.locks.retention(lock);
        let page_size = self.page_size();
        if tokens.len() != pages.len() * page_size {
            return Err(CacheError::RaggedRun {
                tokens: tokens.len(),
                pages: pages.len(),
                page_size,
            });
        }
        if pages.contains(&NO_PAGE) {
            return Err(CacheError::ReservedPage);
        }
        self.reserve(pages.len())?;

        let present_from = canonical.len();
        let tree = &self.tree;
        let descent = tree.descend(old_end, tokens, Node::is_on_device, |node, matched| {
            tree.store.copy_pages(tree.node(node).run, matched, canonical);
        });
        let present = canonical[present_from..].iter().zip(pages);
        if let Some((&page, _)) = present.clone().find(|(cached, own)| cached == own) {
            canonical.truncate(present_from);
            return Err(CacheError::PageAlreadyCached { page });
        }
        let present_pages = descent.pages;
        let inserted = Inserted { present_pages, new_pages: pages.len() - present_pages };
        let new_tokens = &tokens[present_pages * page_size..];
        let new_pages = &pages[present_pages..];
        let present_end = self.split_at(&descent)?;
        let attach = self.host_part(present_end, new_tokens)?;
        // Pinned before the old end is let go, so that no page on the way is ever evictable in
        // between.
        self.pin(attach);
        let adopted = self.adopt_path(present_end, attach, new_pages);
        let rest_tokens = &new_tokens[adopted * page_size..];
        let is_own_end = attach == old_end;
        let end = self.attach(attach, is_own_end, rest_tokens, &new_pages[adopted..], retention)?;
        self.pin(end);
        self.unpin(attach);
        self.unpin(old_end);
        self.locks.set_end(lock, end);
        self.raise(attach, retention);
        self.move_window(old_position, end);
        self.statistics.pages_inserted += inserted.new_pages as u64;
        self.statistics.pages_duplicate += present_pages as u64;
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
        self.open_window(end);
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
        let retention = self.locks.retention_of(lock)?;
        let end = self.locks.remove(lock)?;
        self.close_window(end, Some(retention));
        self.touch(end);
        self.unpin(end);
        Ok(())
    }

    /// How many entries of the eviction order were looked at since the cache was built: what
    /// keeping the order costs, in a unit that no clock can blur.
    #[must_use]
    pub fn eviction_order_steps(&self) -> u64 {
        self.leaves.steps()
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
    pub(crate) fn split_at(&mut self, descent: &Descent) -> Result<NodeIndex, CacheError> {
        match descent.part {
            None => Ok(descent.node),
            Some((node, at)) => self.tree.split(node, at),
        }
    }

    /// Adds new pages behind `attach`, which is pinned, and returns the node they end in.
    fn attach(
        &mut self,
        attach: NodeIndex,
        is_own_end: bool,
        tokens: &[Token],
        pages: &[PageId],
        retention: Retention,
    ) -> Result<NodeIndex, CacheError> {
        if pages.is_empty() {
            self.touch(attach);
            return Ok(attach);
        }
        let mut end = attach;
        if is_own_end && self.is_ours_to_extend(attach, retention) {
            self.tree.extend_leaf(attach, tokens, pages);
            self.touch(attach);
            self.counts.locked += pages.len();
        } else {
            self.clock += 1;
            end = self.tree.add_leaf(attach, tokens, pages, self.clock, retention)?;
            self.counts.evictable += pages.len();
        }
        self.counts.total += pages.len();
        self.note_stored(end, self.tree.node(end).run.pages - pages.len() as u32);
        Ok(end)
    }

    /// Whether a lock at `end`, which an insertion has pinned once more, may make the node
    /// longer: nobody else ends there or continues it, and new pages would be kept and evicted
    /// just as those that are there.
    fn is_ours_to_extend(&self, end: NodeIndex, retention: Retention) -> bool {
        let node = self.tree.node(end);
        node.pins == 2
            && node.children == 0
            && !self.tree.is_root(end)
            && node.retention == retention
            && !node.host
            && (node.hits == 0 || !self.counts_hits)
            && !self.counts_age
    }
}
