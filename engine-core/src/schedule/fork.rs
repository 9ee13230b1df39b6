//! Continuing a running sequence along another branch.

use super::config::Refusal;
use super::report::ScheduleError;
use super::scheduler::{GROUP, Scheduler};
use super::seeded::SeededBug;
use super::sequence::{Arrival, Place, SequenceId, SequenceKey};
use crate::backend::SlotEvent;

/// Why a fork did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForkError {
    /// The caller's mistake.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Broken accounting.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

impl Scheduler {
    /// Adds a sequence that begins with the known tokens of `parent`, followed by
    /// `branch.prompt`. Only known tokens are taken: what is in flight belongs to the parent.
    ///
    /// Whole pages are shared through the tree. The page that the parent fills at present is
    /// copied on the device, so the branch computes nothing that the parent has computed. Where
    /// no slot or page is free the branch waits like any arrival and then shares whole pages.
    ///
    /// # Errors
    ///
    /// [`ForkError::Refused`] if the parent has ended, or the branch can't run; nothing changes
    /// then.
    pub fn fork(&mut self, parent: SequenceId, mut branch: Arrival) -> Result<(), ForkError> {
        let &parent = self.by_id.get(&parent).ok_or(Refusal::Unknown(parent))?;
        let mut prompt = self.sequences[parent].tokens.clone();
        prompt.append(&mut branch.prompt);
        branch.prompt = prompt;
        branch.namespace = self.sequences[parent].namespace;
        self.config.check_arrival(&branch)?;
        if self.waiting.len() >= self.config.max_waiting {
            return Err(Refusal::QueueFull { waiting: self.waiting.len() }.into());
        }
        let key = self.add(branch)?;
        if !self.settle_beside(parent, key)? {
            self.waiting.push_back(key);
        }
        Ok(())
    }

    /// Puts a branch into a slot of its own beside its parent, if there is room now.
    fn settle_beside(
        &mut self,
        parent: SequenceKey,
        branch: SequenceKey,
    ) -> Result<bool, ScheduleError> {
        self.insert_computed(parent)?;
        let sequence = &self.sequences[parent];
        let Some(Place { slot: from, lock }) = sequence.place else { return Ok(false) };
        let protected = sequence.protected;
        // One token must be left to compute, to have logits.
        let computed = sequence.computed.min(self.sequences[branch].known() - 1);
        let (whole, tail) = (protected / self.pool.page_size(), computed.saturating_sub(protected));
        let Some(&slot) = self.free_slots.last() else { return Ok(false) };
        if computed < protected || !self.has_room_for(branch, computed - tail) {
            return Ok(false);
        }
        let shares = self.has_bug(SeededBug::ForkSharesPartialPage);
        let lock = self.pool.fork(lock)?;
        let (source, table) = self.slots.two_tables(from, slot, GROUP);
        table.clear();
        table.extend_from_slice(&source[..whole]);
        if tail > 0 && shares {
            table.push(source[whole]);
        } else if tail > 0 {
            let from = source[whole];
            self.pool.take(1, table)?;
            let to = table[whole];
            if !self.has_bug(SeededBug::ForkWithoutPartialPage) {
                self.slot_events.push(SlotEvent::CopyPage { group: GROUP, from, to });
            }
        }
        self.settle(branch, Place { slot, lock }, computed)?;
        Ok(true)
    }
}
