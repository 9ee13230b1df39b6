//! Having a prefix loaded from the host for a sequence that waits.

use radix_cache::Match;

use super::error::ScheduleError;
use super::sequence::{Phase, SequenceKey};
use super::state::State;

/// What came of the wish to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// There is nothing to load: the sequence is to be admitted as it is.
    Nothing,
    Ordered,
    /// Room for it is being made.
    Wait,
    /// Pages can't be had.
    Full,
}

/// Tokens of what was `found` on the host that are worth the wait for loading them.
pub(super) fn worth_loading(state: &State, key: SequenceKey, found: Match) -> usize {
    let may_load = state.sequences.of(key).waiting().is_some_and(|waiting| !waiting.has_loaded);
    let transfers = state.transfers.as_ref().filter(|_| may_load);
    let is_worth = transfers.is_some_and(|transfers| transfers.is_worth_loading(found));
    if is_worth { found.host_tokens } else { 0 }
}

/// Orders a load of so many tokens that follow what is on the device, for a sequence that would
/// be admitted otherwise.
pub(super) fn order(
    state: &mut State,
    key: SequenceKey,
    tokens: usize,
    is_patient: bool,
) -> Result<Load, ScheduleError> {
    let Some(transfers) = &mut state.transfers else { return Ok(Load::Nothing) };
    let pages = tokens / state.config.page_size;
    // A fork's page that is still to be copied may have become free since. The launch that
    // copies it goes first.
    if state.pages.has_copy_to_launch() {
        return Ok(if is_patient { Load::Wait } else { Load::Nothing });
    }
    if is_patient && transfers.waits_for_demotion(state.pages.pool_mut(), pages)? {
        return Ok(Load::Wait);
    }
    if pages > state.pages.available() {
        // What others copy holds the rest: nobody who runs does, as there is room.
        return Ok(Load::Full);
    }
    let sequence = state.sequences.of_mut(key);
    let prefix = (sequence.namespace, sequence.matchable());
    let Some(loaded) = transfers.load(state.pages.pool_mut(), key, prefix, pages)? else {
        return Ok(Load::Nothing);
    };
    if let Some(waiting) = sequence.waiting_mut() {
        waiting.has_loaded = true;
        waiting.loaded = loaded;
        sequence.phase = Phase::Loading(std::mem::take(waiting));
    }
    Ok(Load::Ordered)
}
