//! The cache seen from outside: events, exports, figures.

use crate::cache::RadixCache;
use crate::events::{Event, EventLog};
use crate::export;
use crate::statistics::{Memory, Shape, Statistics};
use crate::windowed::WindowedGroup;

impl RadixCache {
    /// Takes the events that nobody has taken yet, oldest first. At most as many wait as
    /// [`CacheConfig::events`](crate::CacheConfig::events) allows; when more happen the oldest are
    /// lost, which the sequence numbers show.
    pub fn drain_events(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.events.as_mut().map(EventLog::drain).into_iter().flatten()
    }

    /// The sequence number the next event will have.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.events.as_ref().map_or(0, EventLog::next)
    }

    /// The whole cache as events, parents first, for somebody who starts to follow or who missed
    /// some. They carry the sequence number of the next event: what follows them is whatever has
    /// that number or a larger one. Empty if events are off.
    #[must_use]
    pub fn dump_events(&self) -> Vec<Event> {
        let dump = |log: &EventLog| log.dump(&self.tree, self.windowed.as_ref());
        self.events.as_ref().map(dump).unwrap_or_default()
    }

    /// The tree in Graphviz's language, one box a node: its tokens with the middle left out, its
    /// pages, its locks. Locked nodes are drawn bold.
    ///
    /// ```sh
    /// dot -Tsvg tree.dot -o tree.svg
    /// ```
    #[must_use]
    pub fn to_dot(&self) -> String {
        export::to_dot(&self.tree, self.windowed.as_ref())
    }

    /// The tree as JSON: a list of nodes, parents first, each with its `id`, its `parent`'s id
    /// (`null` below a namespace's root), `tenant` and `salt`, `tokens` (`start`, `length`, and `shown`,
    /// a text with the middle left out), `pages`, how many of them have `windowed` pages, `pins`,
    /// `children`, and when it was last `used`.
    #[must_use]
    pub fn to_json(&self) -> String {
        export::to_json(&self.tree, self.windowed.as_ref())
    }

    /// What the cache has done since it was built. Costs nothing.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// What the tree looks like now. Visits every node.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape::of(&self.tree, self.counts())
    }

    /// What the cache costs in host memory, besides its locks.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let windowed = self.windowed.as_ref().map_or(0, WindowedGroup::bytes);
        let structure = self.tree.structure_bytes() + self.device.bytes() + windowed;
        Memory { contents: self.tree.store().content_bytes(), structure }
    }

    /// How many entries of the eviction order were looked at since the cache was built: what
    /// keeping the order costs, in a unit that no clock can blur.
    #[must_use]
    pub fn eviction_order_steps(&self) -> u64 {
        self.device.steps()
    }
}
