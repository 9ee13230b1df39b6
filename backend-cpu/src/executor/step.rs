//! An owned copy of what a step needs, handed to the driver thread.

use std::sync::Arc;

use backend_api::{
    Batch, GroupId, InputToken, Limits, OutputRequest, PageId, Row, RowFailure, SlotEvent, SlotId,
    SlotSampling, Span, Token,
};

/// A step's inputs. Kept and reused: in steady state copying a batch allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// The ticket's number.
    pub(crate) number: u64,
    pub(crate) tokens: Vec<InputToken>,
    pub(crate) rows: Vec<Row>,
    pub(crate) outputs: Vec<OutputRequest>,
    pub(crate) changes: Vec<SlotChange>,
    pub(crate) defer_sampling: bool,
    /// Page tables of all rows and groups, one after another.
    pages: Vec<PageId>,
    /// `row * groups + group`: a table in `pages`.
    tables: Vec<Span>,
    groups: usize,
}

/// A slot event with what it refers to.
#[derive(Clone, Debug)]
pub(crate) enum SlotChange {
    Open { slot: SlotId, sampling: Arc<SlotSampling> },
    CopyPage { group: GroupId, from: PageId, to: PageId },
    Close { slot: SlotId },
}

/// Sizes that a batch is checked against.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) limits: Limits,
    pub(crate) page_size: u32,
    pub(crate) vocab_size: u32,
    /// By group.
    pub(crate) windows: Vec<Option<u32>>,
}

/// Why a batch can't be run.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is larger than the limits, or names slots and pages that don't exist outside of rows.
    Batch(&'static str),
    /// Single rows make no sense.
    Rows(Vec<RowFailure>),
}

impl Step {
    /// Checks `batch` and copies it.
    pub(crate) fn fill(
        &mut self,
        number: u64,
        batch: &Batch<'_>,
        bounds: &Bounds,
    ) -> Result<(), Refusal> {
        bounds.check_sizes(batch)?;
        let failures: Vec<RowFailure> = (0..)
            .zip(batch.rows)
            .filter_map(|(index, row)| {
                let reason = bounds.check_row(batch, index, row).err()?;
                Some(RowFailure { row: index, reason })
            })
            .collect();
        if !failures.is_empty() {
            return Err(Refusal::Rows(failures));
        }
        self.number = number;
        self.defer_sampling = batch.defer_sampling;
        self.groups = bounds.limits.pages.len();
        self.tokens.clear();
        self.tokens.extend_from_slice(batch.tokens);
        self.rows.clear();
        self.rows.extend_from_slice(batch.rows);
        self.outputs.clear();
        self.outputs.extend_from_slice(batch.outputs);
        self.changes.clear();
        self.pages.clear();
        self.tables.clear();
        for row in batch.rows {
            for group in 0..self.groups {
                let table = batch.slots.pages(row.slot, GroupId(group as u8));
                let len = row.kv_len().div_ceil(bounds.page_size);
                self.tables.push(Span { start: self.pages.len() as u32, len });
                self.pages.extend_from_slice(&table[..len as usize]);
            }
        }
        for event in batch.events {
            match *event {
                SlotEvent::Open { slot } => {
                    let sampling = Arc::clone(batch.slots.sampling(slot));
                    self.changes.push(SlotChange::Open { slot, sampling });
                }
                SlotEvent::CopyPage { group, from, to } => {
                    self.changes.push(SlotChange::CopyPage { group, from, to });
                }
                SlotEvent::Close { slot } => self.changes.push(SlotChange::Close { slot }),
                // Rows bring their page tables with them.
                _ => {}
            }
        }
        Ok(())
    }

    /// The page table of a row.
    pub(crate) fn table(&self, row: usize, group: GroupId) -> &[PageId] {
        &self.pages[self.tables[row * self.groups + usize::from(group.0)].range()]
    }
}

impl Bounds {
    fn check_sizes(&self, batch: &Batch<'_>) -> Result<(), Refusal> {
        let fits = batch.rows.len() <= self.limits.rows as usize
            && batch.tokens.len() <= self.limits.tokens as usize
            && batch.outputs.len() <= self.limits.outputs as usize;
        if !fits {
            return Err(Refusal::Batch("a batch beyond the limits"));
        }
        if batch.slots.len() < self.limits.slots as usize {
            return Err(Refusal::Batch("fewer slots than were compiled for"));
        }
        let known_slot = |slot: SlotId| slot.0 < self.limits.slots;
        let known_page = |group: GroupId, page: PageId| {
            self.limits.pages.get(usize::from(group.0)).is_some_and(|pages| page.0 < *pages)
        };
        let known = batch.events.iter().all(|event| match *event {
            SlotEvent::Open { slot } | SlotEvent::Close { slot } => known_slot(slot),
            SlotEvent::CopyPage { group, from, to } => {
                known_page(group, from) && known_page(group, to)
            }
            _ => true,
        });
        if !known {
            return Err(Refusal::Batch("events about slots or pages that don't exist"));
        }
        let in_order = batch.outputs.iter().all(|output| {
            batch
                .rows
                .get(output.row as usize)
                .is_some_and(|row| row.tokens.range().contains(&(output.token as usize)))
        });
        if !in_order {
            return Err(Refusal::Batch("outputs of tokens that aren't their row's"));
        }
        Ok(())
    }

    fn check_row(&self, batch: &Batch<'_>, index: u32, row: &Row) -> Result<(), String> {
        if row.slot.0 >= self.limits.slots {
            return Err(format!("slot {} of {}", row.slot.0, self.limits.slots));
        }
        let expected_start = match index {
            0 => 0,
            _ => batch.rows[index as usize - 1].tokens.range().end,
        };
        let is_last = index as usize + 1 == batch.rows.len();
        let range = row.tokens.range();
        if range.is_empty()
            || range.start != expected_start
            || range.end > batch.tokens.len()
            || (is_last && range.end != batch.tokens.len())
        {
            return Err(format!("tokens {range:?} of {}", batch.tokens.len()));
        }
        let Some(kv_len) = row.position.checked_add(row.tokens.len) else {
            return Err(format!("position {}", row.position));
        };
        for token in &batch.tokens[range] {
            match token {
                InputToken::Known(token) if *token >= self.vocab_size => {
                    return Err(format!("token {token} of {}", self.vocab_size));
                }
                InputToken::Produced(slot) if slot.0 >= self.limits.slots => {
                    return Err(format!("slot {} of {}", slot.0, self.limits.slots));
                }
                _ => {}
            }
        }
        for (group, (&pages, window)) in (0..).zip(self.limits.pages.iter().zip(&self.windows)) {
            let table = batch.slots.pages(row.slot, GroupId(group));
            let needed = kv_len.div_ceil(self.page_size) as usize;
            if table.len() < needed {
                return Err(format!("{kv_len} positions in {} pages", table.len()));
            }
            // Pages before the window may have been given away.
            let oldest = window.map_or(0, |window| (row.position + 1).saturating_sub(window));
            let live = &table[(oldest / self.page_size) as usize..needed];
            if let Some(page) = live.iter().find(|page| page.0 >= pages) {
                return Err(format!("page {} of {pages}", page.0));
            }
        }
        Ok(())
    }
}

/// The token that a slot's sequence goes on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NextToken {
    /// None was sampled since the slot was opened.
    #[default]
    None,
    /// The last one sampled.
    Sampled(Token),
    /// Its step failed for this slot.
    Failed,
}
