//! Checks a batch before anything of it is taken: a device would read past its arrays, or silently
//! elsewhere, where a host would notice.

use backend_api::{Batch, GroupId, InputToken, Limits, SlotEvent, SlotId, StepError, Want};

use crate::lower::Geometry;

/// Finds what makes a batch impossible, if anything.
pub(super) fn validate(
    batch: &Batch<'_>,
    limits: &Limits,
    geometry: &Geometry,
    vocab_size: u32,
) -> Result<(), StepError> {
    let require = |holds: bool, what| {
        if holds { Ok(()) } else { Err(StepError::Unsupported { what }) }
    };
    let slots = batch.slots.len().min(geometry.slots);
    let is_slot = |slot: SlotId| slot.index() < slots;

    require(batch.rows.len() <= limits.rows as usize, "more rows than the limit")?;
    require(batch.tokens.len() <= limits.tokens as usize, "more tokens than the limit")?;
    require(batch.outputs.len() <= limits.outputs as usize, "more outputs than the limit")?;
    require(batch.decode_rows as usize <= batch.rows.len(), "more decode rows than rows")?;
    for (index, row) in batch.rows.iter().enumerate() {
        let is_decode = index < batch.decode_rows as usize;
        let end = u64::from(row.position) + u64::from(row.tokens.len);
        require(is_slot(row.slot), "a row of an unknown slot")?;
        require(row.tokens.len > 0, "a row without tokens")?;
        require(!is_decode || row.tokens.len == 1, "a decode row of several tokens")?;
        require(
            row.tokens.range().end <= batch.tokens.len(),
            "a row of tokens that are not there",
        )?;
        let capacity = (geometry.table_len * geometry.page_size) as u64;
        require(end <= capacity, "a row beyond the context length")?;
    }
    for token in batch.tokens {
        let is_known = match *token {
            InputToken::Known(token) => token < vocab_size,
            InputToken::Produced(slot) => is_slot(slot),
        };
        require(is_known, "a token outside the vocabulary, or of an unknown slot")?;
    }
    for output in batch.outputs {
        let row = batch.rows.get(output.row as usize);
        let in_row = row.is_some_and(|row| row.tokens.range().contains(&(output.token as usize)));
        require(in_row, "an output of a token that its row does not have")?;
        let is_known = match output.want {
            Want::Sample => true,
            Want::Score { token, .. } => token < vocab_size,
        };
        require(is_known, "an output of another kind, or of a token outside the vocabulary")?;
    }
    for event in batch.events {
        validate_event(event, batch, limits, is_slot, geometry)?;
    }
    Ok(())
}

fn validate_event(
    event: &SlotEvent,
    batch: &Batch<'_>,
    limits: &Limits,
    is_slot: impl Fn(SlotId) -> bool,
    geometry: &Geometry,
) -> Result<(), StepError> {
    let require = |holds: bool, what| {
        if holds { Ok(()) } else { Err(StepError::Unsupported { what }) }
    };
    let pages = |group: GroupId| limits.pages.get(usize::from(group.0)).copied();
    match *event {
        SlotEvent::Open { slot } | SlotEvent::Close { slot } => {
            require(is_slot(slot), "an event of an unknown slot")
        }
        SlotEvent::Pages { slot, group, entries } => {
            require(is_slot(slot), "pages of an unknown slot")?;
            let Some(capacity) = pages(group) else {
                return require(false, "pages of an unknown group");
            };
            let table = batch.slots.pages(slot, group);
            require(table.len() <= geometry.table_len, "a table beyond the context length")?;
            let Some(changed) = table.get(entries.range()) else {
                return require(false, "entries beyond their page table");
            };
            let exist = changed.iter().all(|page| page.0 < capacity);
            require(exist, "a page that does not exist")
        }
        SlotEvent::CopyPage { group, from, to } => {
            let exist = pages(group).is_some_and(|capacity| from.0 < capacity && to.0 < capacity);
            require(exist, "a copy of pages that do not exist")
        }
    }
}
