//! That every page and slot has exactly one owner, in both tiers.

use radix_cache::{Direction, TransferId};

use super::report::ScheduleError;
use super::scheduler::{GROUP, Scheduler};
use crate::kv::PageCounts;

impl Scheduler {
    /// Checks that every page and slot has exactly one owner. Looks at everything: for tests
    /// and debug builds.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn check(&self) -> Result<(), ScheduleError> {
        if let Err(violation) = self.pool.cache().check_invariants() {
            return broken(format!("prefix tree: {violation}"));
        }
        let counts = self.pool.counts();
        let mut is_owned = vec![false; counts.capacity];
        let owned = self.check_running(&mut is_owned)?;
        let loading = self.check_copies(&mut is_owned)?;
        let cached = counts.cached_evictable + counts.cached_locked;
        if loading != counts.loading || counts.free + cached + loading + owned != counts.capacity {
            return broken(format!(
                "{owned} pages are owned by sequences and {loading} are loaded in {counts:?}"
            ));
        }
        self.check_nothing_is_kept(counts)?;
        if self.free_slots.len() + self.running.len() != self.slots.len() {
            return broken(format!("{} slots are free", self.free_slots.len()));
        }
        Ok(())
    }

    /// Marks the pages that running sequences own, and counts them.
    fn check_running(&self, is_owned: &mut [bool]) -> Result<usize, ScheduleError> {
        let mut owned = 0;
        for &key in &self.running {
            let sequence = &self.sequences[key];
            let Some(place) = sequence.place else {
                return broken(format!("{:?} runs without a slot", sequence.id));
            };
            let table = self.slots.pages(place.slot, GROUP);
            let Some(own) = table.get(sequence.protected / self.pool.page_size()..) else {
                return broken(format!("{:?} protects more than its table", sequence.id));
            };
            for page in own {
                match is_owned.get_mut(page.0 as usize) {
                    Some(mark) if !*mark && !self.pool.is_free(*page) => *mark = true,
                    _ => return broken(format!("page {} of {:?}", page.0, sequence.id)),
                }
            }
            owned += own.len();
            if self.pool.cache().locked_tokens(place.lock).ok() != Some(sequence.protected) {
                return broken(format!("the lock of {:?} is elsewhere", sequence.id));
            }
        }
        Ok(owned)
    }

    /// Marks the pages that loads fill, and counts them. What copies to the host read is the
    /// tree's.
    fn check_copies(&self, is_owned: &mut [bool]) -> Result<usize, ScheduleError> {
        let mut loading = 0;
        for transfer in self.tier.transfers() {
            for page in &transfer.device {
                match is_owned.get_mut(page.0 as usize) {
                    Some(mark) if !*mark && !self.pool.is_free(*page) => {
                        *mark = transfer.direction == Direction::ToDevice;
                        loading += usize::from(*mark);
                    }
                    _ => return broken(format!("page {} of {}", page.0, transfer.id)),
                }
            }
        }
        let has_ended = |id: TransferId| !self.tier.transfers().any(|transfer| transfer.id == id);
        let mut waiting = self.waiting.iter().map(|&key| &self.sequences[key]);
        match waiting.find(|sequence| sequence.loading.is_some_and(has_ended)) {
            Some(sequence) => broken(format!("{:?} waits for a load that ended", sequence.id)),
            None => Ok(loading),
        }
    }

    fn check_nothing_is_kept(&self, counts: PageCounts) -> Result<(), ScheduleError> {
        let is_locked = counts.cached_locked != 0 || counts.loading != 0;
        if self.running.is_empty() && self.tier.transfers().next().is_none() && is_locked {
            return broken(format!("nothing runs or is copied, yet pages are held: {counts:?}"));
        }
        Ok(())
    }
}

fn broken<T>(what: String) -> Result<T, ScheduleError> {
    Err(ScheduleError::Ownership(what))
}
