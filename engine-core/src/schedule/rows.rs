//! Rows of running sequences: what they compute, and the pages that they need.

use std::ops::Range;

use super::assembly::{Assembly, NewRow};
use super::error::ScheduleError;
use super::flights::RowKind;
use super::sequence::SequenceKey;
use super::state::State;
use crate::kv::GroupKind;

/// Appends a decode row for a running sequence, if it
/// [can decode](super::sequence::Sequence::can_decode), and returns whether it can. With tokens
/// proposed for it, `draft` of those that are known, they are verified.
pub(super) fn push_decode(
    state: &mut State,
    assembly: &mut Assembly,
    key: SequenceKey,
    draft: Range<usize>,
) -> Result<bool, ScheduleError> {
    let sequence = state.sequences.of_mut(key);
    if !sequence.can_decode() {
        return Ok(false);
    }
    let unanswered = sequence.unanswered.end;
    let running = sequence.running_mut()?;
    let start = running.launched;
    if draft.is_empty() && unanswered <= start {
        running.launched += 1;
        running.pending += 1;
        state.pages.grow(&running.holding, running.launched)?;
        let place = (running.run, running.holding.slot());
        assembly.push_decode((key, sequence), place, start);
        return Ok(true);
    }
    let drafted = draft.len() as u32;
    let kind = if drafted > 0 { RowKind::Verify { drafted } } else { RowKind::Decode };
    push(state, assembly, key, start + 1, kind, draft)?;
    if drafted > 0 {
        state.stats.verification_rows += 1;
        state.stats.proposed_tokens += u64::from(drafted);
    }
    Ok(true)
}

/// What a step has left for prompts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Tokens to compute.
    pub(super) tokens: usize,
    /// Positions after which something of a prompt is wanted.
    pub(super) answers: usize,
}

/// Appends a chunk of what fits into `budget` of what a running sequence came with, where one is
/// left and its pages can be had. Returns its length.
pub(super) fn push_chunk(
    state: &mut State,
    assembly: &mut Assembly,
    key: SequenceKey,
    budget: &mut Budget,
) -> Result<usize, ScheduleError> {
    let sequence = state.sequences.of(key);
    let known = sequence.to_compute();
    let Some(running) = sequence.running() else { return Ok(0) };
    let start = running.launched;
    if running.pending > 0 || running.is_verifying || start >= known {
        return Ok(0);
    }
    // Whole pages, so that what a chunk computes can be cached at once; but for the last.
    let page_size = state.config.page_size;
    let unanswered = sequence.unanswered.clone();
    let most = match unanswered.is_empty() {
        true => budget.tokens,
        false => {
            budget.tokens.min(unanswered.start.saturating_sub(start).saturating_add(budget.answers))
        }
    };
    let whole = (start + most) / page_size * page_size;
    let end = if known - start <= most { known } else { whole };
    // Windowed pages come back with each commit, so a shorter chunk gets further than none.
    let (pages, holding) = (&state.pages, &running.holding);
    let windowed = pages.available_of(GroupKind::Windowed).saturating_mul(page_size);
    let end = end.min(pages.room(holding).saturating_add(windowed));
    if end <= start || pages.missing(holding, end) > pages.available_of(GroupKind::Full) {
        return Ok(0);
    }
    push(state, assembly, key, end, RowKind::Chunk, 0..0)?;
    state.stats.prefill_tokens += (end - start) as u64;
    budget.tokens -= end - start;
    budget.answers -= answered_by(&unanswered, start, end).len();
    Ok(end - start)
}

/// Which of the unanswered positions a row from `start` to `end` answers.
fn answered_by(unanswered: &Range<usize>, start: usize, end: usize) -> Range<usize> {
    let first = unanswered.start.max(start);
    first..unanswered.end.min(end).max(first)
}

/// Pages that the next decode rows need beyond those in their tables.
pub(super) fn pages_for_decode(state: &State) -> usize {
    let needs_page =
        |running: &super::sequence::Running| running.launched == state.pages.room(&running.holding);
    let decoding = state.sequences.iter_running().filter(|sequence| sequence.can_decode());
    decoding.filter_map(|sequence| sequence.running()).filter(|running| needs_page(running)).count()
}

/// Appends a row up to `end`, and `draft` behind it; takes the pages that it needs, and counts it as
/// launched. A token is wanted if it reaches the end of what is known or launched.
fn push(
    state: &mut State,
    assembly: &mut Assembly,
    key: SequenceKey,
    end: usize,
    kind: RowKind,
    draft: Range<usize>,
) -> Result<(), ScheduleError> {
    let sequence = state.sequences.of_mut(key);
    let (known, generates) = (sequence.known(), sequence.max_tokens > 0);
    let unanswered = sequence.unanswered.clone();
    let running = sequence.running_mut()?;
    let start = running.launched;
    running.launched = end + draft.len();
    state.pages.grow(&running.holding, running.launched)?;
    let wants = generates && end == known + running.pending;
    let of_prompt = answered_by(&unanswered, start, end);
    match kind {
        RowKind::Verify { .. } => running.is_verifying = true,
        RowKind::Decode | RowKind::Chunk => running.pending += usize::from(wants),
    }
    let (run, slot) = (running.run, running.holding.slot());
    let row = NewRow { run, slot, start, end, kind, wants, draft, of_prompt };
    assembly.push((key, sequence), row);
    Ok(())
}
