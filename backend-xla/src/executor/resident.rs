//! What stays on the devices from step to step: made, and kept up to date by slot events.

use backend_api::{
    BackendError, Batch, BatchBounds, GroupId, PageId, ProgramId, SlotEvent, SlotId,
};

use super::{
    launch::{Arguments, LaunchError, Outcome, run, upload, words},
    modules::Modules,
    sampling::token_counts,
};
use crate::{
    error::device,
    load::Sharded,
    lower::state::{PAGES_AT_ONCE, group_arrays},
    pjrt::Completion,
};

/// What errors say was being done.
pub(super) const ALLOCATING: &str = "allocating KV pages";

/// The arrays that launches read and change.
#[derive(Debug)]
pub(super) struct Resident {
    /// By [`ProgramId`].
    pub(super) programs: Vec<ProgramArrays>,
    /// `[slots, tokens]`, shared by the programs.
    pub(super) counts: Sharded,
}

/// Those of one program.
#[derive(Debug)]
pub(super) struct ProgramArrays {
    pub(super) kv: Vec<Sharded>,
    /// By the program's own page group.
    pub(super) tables: Vec<Sharded>,
    pub(super) next_tokens: Sharded,
}

/// Changes of a page table: (flat index, page).
type Changes = Vec<(usize, u32)>;

impl Resident {
    /// Makes the arrays, empty. They are there when all completions say so.
    pub(super) fn fresh(modules: &mut Modules) -> Result<(Self, Vec<Completion>), BackendError> {
        let failed = |error: LaunchError| match error {
            LaunchError::Compile(error) => error,
            LaunchError::Pjrt(error) => device(error, ALLOCATING),
            LaunchError::Outputs => {
                BackendError::Device { context: ALLOCATING.to_owned(), message: error.to_string() }
            }
        };
        let devices = modules.devices();
        let mut completions = Vec::new();
        let mut programs = Vec::new();
        for index in 0..modules.programs().len() {
            let program = ProgramId(index as u8);
            let groups = modules.program(program).geometry.pages.len();
            let outcome = run(modules.fresh(program)?, Arguments::new(devices));
            let Outcome { mut arrays, done } = outcome.map_err(|e| failed(e.into()))?;
            completions.push(done);
            let next_tokens = arrays.pop().ok_or_else(|| failed(LaunchError::Outputs))?;
            let tables = arrays.split_off(arrays.len().saturating_sub(groups));
            programs.push(ProgramArrays { kv: arrays, tables, next_tokens });
        }
        let outcome = run(modules.fresh_counts()?, Arguments::new(devices));
        let mut outcome = outcome.map_err(|e| failed(e.into()))?;
        let counts = outcome.arrays.pop().ok_or_else(|| failed(LaunchError::Outputs))?;
        completions.push(outcome.done);
        Ok((Self { programs, counts }, completions))
    }

    /// Applies what changed in slots, in order.
    pub(super) fn apply_events(
        mut self,
        modules: &mut Modules,
        bounds: &BatchBounds,
        batch: &Batch<'_>,
    ) -> Result<Self, LaunchError> {
        let mut changes = self.no_changes();
        for event in batch.events {
            match *event {
                SlotEvent::Open { slot } => self = self.open_slot(modules, slot, batch)?,
                SlotEvent::Pages { slot, group, entries } => {
                    let (program, own) = own_group(modules, bounds, group);
                    let table = batch.slots.pages(slot, group);
                    let list = &mut changes[program.index()][own.index()];
                    push_entries(modules, (program, own), slot, table, entries.range(), list);
                }
                SlotEvent::CopyPage { group, from, to } => {
                    let (program, own) = own_group(modules, bounds, group);
                    self.copy_page(modules, (program, own), from, to)?;
                }
                // What a closed slot holds is never read.
                SlotEvent::Close { .. } => {}
            }
        }
        self.write_tables(modules, changes)
    }

    /// After a loss: page tables of all slots as the batch shows them, and counts of those that it
    /// opens.
    pub(super) fn restore(
        mut self,
        modules: &mut Modules,
        bounds: &BatchBounds,
        batch: &Batch<'_>,
    ) -> Result<Self, LaunchError> {
        let mut changes = self.no_changes();
        for (program, groups) in (0..).zip(&mut changes) {
            let program = ProgramId(program);
            for (own, list) in (0..).zip(groups) {
                let own = GroupId(own);
                for slot in (0..bounds.limits().slots).map(SlotId) {
                    let table = batch.slots.pages(slot, bounds.group(program, own));
                    push_entries(modules, (program, own), slot, table, 0..table.len(), list);
                }
            }
        }
        for event in batch.events {
            if let SlotEvent::Open { slot } = *event {
                self = self.open_slot(modules, slot, batch)?;
            }
        }
        self.write_tables(modules, changes)
    }

