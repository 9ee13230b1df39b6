//! Soft retention: prefixes that go last.

use crate::cache::RadixCache;
use crate::error::CacheError;
use crate::node::NodeIndex;
use crate::types::LockId;

/// What is asked for a prefix beyond the time that it is locked. Never more than a wish: when
/// nothing else is left to evict, retained pages go too, so retention can't exhaust the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[must_use]
pub struct Retention {
    pub(crate) priority: i32,
    pub(crate) until: u64,
}

impl Retention {
    /// Under [`Policy::Priority`](crate::Policy::Priority), higher ones are evicted later.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Under every policy, evicts it after everything that is not retained, until
    /// [`advance`](RadixCache::advance) reaches this tick of the caller's clock. Of retained
    /// prefixes, the one that expires first goes first.
    pub fn until(mut self, tick: u64) -> Self {
        self.until = tick;
        self
    }

    /// The larger wish in each respect.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { priority: self.priority.max(other.priority), until: self.until.max(other.until) }
    }
}

impl RadixCache {
    /// Asks for everything that a lock holds, and for everything that will be
    /// [inserted](Self::insert) through it or a fork of it, to be kept for longer. Wishes only
    /// grow: a page has the largest that was made for it.
    ///
    /// # Errors
    ///
    /// [`CacheError::UnknownLock`].
    pub fn retain(&mut self, lock: LockId, retention: Retention) -> Result<(), CacheError> {
        let end = self.locks.end(lock)?;
        *self.locks.retention(lock) = retention;
        self.raise(end, retention);
        self.raise_window(end, retention);
        Ok(())
    }

    /// Tells the time: ticks of whatever clock the caller gave [`Retention::until`] in. Earlier
    /// ticks than before are ignored.
    pub fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        while let Some(leaf) = self.leaves.first_retained().filter(|&leaf| self.is_over(leaf)) {
            self.leaves.remove(leaf);
            self.file(leaf);
        }
        if let Some(group) = &mut self.windowed {
            group.advance(self.now);
        }
        let first_on_host = |cache: &Self| cache.host.as_ref()?.order.first_retained();
        while let Some(leaf) = first_on_host(self).filter(|&leaf| self.is_over(leaf)) {
            if let Some(host) = &mut self.host {
                host.order.remove(leaf);
            }
            self.file_on_host(leaf);
        }
    }

    fn is_over(&self, leaf: NodeIndex) -> bool {
        self.tree.node(leaf).retention.until <= self.now
    }

    /// Raises the retention of a node and its ancestors, all pinned. An ancestor's is never
    /// smaller than its descendants', so the way up ends where nothing changes.
    pub(crate) fn raise(&mut self, mut node: NodeIndex, retention: Retention) {
        while let Some(raised) = self.tree.get_mut(node) {
            let larger = raised.retention.max(retention);
            if larger == raised.retention {
                return;
            }
            raised.retention = larger;
            node = raised.parent;
        }
    }
}
