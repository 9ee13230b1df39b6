//! What a device would know of the slots: built from events alone.

use std::sync::Arc;

use engine_core::PageId;
use engine_core::backend::{
    Batch, GroupId, InputToken, Limits, Row, SlotEvent, SlotSampling, Want,
};

use super::commands::Command;
use super::violation::Violation;
use super::{Expectation, Ledger};

/// Slots and their page tables, as the launched events left them.
#[derive(Debug)]
pub(super) struct Resident {
    slots: Vec<Slot>,
    pages: Vec<u32>,
    page_size: usize,
    openings: u64,
    ledger: Arc<Ledger>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    occupant: Option<Occupant>,
    /// By group.
    tables: Vec<Vec<PageId>>,
}

/// A sequence in a slot.
#[derive(Clone, Debug)]
pub(super) struct Occupant {
    /// Tells apart the sequences that follow each other in a slot.
    pub(super) opening: u64,
    pub(super) sampling: Arc<SlotSampling>,
    pub(super) expectation: Option<Expectation>,
    /// Where its next row begins, once it has had one.
    next: Option<u32>,
    /// The step that samples its next token.
    sampled_in: Option<u64>,
}

impl Resident {
    pub(super) fn new(limits: &Limits, page_size: usize, ledger: Arc<Ledger>) -> Self {
        let slot = Slot { occupant: None, tables: vec![Vec::new(); limits.pages.len()] };
        let slots = vec![slot; limits.slots as usize];
        Self { slots, pages: limits.pages.clone(), page_size, openings: 0, ledger }
    }

    /// The sequence in a row's slot, which [`check_row`](Self::check_row) has found there.
    pub(super) fn occupant(&self, row: &Row) -> Result<&Occupant, Violation> {
        let slot = self.slots.get(row.slot.index());
        slot.and_then(|slot| slot.occupant.as_ref()).ok_or(Violation::Closed { slot: row.slot })
    }

    /// A copy of a row's page tables, by group.
    pub(super) fn tables(&self, row: &Row) -> Vec<Vec<PageId>> {
        self.slots[row.slot.index()].tables.clone()
    }

    /// Applies a batch's events in order, and appends what a device would do for them.
    pub(super) fn apply(
        &mut self,
        batch: &Batch<'_>,
        commands: &mut impl Extend<Command>,
    ) -> Result<(), Violation> {
        for &event in batch.events {
            let command = self.apply_event(batch, event)?;
            commands.extend(command);
        }
        self.compare(batch)
    }

    fn apply_event(
        &mut self,
        batch: &Batch<'_>,
        event: SlotEvent,
    ) -> Result<Option<Command>, Violation> {
        match event {
            SlotEvent::Open { slot: id } => {
                let slot =
                    self.slots.get_mut(id.index()).ok_or(Violation::UnknownSlot { slot: id })?;
                if slot.occupant.is_some() {
                    return Err(Violation::OpenTwice { slot: id });
                }
                slot.tables.iter_mut().for_each(Vec::clear);
                let sampling = batch.slots.sampling(id).clone();
                let opening = self.openings;
                self.openings += 1;
                slot.occupant = Some(Occupant {
                    opening,
                    expectation: self.ledger.expectation(sampling.seed),
                    sampling: sampling.clone(),
                    next: None,
                    sampled_in: None,
                });
                Ok(Some(Command::Open { opening, sampling }))
            }
            SlotEvent::Pages { slot: id, group, entries } => {
                let slot =
                    self.slots.get_mut(id.index()).ok_or(Violation::UnknownSlot { slot: id })?;
                if slot.occupant.is_none() {
                    return Err(Violation::Closed { slot: id });
                }
                let lent = batch.slots.pages(id, group);
                let range = entries.range();
                let table = &mut slot.tables[usize::from(group.0)];
                if range.end > lent.len() || range.start > table.len() {
                    let (start, end, len) = (range.start, range.end, lent.len());
                    return Err(Violation::Entries { slot: id, start, end, len });
                }
                let pages = self.pages[usize::from(group.0)];
                // Where the window has left, there is none.
                let is_unknown = |page: &&PageId| page.0 >= pages && **page != PageId::NONE;
                if let Some(&page) = lent[range.clone()].iter().find(is_unknown) {
                    return Err(Violation::UnknownPage { group, page });
                }
                table.resize(table.len().max(range.end), PageId(0));
                table[range.clone()].copy_from_slice(&lent[range]);
                Ok(None)
            }
            SlotEvent::CopyPage { group, from, to } => {
                let pages = self.pages.get(usize::from(group.0)).copied().unwrap_or(0);
                match [from, to].into_iter().find(|page| page.0 >= pages) {
                    Some(page) => Err(Violation::UnknownPage { group, page }),
                    None => Ok(Some(Command::Copy { group, from, to })),
                }
            }
            SlotEvent::Close { slot: id } => {
                let slot =
                    self.slots.get_mut(id.index()).ok_or(Violation::UnknownSlot { slot: id })?;
                let occupant = slot.occupant.take().ok_or(Violation::Closed { slot: id })?;
                slot.tables.iter_mut().for_each(Vec::clear);
                Ok(Some(Command::Close { opening: occupant.opening }))
            }
        }
    }