    fn no_changes(&self) -> Vec<Vec<Changes>> {
        self.programs.iter().map(|arrays| vec![Vec::new(); arrays.tables.len()]).collect()
    }

    /// A sequence moves in: where it has penalties, its tokens are counted.
    fn open_slot(
        mut self,
        modules: &mut Modules,
        slot: SlotId,
        batch: &Batch<'_>,
    ) -> Result<Self, LaunchError> {
        let sampling = batch.slots.sampling(slot);
        if !sampling.has_penalties() {
            return Ok(self);
        }
        let (devices, counted) = (modules.devices(), modules.counted());
        let row = words(&token_counts(sampling, counted));
        let executable = modules.set_counts()?;
        let client = executable.client().clone();
        let row = upload(&client, devices, &[1, counted as i64], &row)?;
        let slot = upload(&client, devices, &[], &words(&[slot.0]))?;
        let mut arguments = Arguments::new(devices);
        arguments.donate(self.counts);
        arguments.borrow(&row);
        arguments.borrow(&slot);
        self.counts = run(executable, arguments)?.only()?;
        Ok(self)
    }

    fn copy_page(
        &mut self,
        modules: &mut Modules,
        (program, group): (ProgramId, GroupId),
        from: PageId,
        to: PageId,
    ) -> Result<(), LaunchError> {
        let range = group_arrays(&modules.program(program).program, group);
        let devices = modules.devices();
        let executable = modules.copy_page(program, group)?;
        let kv = &mut self.programs[program.index()].kv;
        let mut arguments = Arguments::new(devices);
        for array in kv.splice(range.clone(), []) {
            arguments.donate(array);
        }
        let client = executable.client().clone();
        let pages = upload(&client, devices, &[2], &words(&[from.0, to.0]))?;
        arguments.borrow(&pages);
        let arrays = run(executable, arguments)?.arrays;
        kv.splice(range.start..range.start, arrays);
        Ok(())
    }

    fn write_tables(
        mut self,
        modules: &mut Modules,
        changes: Vec<Vec<Changes>>,
    ) -> Result<Self, LaunchError> {
        let devices = modules.devices();
        let all = self.programs.iter_mut().flat_map(|arrays| &mut arrays.tables);
        for (table, changes) in all.zip(changes.into_iter().flatten()) {
            for part in changes.chunks(PAGES_AT_ONCE) {
                // Indices that are out of range are dropped.
                let mut packed = vec![i32::MAX as u32; 2 * PAGES_AT_ONCE];
                for (place, &(index, page)) in part.iter().enumerate() {
                    packed[place] = index as u32;
                    packed[PAGES_AT_ONCE + place] = page;
                }
                let executable = modules.set_pages()?;
                let client = executable.client().clone();
                let dims = [2, PAGES_AT_ONCE as i64];
                let changes = upload(&client, devices, &dims, &words(&packed))?;
                let mut arguments = Arguments::new(devices);
                arguments.donate(std::mem::take(table));
                arguments.borrow(&changes);
                *table = run(executable, arguments)?.only()?;
            }
        }
        Ok(self)
    }
}

/// The program that has one of the executor's page groups, and the group among its own.
fn own_group(modules: &Modules, bounds: &BatchBounds, group: GroupId) -> (ProgramId, GroupId) {
    let last = |index: &u8| bounds.group(ProgramId(*index), GroupId(0)) <= group;
    let program = (0..modules.programs().len() as u8).rfind(last).map_or(ProgramId(0), ProgramId);
    (program, GroupId(group.0 - bounds.group(program, GroupId(0)).0))
}

/// Lists entries of a slot's page table. Entries behind the longest sequence are never read, and a
/// page that was given back becomes the padding page, which is there to be read and means nothing.
fn push_entries(
    modules: &Modules,
    (program, group): (ProgramId, GroupId),
    slot: SlotId,
    table: &[PageId],
    entries: std::ops::Range<usize>,
    changes: &mut Changes,
) {
    let geometry = &modules.program(program).geometry;
    let padding = geometry.padding_page(group.index()) as u32;
    let known = table.get(..geometry.table_len).unwrap_or(table);
    let pages = known.iter().enumerate().take(entries.end).skip(entries.start);
    changes.extend(pages.map(|(entry, &page)| {
        let page = if page == PageId::NONE { padding } else { page.0 };
        (slot.index() * geometry.table_len + entry, page)
    }));
}
