//! Putting sequences back when pages run out.

use std::cmp::Reverse;

use super::error::ScheduleError;
use super::rows::pages_for_decode;
use super::sequence::SequenceKey;
use super::state::State;

/// Whether the next decode rows need pages that can't be had.
pub(super) fn is_needed(state: &State) -> bool {
    let available = state.pages.available();
    // A decode row needs a page at most.
    state.sequences.running().len() > available && pages_for_decode(state) > available
}

/// Puts sequences back until the others' decode rows fit. With no step in flight, so that no
/// token is lost.
pub(super) fn until_decode_fits(state: &mut State) -> Result<(), ScheduleError> {
    while is_needed(state) && state.sequences.running().len() > 1 {
        retract_one(state)?;
    }
    Ok(())
}

/// Puts back the sequence that loses least: fewest generated tokens, then the longest prompt,
/// which the cache is likeliest to keep.
pub(super) fn retract_one(state: &mut State) -> Result<(), ScheduleError> {
    let loses_least = |&key: &SequenceKey| {
        let sequence = state.sequences.of(key);
        (sequence.generated(), Reverse(sequence.prompt_len), Reverse(sequence.arrival))
    };
    let Some(key) = state.sequences.running().iter().copied().min_by_key(loses_least) else {
        return Ok(());
    };
    state.protect(key)?;
    state.put_back(key)?;
    state.stats.retractions += 1;
    let kept = state.sequences.iter_running().fold((0, 0), |(generated, limit), sequence| {
        (generated + sequence.generated(), limit + sequence.max_tokens)
    });
    state.reserve.after_retraction(state.sequences.running().len(), kept.0, kept.1);
    Ok(())
}
