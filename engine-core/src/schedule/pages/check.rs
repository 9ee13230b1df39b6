//! That every page and slot has exactly one owner, in each kind of group and both tiers.

use radix_cache::{PageId, Tier, Transfer};

use super::{Holding, Pages, Table};
use crate::kv::{GroupKind, PageCounts};
use crate::schedule::arrival::SequenceId;
use crate::schedule::error::ScheduleError;

impl Pages {
    /// Checks all pages against those that hold them: running sequences and copies under way.
    /// Looks at everything.
    pub(in crate::schedule) fn check<'a>(
        &'a self,
        holdings: impl Iterator<Item = (SequenceId, &'a Holding)>,
        transfers: &[&Transfer],
    ) -> Result<(), ScheduleError> {
        if let Err(violation) = self.pool.cache().check_invariants() {
            return broken(format!("prefix tree: {violation}"));
        }
        let holdings: Vec<_> = holdings.collect();
        if self.free_slots.len() + holdings.len() != self.slots.len() {
            return broken(format!("{} slots are free", self.free_slots.len()));
        }
        for table in &self.tables {
            let counts = self.pool.counts(table.kind);
            let mut is_owned = vec![false; counts.capacity];
            let mut owned = 0;
            for &(id, holding) in &holdings {
                owned += self.check_table(table, id, holding, &mut is_owned)?;
            }
            let loading = match table.kind {
                GroupKind::Full => self.check_copies(transfers, &mut is_owned)?,
                GroupKind::Windowed => 0,
            };
            let cached = counts.cached_evictable + counts.cached_locked;
            if loading != counts.loading
                || counts.free + cached + loading + owned != counts.capacity
            {
                return broken(format!(
                    "{owned} pages are owned by sequences and {loading} are loaded in {counts:?}"
                ));
            }
            let PageCounts { cached_locked, loading, .. } = counts;
            if holdings.is_empty() && transfers.is_empty() && cached_locked + loading > 0 {
                return broken(format!(
                    "nothing runs or is copied, yet pages are held: {counts:?}"
                ));
            }
        }
        Ok(())
    }

    /// Marks the pages that a running sequence owns, and counts them.
    fn check_table(
        &self,
        table: &Table,
        id: SequenceId,
        holding: &Holding,
        is_owned: &mut [bool],
    ) -> Result<usize, ScheduleError> {
        let entries = self.slots.pages(holding.slot, table.home);
        let whole = holding.protected / self.pool.page_size();
        let Some((protected, own)) = entries.split_at_checked(whole) else {
            return broken(format!("{id:?} protects more than its table"));
        };
        if entries.len() != self.entries(holding) {
            return broken(format!("the tables of {id:?} are not equally long"));
        }
        for page in own {
            match is_owned.get_mut(page.0 as usize) {
                Some(mark) if !*mark && !self.pool.is_free(table.kind, *page) => *mark = true,
                _ => return broken(format!("page {} of {id:?}", page.0)),
            }
        }
        if self.pool.cache().locked_tokens(holding.lock).ok() != Some(holding.protected) {
            return broken(format!("the lock of {id:?} is elsewhere"));
        }
        if let (GroupKind::Windowed, Some(reach)) = (table.kind, self.pool.reach()) {
            let (left, window) = protected.split_at(whole.saturating_sub(reach));
            let mut held = Vec::new();
            self.pool.windowed_pages(holding.lock, &mut held)?;
            if left.iter().any(|&page| page != PageId::NONE) || !held.ends_with(window) {
                return broken(format!("the window of {id:?} is not the one that its lock holds"));
            }
        }
        Ok(own.len())
    }

    /// Marks the pages that loads fill, and counts them. What copies to the host read is the
    /// tree's.
    fn check_copies(
        &self,
        transfers: &[&Transfer],
        is_owned: &mut [bool],
    ) -> Result<usize, ScheduleError> {
        let mut loading = 0;
        for transfer in transfers {
            for page in &transfer.device {
                match is_owned.get_mut(page.0 as usize) {
                    Some(mark) if !*mark && !self.pool.is_free(GroupKind::Full, *page) => {
                        *mark = transfer.to == Tier::Device;
                        loading += usize::from(*mark);
                    }
                    _ => return broken(format!("page {} of {}", page.0, transfer.id)),
                }
            }
        }
        Ok(loading)
    }
}

fn broken<T>(what: String) -> Result<T, ScheduleError> {
    Err(ScheduleError::Ownership(what))
}
