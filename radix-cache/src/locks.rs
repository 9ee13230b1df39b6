//! The table of locks: what a [`LockId`] stands for.

use crate::error::CacheError;
use crate::node::NodeIndex;
use crate::retention::Retention;
use crate::types::LockId;

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

    pub(crate) fn end(&self, lock: LockId) -> Result<NodeIndex, CacheError> {
        match self.slots.get(lock.index as usize) {
            Some(slot) if slot.generation == lock.generation => {
                slot.end.ok_or(CacheError::UnknownLock { lock })
            }
            _ => Err(CacheError::UnknownLock { lock }),
        }
    }

    /// What is asked for the pages of a lock that [`end`](Self::end) has just vouched for.
    pub(crate) fn retention(&mut self, lock: LockId) -> &mut Retention {
        &mut self.slots[lock.index as usize].retention
    }

    pub(crate) fn retention_of(&self, lock: LockId) -> Result<Retention, CacheError> {
        self.end(lock)?;
        Ok(self.slots[lock.index as usize].retention)
    }

    /// Moves a lock that [`end`](Self::end) has just vouched for.
    pub(crate) fn set_end(&mut self, lock: LockId, end: NodeIndex) {
        self.slots[lock.index as usize].end = Some(end);
    }

    /// Forgets a lock; its id is dead from here on.
    pub(crate) fn remove(&mut self, lock: LockId) -> Result<NodeIndex, CacheError> {
        let end = self.end(lock)?;
        self.retire(lock.index);
        Ok(end)
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
