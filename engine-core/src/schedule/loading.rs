//! Having a prefix loaded from the host for a sequence that waits.

use radix_cache::Match;

use super::error::ScheduleError;
use super::sequence::{Phase, SequenceKey};
use super::state::State;

/// What came of looking at one waiting sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It runs now.
    Admitted,
    /// It waits for another one to compute or load their common prefix, or for room to load its
    /// own; the next may go.
    Held,
    /// Its prefix is on its way from the host; the next may go.
    Loading,
    /// It doesn't fit, and nobody may overtake it for that.
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
/// be admitted otherwise. `None` if there is nothing to load: it is to be admitted as it is.
pub(super) fn order(
    state: &mut State,
    key: SequenceKey,
    tokens: usize,
    is_patient: bool,
) -> Result<Option<Admission>, ScheduleError> {
    let Some(transfers) = &mut state.transfers else { return Ok(None) };
    let pages = tokens / state.config.page_size;
    // A fork's page that is still to be copied may have become free since. The launch that
    // copies it goes first.
    if state.pages.has_copy_to_launch() {
        return Ok(is_patient.then_some(Admission::Held));
    }
    if is_patient && transfers.waits_for_demotion(state.pages.pool_mut(), pages)? {
        return Ok(Some(Admission::Held));
    }
    if pages > state.pages.available() {
        // What others copy holds the rest: nobody who runs does, as there is room.
        return Ok(Some(Admission::Full));
    }
    let sequence = state.sequences.of_mut(key);
    let prefix = (sequence.namespace, sequence.matchable());
    let Some(loaded) = transfers.load(state.pages.pool_mut(), key, prefix, pages)? else {
        return Ok(None);
    };
    if let Some(waiting) = sequence.waiting_mut() {
        waiting.has_loaded = true;
        waiting.loaded = loaded;
        sequence.phase = Phase::Loading(std::mem::take(waiting));
    }
    Ok(Some(Admission::Loading))
}