    /// Compares what the events say with what the engine lends.
    fn compare(&self, batch: &Batch<'_>) -> Result<(), Violation> {
        for (index, slot) in self.slots.iter().enumerate() {
            let id = engine_core::backend::SlotId(index as u32);
            let Some(occupant) = &slot.occupant else { continue };
            if !Arc::ptr_eq(&occupant.sampling, batch.slots.sampling(id)) {
                return Err(Violation::Sampling { slot: id });
            }
            for (group, resident) in slot.tables.iter().enumerate() {
                let lent = batch.slots.pages(id, GroupId(group as u8));
                if resident != lent {
                    let entry = resident.iter().zip(lent).take_while(|(a, b)| a == b).count();
                    let (resident, lent) = (resident.get(entry).copied(), lent.get(entry).copied());
                    return Err(Violation::Table { slot: id, entry, resident, lent });
                }
            }
        }
        Ok(())
    }

    /// Checks a row against its slot, and counts it as launched. `before` is the step launched
    /// before this one, if its tokens are on their way.
    pub(super) fn check_row(
        &mut self,
        batch: &Batch<'_>,
        row: &Row,
        before: Option<u64>,
    ) -> Result<(), Violation> {
        let id = row.slot;
        let slot = self.slots.get_mut(id.index()).ok_or(Violation::UnknownSlot { slot: id })?;
        let occupant = slot.occupant.as_mut().ok_or(Violation::Closed { slot: id })?;
        if let Some(expected) = occupant.next
            && expected != row.position
        {
            return Err(Violation::Position { slot: id, expected, found: row.position });
        }
        let found = row.kv_len();
        if let Some(Expectation { longest, .. }) = occupant.expectation
            && found > longest
        {
            return Err(Violation::TooLong { slot: id, found, longest });
        }
        let needed = (found as usize).div_ceil(self.page_size);
        if let Some(table) = slot.tables.iter().find(|table| table.len() < needed) {
            return Err(Violation::TableTooShort { slot: id, needed, len: table.len() });
        }
        let names_next = batch.tokens[row.tokens.range()]
            .iter()
            .any(|token| matches!(token, InputToken::Produced(_)));
        if names_next && (before.is_none() || occupant.sampled_in != before) {
            return Err(Violation::NoNextToken { slot: id });
        }
        let outputs = &batch.outputs[row.outputs.range()];
        let verifies = outputs.iter().any(|output| matches!(output.want, Want::Verify(_)));
        // How much of a draft holds is not known here: the row after it may begin anywhere in it.
        occupant.next = (!verifies).then_some(found);
        let samples = verifies || outputs.iter().any(|output| output.want == Want::Sample);
        occupant.sampled_in = samples.then_some(batch.step);
        Ok(())
    }
}
