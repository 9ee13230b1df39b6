//! Recomputes everything that the cache keeps up to date, and compares. Slow; for tests and
//! debug builds.

use std::collections::{HashMap, HashSet};

use crate::cache::RadixCache;
use crate::error::InvariantViolation;
use crate::node::{Node, NodeIndex};
use crate::store::NO_PAGE;
use crate::types::{Counts, Tier};

/// What a node should know of its children.
#[derive(Clone, Copy, Debug, Default)]
struct Children {
    all: u32,
    pinned: u32,
    device: u32,
    host: u32,
}

/// Returns an [`InvariantViolation`] unless something holds.
macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(InvariantViolation { what: format!($($what)+) });
        }
    };
}

pub(crate) use ensure;

impl RadixCache {
    /// Checks the whole tree against its counters, locks and order of eviction. Costs time and
    /// memory in proportion to the cache.
    ///
    /// # Errors
    ///
    /// The first [`InvariantViolation`] found. There should never be one: it is a bug here.
    pub fn check_invariants(&self) -> Result<(), InvariantViolation> {
        let mut locks_at: HashMap<NodeIndex, u32> = HashMap::new();
        for end in self.locks.ends() {
            let live = self.tree.get(end).is_some_and(|node| node.live);
            ensure!(live, "a lock ends at {end:?}, which is gone");
            *locks_at.entry(end).or_default() += 1;
        }
        let mut children: HashMap<NodeIndex, Children> = HashMap::new();
        for (_, node) in self.tree.iter() {
            let below = children.entry(node.parent).or_default();
            below.all += 1;
            below.pinned += u32::from(node.pins > 0);
            below.device += u32::from(node.device);
            below.host += u32::from(node.host);
        }
        let mut seen = HashSet::new();
        let mut counts = Counts::default();
        let mut idle_leaves = 0;
        let mut filed = 0;
        let (mut slots, mut host_idle, mut idle_host_leaves) = (0, 0, 0);
        for (index, node) in self.tree.iter() {
            let below = children.get(&index).copied().unwrap_or_default();
            let (count, pinned) = (below.all, below.pinned);
            let by_tier = (node.device_children, node.host_children);
            ensure!(
                by_tier == (below.device, below.host),
                "{index:?} miscounts {below:?}: {node:?}"
            );
            let locks = locks_at.get(&index).copied().unwrap_or_default();
            ensure!(node.children == count, "{index:?} miscounts its {count} children: {node:?}");
            ensure!(
                node.pins == pinned + locks,
                "{index:?} has {locks} locks and {pinned} pinned children: {node:?}"
            );
            if self.tree.is_root(index) {
                self.check_root(index, node)?;
                continue;
            }
            filed += 1;
            self.check_place(index, node)?;
            let (mut pages, mut host_pages) = (Vec::new(), Vec::new());
            self.tree.store.copy_pages(node.run, node.run.pages, &mut pages);
            if self.host.is_some() {
                self.tree.store.copy_host_pages(node.run, &mut host_pages);
            }
            for (tier, is_there, pages) in
                [(Tier::Device, node.device, pages), (Tier::Host, node.host, host_pages)]
            {
                for page in pages {
                    ensure!(is_there == (page != NO_PAGE), "{page} on the {tier:?}: {node:?}");
                    let is_new = !is_there || seen.insert((tier, page));
                    ensure!(is_new, "{page} is cached twice on the {tier:?}");
                }
            }
            let (device, host) = node.pages_by_tier();
            slots += node.run.pages as usize;
            counts.total += device;
            counts.host += host;
            *(if node.pins > 0 { &mut counts.locked } else { &mut counts.evictable }) += device;
            host_idle += if node.pins > 0 { 0 } else { host };

            let idle_host_leaf = node.host && node.host_children == 0 && node.pins == 0;
            idle_host_leaves += usize::from(idle_host_leaf);
            let place = self.host.as_ref().and_then(|tier| tier.order.place_of(index));
            let expected = self.expected_host_place(index).filter(|_| idle_host_leaf);
            ensure!(
                place == expected,
                "{index:?} is filed on the host at {place:?}, not {expected:?}"
            );
            let idle_leaf = node.device && node.device_children == 0 && node.pins == 0;
            idle_leaves += usize::from(idle_leaf);
            let place = self.leaves.place_of(index);
            let expected = idle_leaf.then(|| self.expected_place(index));
            ensure!(place == expected, "{index:?} is filed at {place:?}, not {expected:?}");
        }
        ensure!(counts == self.counts, "the counts are {:?}, not {counts:?}", self.counts);
        self.check_host(host_idle, idle_host_leaves)?;
        self.check_windowed()?;
        ensure!(
            self.tree.store.used() == slots,
            "{} slots are used, not {slots}",
            self.tree.store.used()
        );
        ensure!(
            self.leaves.len() == idle_leaves,
            "{} leaves in order, not {idle_leaves}",
            self.leaves.len()
        );
        ensure!(
            self.tree.filed_children() == filed,
            "{} children on file, not {filed}",
            self.tree.filed_children()
        );
        let roots = self.tree.iter().filter(|(index, _)| self.tree.is_root(*index)).count();
        ensure!(self.roots.len() == roots, "{} roots on file, not {roots}", self.roots.len());
        Ok(())
    }

