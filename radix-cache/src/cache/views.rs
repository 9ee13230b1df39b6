//! The cache seen from outside: events, snapshots, exports, figures.

use crate::cache::RadixCache;
use crate::config::CacheConfig;
use crate::error::{CacheError, InvariantViolation};
use crate::events::{Event, EventLog};
use crate::export;
use crate::locks::Locks;
use crate::residency::{Residency, Snapshot};
use crate::statistics::{Memory, Shape, Statistics};
use crate::windowed::WindowedGroup;

impl RadixCache {
    /// Takes the events that nobody has taken yet, oldest first. At most as many wait as
    /// [`CacheConfig::events`](crate::CacheConfig::events) allows; when more happen the oldest are
    /// lost, which the sequence numbers show.
    pub fn drain_events(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.residency.events_mut().map(EventLog::drain).into_iter().flatten()
    }

    /// The sequence number the next event will have.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.residency.events().map_or(0, EventLog::next)
    }

    /// The whole cache as events, parents first, for somebody who starts to follow or who missed
    /// some. They carry the sequence number of the next event: what follows them is whatever has
    /// that number or a larger one. Empty if events are off.
    #[must_use]
    pub fn dump_events(&self) -> Vec<Event> {
        let (tree, windowed) = (self.residency.tree(), self.residency.windowed());
        self.residency.events().map_or_else(Vec::new, |log| log.dump(tree, windowed))
    }

    /// The cache as plain data.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.residency.snapshot()
    }

    /// Builds a cache that holds, matches and evicts what the one of the snapshot would.
    /// Statistics start anew, and nothing is locked.
    ///
    /// # Errors
    ///
    /// [`CacheError::Snapshot`] if the snapshot is no tree, or is of another page size than
    /// `config`; and those of [`new`](Self::new).
    pub fn restore(config: CacheConfig, snapshot: &Snapshot) -> Result<Self, CacheError> {
        config.check()?;
        let residency = Residency::restore(&config, snapshot)?;
        Ok(Self { residency, locks: Locks::default() })
    }

    /// The tree in Graphviz's language, one box a node: its tokens with the middle left out, its
    /// pages, its locks. Locked nodes are drawn bold.
    ///
    /// ```sh
    /// dot -Tsvg tree.dot -o tree.svg
    /// ```
    #[must_use]
    pub fn to_dot(&self) -> String {
        export::to_dot(self.residency.tree(), self.residency.windowed())
    }

    /// The tree as JSON: a list of nodes, parents first, each with its `id`, its `parent`'s id
    /// (`null` below a namespace's root), `tenant` and `salt`, `tokens` (`start`, `length`, and `shown`,
    /// a text with the middle left out), `pages`, how many of them have `windowed` pages, `pins`,
    /// `children`, and when it was last `used`.
    #[must_use]
    pub fn to_json(&self) -> String {
        export::to_json(self.residency.tree(), self.residency.windowed())
    }

    /// What the cache has done since it was built. Costs nothing.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.residency.statistics()
    }

    /// What the tree looks like now. Visits every node.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape::of(self.residency.tree(), self.counts())
    }

    /// What the cache costs in host memory, besides its locks.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let (tree, order) = (self.residency.tree(), self.residency.device().bytes());
        let windowed = self.residency.windowed().map_or(0, WindowedGroup::bytes);
        Memory {
            contents: tree.store().content_bytes(),
            structure: tree.structure_bytes() + order + windowed,
        }
    }

    /// How many entries of the eviction order were looked at since the cache was built: what
    /// keeping the order costs, in a unit that no clock can blur.
    #[must_use]
    pub fn eviction_order_steps(&self) -> u64 {
        self.residency.device().steps()
    }

    /// Checks the whole tree against its counters, locks and order of eviction. Costs time and
    /// memory in proportion to the cache.
    ///
    /// # Errors
    ///
    /// The first [`InvariantViolation`] found. There should never be one: it is a bug here.
    pub fn check_invariants(&self) -> Result<(), InvariantViolation> {
        self.residency.check(self.locks.ends())
    }
}
