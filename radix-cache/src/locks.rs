//! The table of locks: what a [`LockId`] stands for.

use crate::error::CacheError;
use crate::tree::NodeIndex;
use crate::types::{LockId, Retention};

/// Who holds what. A lock remembers the node it ends at; the nodes themselves only count.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// The lock's end, or none while the slot is free.
    end: Option<NodeIndex>,
    retention: Retention,
}

impl Locks {
    /// Makes sure that the next [`create`](Self::create) succeeds.
    pub(crate) fn check_room(&self) -> Result<(), CacheError> {
        if self.free.is_empty() && self.slots.len() >= u32::MAX as usize {
            return Err(CacheError::Full { pages: 0 });
        }
        Ok(())
    }

    pub(crate) fn create(
        &mut self,
        end: NodeIndex,
        retention: Retention,
    ) -> Result<LockId, CacheError> {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.end = Some(end);
            slot.retention = retention;
            return Ok(LockId { index, generation: slot.generation });
        }
        let index = u32::try_from(self.slots.len()).map_err(|_| CacheError::Full { pages: 0 })?;
        self.slots.push(Slot { generation: 0, end: Some(end), retention });
        Ok(LockId { index, generation: 0 })
    }

    /// Where a lock ends, and what is asked for its pages.
    pub(crate) fn get(&self, lock: LockId) -> Result<(NodeIndex, Retention), CacheError> {
        let slot = self.slots.get(lock.index as usize);
        slot.filter(|slot| slot.generation == lock.generation)
            .and_then(|slot| Some((slot.end?, slot.retention)))
            .ok_or(CacheError::UnknownLock { lock })
    }

    /// Changes what is asked for the pages of a lock that [`get`](Self::get) has just vouched for.
    pub(crate) fn set_retention(&mut self, lock: LockId, retention: Retention) {
        self.slots[lock.index as usize].retention = retention;
    }

    /// Moves a lock that [`get`](Self::get) has just vouched for.
    pub(crate) fn set_end(&mut self, lock: LockId, end: NodeIndex) {
        self.slots[lock.index as usize].end = Some(end);
    }

    /// Forgets a lock; its id is dead from here on.
    pub(crate) fn remove(&mut self, lock: LockId) -> Result<(NodeIndex, Retention), CacheError> {
        let held = self.get(lock)?;
        self.retire(lock.index);
        Ok(held)
    }

    /// Forgets every lock.
    pub(crate) fn remove_all(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index].end.is_some() {
                self.retire(index as u32);
            }
        }
    }

    /// The ends of all locks that are held.
    pub(crate) fn ends(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        self.slots.iter().filter_map(|slot| slot.end)
    }

    fn retire(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.end = None;
        // A slot whose generations are used up is left out for good, rather than let an old id
        // stand for a new lock.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(index);
        }
    }
}