    fn check_host(&self, idle: usize, leaves: usize) -> Result<(), InvariantViolation> {
        let Some(host) = &self.host else {
            ensure!(self.counts.host == 0, "pages on a host that is not there");
            return Ok(());
        };
        ensure!(host.idle == idle, "{} idle pages on the host, not {idle}", host.idle);
        let filed = host.order.len();
        ensure!(filed == leaves, "{filed} leaves in the host's order, not {leaves}");
        let owned = host.free.len() + self.counts.host + host.on_their_way();
        ensure!(owned == host.tier.pages as usize, "{owned} pages of the host: {:?}", host.tier);
        Ok(())
    }

    fn check_root(&self, index: NodeIndex, node: &Node) -> Result<(), InvariantViolation> {
        let filed = self.roots.get(&self.tree.namespace_of(index));
        ensure!(filed == Some(&index), "root {index:?} is filed as {filed:?}");
        ensure!(node.run.pages == 0 && node.end == 0, "a root with pages: {node:?}");
        ensure!(node.pins > 0 || node.children > 0, "root {index:?} has no purpose");
        Ok(())
    }

    fn check_place(&self, index: NodeIndex, node: &Node) -> Result<(), InvariantViolation> {
        let parent = self.tree.get(node.parent).filter(|parent| parent.live);
        let Some(parent) = parent else {
            ensure!(false, "the parent of {index:?} is gone");
            return Ok(());
        };
        ensure!(node.device || node.host, "{index:?} is nowhere");
        ensure!(!node.device || parent.device, "{index:?} is on the device without its parent");
        ensure!(!node.host || parent.host, "{index:?} is on the host without its parent");
        ensure!(!node.moving || node.pins > 0, "{index:?} is moving and not locked");
        let used_first = node.pins > 0 || node.used <= parent.used || parent.pins > 0;
        ensure!(
            used_first || self.tree.is_root(node.parent),
            "{index:?} was used after its parent"
        );
        let page_size = self.page_size();
        let mut stretches = 0;
        for (tokens, pages) in self.tree.store.extents_of(node.run) {
            ensure!(tokens.len() == pages.len() * page_size, "a ragged stretch in {index:?}");
            stretches += pages.len();
        }
        ensure!(node.run.pages > 0, "{index:?} is empty");
        ensure!(stretches == node.run.pages as usize, "{index:?} has {stretches} pages: {node:?}");
        ensure!(
            node.end == parent.end + node.run.pages,
            "{index:?} ends at the wrong depth: {node:?}"
        );
        let found = self.tree.child(node.parent, self.tree.store.first_page(node.run));
        ensure!(found == Some(index), "its parent finds {found:?} in the place of {index:?}");
        Ok(())
    }
}
