//! What is in the tree and where, kept in step.
//!
//! Every page comes and goes through here, so that counts, orders of eviction, windows and events
//! follow. What is optional (the host tier, the windowed group, events) is absent when it is off.

mod check;
mod eviction;
mod snapshot;
mod transfers;
mod windowed;

use crate::config::CacheConfig;
use crate::error::CacheError;
use crate::events::EventLog;
use crate::host::Host;
use crate::residents::Residents;
use crate::statistics::Statistics;
use crate::store::NO_PAGE;
use crate::tree::{Descent, Node, NodeIndex, Tree};
use crate::types::{Counts, Inserted, Namespace, PageGroup, PageId, Retention, Tier, Token};
use crate::windowed::{Found, WindowedGroup, find};

pub use snapshot::{Snapshot, SnapshotNode, SnapshotWindowedPage};

/// The tree, the pages of each tier and group, and those who are told.
#[derive(Debug)]
pub(crate) struct Residency {
    tree: Tree,
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

impl Residency {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        let group = |window| WindowedGroup::new(window, config.page_size, config.policy);
        Self {
            tree: Tree::new(config),
            device: Residents::new(Tier::Device, config.policy),
            host: config.host.map(Host::new),
            windowed: config.window.map(group),
            events: EventLog::new(config.events),
            statistics: Statistics::default(),
            counts_hits: config.counts_hits(),
            counts_age: config.counts_age(),
        }
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(crate) fn device(&self) -> &Residents {
        &self.device
    }

    pub(crate) fn windowed(&self) -> Option<&WindowedGroup> {
        self.windowed.as_ref()
    }

    pub(crate) fn windowed_mut(&mut self) -> Option<&mut WindowedGroup> {
        self.windowed.as_mut()
    }

    pub(crate) fn events(&self) -> Option<&EventLog> {
        self.events.as_ref()
    }

    pub(crate) fn events_mut(&mut self) -> Option<&mut EventLog> {
        self.events.as_mut()
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.statistics
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            evictable: self.device.idle(),
            locked: self.device.held(),
            total: self.device.total(),
            host: self.host.as_ref().map_or(0, |host| host.residents().total()),
            windowed: self.windowed.as_ref().map(WindowedGroup::counts).unwrap_or_default(),
        }
    }

    /// How far `tokens` can be used, in tokens, and how many tokens more could be loaded.
    pub(crate) fn probe(&self, namespace: Namespace, tokens: &[Token]) -> (usize, usize) {
        let Some(root) = self.tree.find_root(namespace) else {
            return (0, 0);
        };
        let found = find(&self.tree, self.windowed.as_ref(), root, tokens, |_, _| {});
        let matched = found.descent.pages * self.tree.page_size();
        let loadable = self.loadable(&found.descent, &tokens[matched..]);
        (matched, loadable * self.tree.page_size())
    }

    /// Holds what can be used of `tokens`, and appends its pages. Returns its end, and its length
    /// in tokens.
    pub(crate) fn acquire(
        &mut self,
        namespace: Namespace,
        tokens: &[Token],
        pages: &mut Vec<PageId>,
    ) -> Result<(NodeIndex, usize), CacheError> {
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
        Ok((end, matched))
    }

