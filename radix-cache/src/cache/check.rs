//! Recomputes everything that the cache keeps up to date, and compares. Slow; for tests and
//! debug builds.

use std::collections::{HashMap, HashSet};

use crate::cache::RadixCache;
use crate::error::{InvariantViolation, ensure};
use crate::host::Host;
use crate::tree::{Node, NodeIndex};
use crate::types::{PageId, Tier};

/// What a node should know of its children.
#[derive(Clone, Copy, Debug, Default)]
struct Children {
    all: u32,
    pinned: u32,
    on: [u32; 2],
}

/// What a tier should hold.
#[derive(Debug, Default)]
struct Held {
    idle: usize,
    locked: usize,
    idle_leaves: usize,
    pages: HashSet<PageId>,
}

const TIERS: [Tier; 2] = [Tier::Device, Tier::Host];

impl RadixCache {
    /// Checks the whole tree against its counters, locks and order of eviction. Costs time and
    /// memory in proportion to the cache.
    ///
    /// # Errors
    ///
    /// The first [`InvariantViolation`] found. There should never be one: it is a bug here.
    pub fn check_invariants(&self) -> Result<(), InvariantViolation> {
        let tree = &self.tree;
        let mut ends: HashMap<NodeIndex, u32> = HashMap::new();
        for end in self.locks.ends().chain(self.host.iter().flat_map(Host::ends)) {
            ensure!(tree.node(end).live, "a lock ends at {end:?}, which is gone");
            *ends.entry(end).or_default() += 1;
        }
        let mut children: HashMap<NodeIndex, Children> = HashMap::new();
        for (_, node) in tree.iter() {
            let below = children.entry(node.parent).or_default();
            below.all += 1;
            below.pinned += u32::from(node.pins > 0);
            for tier in TIERS {
                below.on[tier as usize] += u32::from(node.is_on(tier));
            }
        }
        let mut held = [Held::default(), Held::default()];
        let (mut roots, mut nodes, mut slots) = (0, 0, 0);
        for (index, node) in tree.iter() {
            let below = children.get(&index).copied().unwrap_or_default();
            let locks = ends.get(&index).copied().unwrap_or_default();
            let (pins, counted) = (below.pinned + locks, (below.all, below.on));
            let miscounts = (node.pins, (node.children, node.children_on)) != (pins, counted);
            ensure!(!miscounts, "{index:?} has {locks} locks and {below:?}: {node:?}");
            if tree.is_root(index) {
                roots += 1;
                let filed = tree.find_root(tree.namespace_of(index));
                ensure!(filed == Some(index), "root {index:?} is filed as {filed:?}");
                ensure!(node.run.pages == 0 && node.end == 0, "a root with pages: {node:?}");
                ensure!(node.pins > 0 || node.children > 0, "root {index:?} has no purpose");
                continue;
            }
            nodes += 1;
            slots += node.run.pages as usize;
            self.check_place(index, node)?;
            for tier in TIERS {
                self.check_tier(index, node, tier, &mut held[tier as usize])?;
            }
        }
        for (tier, held) in TIERS.into_iter().zip(held) {
            let own = self.residents(tier).map(|own| (own.idle(), own.held(), own.filed()));
            let expected = (held.idle, held.locked, held.idle_leaves);
            ensure!(own.is_none_or(|own| own == expected), "{own:?} on {tier:?}, not {expected:?}");
        }
        if let Some((owned, all)) = self.host.as_ref().map(Host::owned) {
            ensure!(owned == all, "{owned} of {all} pages of the host have an owner");
        }
        if let Some(group) = &self.windowed {
            group.check(tree, self.locks.ends())?;
        }
        let used = tree.store().used();
        ensure!(used == slots, "{used} slots are used, not {slots}");
        let filed = tree.filed_children();
        ensure!(filed == nodes, "{filed} children on file, not {nodes}");
        ensure!(tree.namespaces() == roots, "{} roots on file, not {roots}", tree.namespaces());
        Ok(())
    }

    fn check_tier(
        &self,
        index: NodeIndex,
        node: &Node,
        tier: Tier,
        held: &mut Held,
    ) -> Result<(), InvariantViolation> {
        let Some(residents) = self.residents(tier) else {
            ensure!(!node.is_on(tier), "{index:?} is on {tier:?}, which is not there");
            return Ok(());
        };
        let mut pages = Vec::new();
        self.tree.store().copy_pages(node.run, tier, node.run.pages, &mut pages);
        for page in pages {
            let is_there = node.is_on(tier);
            ensure!(is_there == (page != PageId::NONE), "{page} on the {tier:?}: {node:?}");
            ensure!(!is_there || held.pages.insert(page), "{page} is twice on the {tier:?}");
        }
        held.idle_leaves += usize::from(node.is_idle_leaf(tier));
        *(if node.pins > 0 { &mut held.locked } else { &mut held.idle }) += node.pages_on(tier);
        let (place, expected) = (residents.place_of(index), residents.expected_place(node));
        ensure!(
            place == expected,
            "{index:?} is filed at {place:?} on the {tier:?}, not {expected:?}"
        );
        Ok(())
    }

    fn check_place(&self, index: NodeIndex, node: &Node) -> Result<(), InvariantViolation> {
        let parent = self.tree.node(node.parent);
        ensure!(parent.live, "the parent of {index:?} is gone");
        ensure!(TIERS.iter().any(|&tier| node.is_on(tier)), "{index:?} is nowhere");
        for tier in TIERS {
            let has_parent = parent.is_on(tier) || !node.is_on(tier);
            ensure!(has_parent, "{index:?} is on the {tier:?} without its parent");
        }
        ensure!(!node.moving || node.pins > 0, "{index:?} is moving and not locked");
        let in_order = node.record.used <= parent.record.used;
        let used_first = node.pins > 0 || in_order || parent.pins > 0;
        ensure!(
            used_first || self.tree.is_root(node.parent),
            "{index:?} was used after its parent"
        );
        let page_size = self.tree.page_size();
        let mut stretches = 0;
        for (tokens, pages) in self.tree.store().extents_of(node.run) {
            ensure!(tokens.len() == pages.len() * page_size, "a ragged stretch in {index:?}");
            stretches += pages.len();
        }
        ensure!(node.run.pages > 0, "{index:?} is empty");
        ensure!(stretches == node.run.pages as usize, "{index:?} has {stretches} pages: {node:?}");
        ensure!(
            node.end == parent.end + node.run.pages,
            "{index:?} ends at the wrong depth: {node:?}"
        );
        let found = self.tree.child(node.parent, self.tree.store().first_page(node.run));
        ensure!(found == Some(index), "its parent finds {found:?} in the place of {index:?}");
        Ok(())
    }
}
