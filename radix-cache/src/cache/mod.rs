//! The cache: its owners, put together.

mod check;
mod eviction;
mod residency;
mod snapshot;
mod transfers;
mod views;
mod windowed;

use core::fmt;

use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::events::EventLog;
use crate::host::Host;
use crate::locks::Locks;
use crate::residents::Residents;
use crate::statistics::Statistics;
use crate::tree::{Node, NodeIndex, Tree};
use crate::types::{
    Acquired, Counts, Inserted, LockId, Match, Namespace, PageId, Retention, Tier, Token,
};
use crate::windowed::{Found, WindowedGroup, find};

/// A tree of cached token prefixes and the pages that hold their KV.
///
/// The [crate documentation](crate) tells how it is used and what it promises.
pub struct RadixCache {
    tree: Tree,
    locks: Locks,
    device: Residents,
    host: Option<Host>,
    windowed: Option<WindowedGroup>,
    events: Option<EventLog>,
    statistics: Statistics,
    /// Whether anything asks how often a page was matched.
    counts_hits: bool,
    /// Whether anything asks when a page was inserted.
    counts_age: bool,
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
        let group = |window| WindowedGroup::new(window, config.page_size, config.policy);
        Ok(Self {
            tree: Tree::new(&config),
            device: Residents::new(Tier::Device, config.policy),
            host: config.host.map(Host::new),
            windowed: config.window.map(group),
            events: EventLog::new(config.events),
            locks: Locks::default(),
            statistics: Statistics::default(),
            counts_hits: config.counts_hits(),
            counts_age: config.counts_age(),
        })
    }

    /// Tokens a page holds.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.tree.page_size()
    }

    /// Pages in the cache, by state. Costs nothing.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            evictable: self.device.idle(),
            locked: self.device.held(),
            total: self.device.total(),
            host: self.host.as_ref().map_or(0, |host| host.residents().total()),
            windowed: self.windowed.as_ref().map(WindowedGroup::counts).unwrap_or_default(),
        }
    }

    /// How much of `tokens` is cached and, with a windowed group, can be used. Changes nothing, not even what counts as recently
    /// used, and allocates nothing: a scheduler may ask for every waiting request.
    #[must_use]
    pub fn probe(&self, namespace: Namespace, tokens: &[Token]) -> Match {
        let Some(root) = self.tree.find_root(namespace) else {
            return Match::default();
        };
        let found = find(&self.tree, self.windowed.as_ref(), root, tokens, |_, _| {});
        let matched = found.descent.pages * self.tree.page_size();
        let loadable = self.loadable(&found.descent, &tokens[matched..]);
        Match { tokens: matched, host_tokens: loadable * self.tree.page_size() }
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
        self.locks.check_room()?;
        self.reserve(0)?;
        let root = self.tree.root(namespace)?;
        let (tree, before) = (&self.tree, pages.len());
        let Found { descent, full_pages } =
            find(tree, self.windowed.as_ref(), root, tokens, |node, matched| {
                tree.store().copy_pages(tree.node(node).run, Tier::Device, matched, pages);
            });
        pages.truncate(before + descent.pages);
        let end = self.tree.split_at(&descent)?;
        self.tree.touch(end);
        self.hold(end);
        if self.counts_hits {
            self.tree.hit(end);
        }
        if let Some(group) = &mut self.windowed {
            group.open(&self.tree, end);
            group.hit(&self.tree, end);
        }
        let matched = descent.pages * self.tree.page_size();
        let statistics = &mut self.statistics;
        statistics.requests += 1;
        statistics.requests_hit += u64::from(matched > 0);
        statistics.tokens += tokens.len() as u64;
        statistics.tokens_hit += matched as u64;
        statistics.tokens_out_of_window +=
            ((full_pages - descent.pages) * self.tree.page_size()) as u64;
        let lock = self.locks.create(end, Retention::default())?;
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
        let (old_end, retention) = self.locks.get(lock)?;
        let page_size = self.tree.page_size();
        if tokens.len() != pages.len() * page_size {
            let (tokens, pages) = (tokens.len(), pages.len());
            return Err(CacheError::RaggedRun { tokens, pages, page_size });
        }
        if pages.contains(&PageId::NONE) {
            return Err(CacheError::ReservedPage);
        }
        self.reserve(pages.len())?;
        let (tree, present_from) = (&self.tree, canonical.len());
        let old_position = tree.node(old_end).end;
        let descent = tree.descend(old_end, tokens, Node::is_on_device, |node, matched| {
            tree.store().copy_pages(tree.node(node).run, Tier::Device, matched, canonical);
        });
        let mut present = canonical[present_from..].iter().zip(pages);
        if let Some((&page, _)) = present.find(|(cached, own)| cached == own) {
            canonical.truncate(present_from);
            return Err(CacheError::PageAlreadyCached { page });
        }
        let present_pages = descent.pages;
        let (new_tokens, new_pages) =
            (&tokens[present_pages * page_size..], &pages[present_pages..]);

        let present_end = self.tree.split_at(&descent)?;
        let attach = self.host_part(present_end, new_tokens)?;
        // Held before the old end is let go, so that no page on the way is ever evictable in
        // between.
        self.hold(attach);
        let adopted = self.adopt_path(present_end, attach, new_pages);
        let rest = (&new_tokens[adopted * page_size..], &new_pages[adopted..]);
        let end = self.attach(attach, attach == old_end, rest, retention)?;
        self.hold(end);
        self.let_go(attach);
        self.let_go(old_end);
        self.locks.set_end(lock, end);
        self.tree.raise(attach, retention);
        if let Some(group) = &mut self.windowed {
            group.follow(&self.tree, old_position, end);
        }
        let inserted = Inserted { present_pages, new_pages: new_pages.len() };
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
        let (end, retention) = self.locks.get(lock)?;
        let fork = self.locks.create(end, retention)?;
        self.hold(end);
        if let Some(group) = &mut self.windowed {
            group.open(&self.tree, end);
        }
        Ok(fork)
    }

    /// How many tokens a lock holds: from the root to its end.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn locked_tokens(&self, lock: LockId) -> Result<usize, CacheError> {
        let (end, _) = self.locks.get(lock)?;
        Ok(self.tree.node(end).end as usize * self.page_size())
    }

    /// Lets go of a lock. What nobody else holds becomes evictable, and counts as used just now.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`], also when the lock is released a second time.
    pub fn release(&mut self, lock: LockId) -> Result<(), CacheError> {
        let (end, retention) = self.locks.remove(lock)?;
        if let Some(group) = &mut self.windowed {
            group.close(&self.tree, end, Some(retention));
        }
        self.tree.touch(end);
        self.let_go(end);
        Ok(())
    }

    /// Asks for everything that a lock holds, and for everything that will be
    /// [inserted](Self::insert) through it or a fork of it, to be kept for longer. Wishes only
    /// grow: a page has the largest that was made for it.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn retain(&mut self, lock: LockId, retention: Retention) -> Result<(), CacheError> {
        let (end, _) = self.locks.get(lock)?;
        self.locks.set_retention(lock, retention);
        self.tree.raise(end, retention);
        if let Some(group) = &mut self.windowed {
            group.raise(&self.tree, end, retention);
        }
        Ok(())
    }

    /// Tells the time: ticks of whatever clock the caller gave [`Retention::until`] in. Earlier
    /// ticks than before are ignored.
    pub fn advance(&mut self, now: u64) {
        self.device.advance(now, &self.tree);
        if let Some(host) = &mut self.host {
            host.residents_mut().advance(now, &self.tree);
        }
        if let Some(group) = &mut self.windowed {
            group.advance(now);
        }
    }

    /// Adds new pages behind `attach`, which is held, and returns the node they end in.
    fn attach(
        &mut self,
        attach: NodeIndex,
        is_own_end: bool,
        (tokens, pages): (&[Token], &[PageId]),
        retention: Retention,
    ) -> Result<NodeIndex, CacheError> {
        if pages.is_empty() {
            self.tree.touch(attach);
            return Ok(attach);
        }
        let mut end = attach;
        let extends = is_own_end && self.is_ours_to_extend(attach, retention);
        if extends {
            self.tree.extend_leaf(attach, tokens, pages);
            self.tree.touch(attach);
        } else {
            let record = self.tree.new_record(retention);
            end = self.tree.add_leaf(attach, tokens, pages, record)?;
        }
        self.device.add(pages.len(), extends);
        self.note_new(end, self.tree.node(end).run.pages - pages.len() as u32);
        Ok(end)
    }

    /// Whether a lock at `end`, which an insertion has pinned once more, may make the node
    /// longer: nothing else ends there or continues it, and new pages would be kept and evicted
    /// just as those that are there.
    fn is_ours_to_extend(&self, end: NodeIndex, retention: Retention) -> bool {
        let node = self.tree.node(end);
        node.pins == 2
            && node.children == 0
            && !self.tree.is_root(end)
            && node.record.retention() == retention
            && !node.is_on(Tier::Host)
            && (node.record.hits == 0 || !self.counts_hits)
            && !self.counts_age
    }
}

impl fmt::Debug for RadixCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RadixCache")
            .field("page_size", &self.page_size())
            .field("policy", &self.device.policy())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