    /// Puts pages behind `old_end`, which a lock holds, and moves the hold to their end. Those that
    /// were present are appended to `canonical`. Checks everything before it changes anything.
    pub(crate) fn insert(
        &mut self,
        old_end: NodeIndex,
        tokens: &[Token],
        pages: &[PageId],
        retention: Retention,
        canonical: &mut Vec<PageId>,
    ) -> Result<(NodeIndex, Inserted), CacheError> {
        let page_size = self.tree.page_size();
        if tokens.len() != pages.len() * page_size {
            let (tokens, pages) = (tokens.len(), pages.len());
            return Err(CacheError::RaggedRun { tokens, pages, page_size });
        }
        if pages.contains(&NO_PAGE) {
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
        self.tree.raise(attach, retention);
        if let Some(group) = &mut self.windowed {
            group.follow(&self.tree, old_position, end);
        }
        let inserted = Inserted { present_pages, new_pages: new_pages.len() };
        self.statistics.pages_inserted += inserted.new_pages as u64;
        self.statistics.pages_duplicate += present_pages as u64;
        Ok((end, inserted))
    }

    /// One more lock ends at `end`, which is held.
    pub(crate) fn fork(&mut self, end: NodeIndex) {
        self.hold(end);
        if let Some(group) = &mut self.windowed {
            group.open(&self.tree, end);
        }
    }

    /// A lock that ended at `end` is gone; its pages are kept for others.
    pub(crate) fn release(&mut self, end: NodeIndex, retention: Retention) {
        if let Some(group) = &mut self.windowed {
            group.close(&self.tree, end, Some(retention));
        }
        self.tree.touch(end);
        self.let_go(end);
    }

    /// Raises the retention of everything that a lock at `end` holds.
    pub(crate) fn retain(&mut self, end: NodeIndex, retention: Retention) {
        self.tree.raise(end, retention);
        if let Some(group) = &mut self.windowed {
            group.raise(&self.tree, end, retention);
        }
    }

    /// Tells the time.
    pub(crate) fn advance(&mut self, now: u64) {
        self.device.advance(now, &self.tree);
        if let Some(host) = &mut self.host {
            host.residents_mut().advance(now, &self.tree);
        }
        if let Some(group) = &mut self.windowed {
            group.advance(now);
        }
    }

    /// Makes room for `pages` more pages and for the nodes that one call can add.
    fn reserve(&mut self, pages: usize) -> Result<(), CacheError> {
        self.tree.reserve(pages)?;
        if let Some(group) = &mut self.windowed {
            group.grow(self.tree.store().slots_in_all());
        }
        Ok(())
    }

    /// Adds a pin. A node that had none pins its parent in turn.
    fn hold(&mut self, mut node: NodeIndex) {
        while self.tree.pin(node) {
            let pinned = self.tree.node(node);
            self.device.hold(node, pinned);
            if let Some(host) = &mut self.host {
                host.residents_mut().hold(node, pinned);
            }
            let Some(parent) = self.tree.parent(node) else { return };
            node = parent;
        }
    }

    /// Takes a pin away. A node that has none left takes one from its parent in turn.
    fn let_go(&mut self, mut node: NodeIndex) {
        while self.tree.unpin(node) {
            let (unpinned, parent) = (self.tree.node(node), self.tree.parent(node));
            self.device.let_go(unpinned);
            if let Some(host) = &mut self.host {
                host.residents_mut().let_go(unpinned);
            }
            self.settle(node);
            let Some(parent) = parent else { return };
            node = parent;
        }
    }

    /// Files a node that may have lost its last pin or its last child: a leaf may be evicted from
    /// here on, a root without children has no purpose.
    fn settle(&mut self, index: NodeIndex) {
        let node = self.tree.node(index);
        if self.tree.is_root(index) {
            if node.pins == 0 && node.children == 0 {
                self.tree.remove(index, &mut Vec::new(), &mut Vec::new());
            }
            return;
        }
        self.device.settle(index, node);
        if let Some(host) = &mut self.host {
            host.residents_mut().settle(index, node);
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

    /// The pages of a tier, if there is one.
    fn residents(&self, tier: Tier) -> Option<&Residents> {
        match tier {
            Tier::Device => Some(&self.device),
            Tier::Host => self.host.as_ref().map(Host::residents),
        }
    }

    /// The pages of a tier, if there is one.
    fn residents_mut(&mut self, tier: Tier) -> Option<&mut Residents> {
        match tier {
            Tier::Device => Some(&mut self.device),
            Tier::Host => self.host.as_mut().map(Host::residents_mut),
        }
    }

    /// A node that is held is on a tier from here on.
    fn put_on(&mut self, node: NodeIndex, tier: Tier, pages: &[PageId]) {
        self.tree.put(node, tier, pages);
        if let Some(residents) = self.residents_mut(tier) {
            residents.add(pages.len(), true);
        }
        if let Some(log) = &mut self.events {
            let all = 0..self.tree.node(node).run.pages;
            log.stored(&self.tree, node, all, (tier, PageGroup::Full));
        }
    }

    /// Hashes pages of a node from `from` on, which are new, and tells of them.
    fn note_new(&mut self, node: NodeIndex, from: u32) {
        if let Some(log) = &mut self.events {
            self.tree.hash_pages(node, from);
            let new = from..self.tree.node(node).run.pages;
            log.stored(&self.tree, node, new, (Tier::Device, PageGroup::Full));
        }
    }

    /// How many pages behind a descent on the device are on the host and not on their way.
    fn loadable(&self, on_device: &Descent, rest: &[Token]) -> usize {
        if self.host.is_none() || on_device.part.is_some() {
            return 0;
        }
        let on_host = |node: &Node| !node.is_on_device() && !node.moving;
        self.tree.descend(on_device.node, rest, on_host, |_, _| {}).pages
    }

    /// The end of what matches `tokens` behind `start` on the host alone, made by a split if need
    /// be; `start` itself without a match.
    fn host_part(&mut self, start: NodeIndex, tokens: &[Token]) -> Result<NodeIndex, CacheError> {
        if self.host.is_none() {
            return Ok(start);
        }
        let descent = self.tree.descend(start, tokens, |node| !node.is_on_device(), |_, _| {});
        self.tree.split_at(&descent)
    }

    /// Puts freshly computed pages in the place of those that are on the host alone, from the end
    /// of `above` to the end of `end`, which is held. Returns how many were put.
    fn adopt_path(&mut self, above: NodeIndex, end: NodeIndex, pages: &[PageId]) -> usize {
        if above == end {
            return 0;
        }
        let mut rest = pages;
        for node in self.tree.range(self.tree.node(above).end, end) {
            let (these, others) = rest.split_at(self.tree.node(node).run.pages as usize);
            self.put_on(node, Tier::Device, these);
            rest = others;
        }
        pages.len() - rest.len()
    }
}
