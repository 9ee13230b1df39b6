//! Letting waiting sequences run.

use super::assembly::Assembly;
use super::error::ScheduleError;
use super::loading::{self, Admission};
use super::reserve::CLIPPED_OUTPUT;
use super::rows::{self, Budget};
use super::sequence::{Sequence, SequenceKey};
use super::state::State;
use super::transfers::Transfers;
use crate::kv::GroupKind;

/// Rounds that a sequence waits for another one to compute or load their common prefix.
const MOST_HELD: u32 = 64;

/// What a sequence needs beyond what is cached of it.
#[derive(Clone, Copy, Debug)]
struct Need {
    /// Positions in pages of full groups.
    tokens: usize,
    /// Pages of windowed groups.
    windowed: usize,
}

/// Admits from the queue while slots, the `budget` of prompts and pages last, with a first
/// chunk each.
pub(super) fn admit(
    state: &mut State,
    assembly: &mut Assembly,
    mut budget: Budget,
) -> Result<(), ScheduleError> {
    if state.queue.is_empty() || state.pages.free_slots() == 0 {
        return Ok(());
    }
    let pages = &state.pages;
    state.queue.order(&state.sequences, |sequence| {
        let found = pages.probe(sequence.namespace, sequence.matchable());
        found.tokens + found.host_tokens
    });
    let mut index = 0;
    let mut newest_admitted = None;
    while budget.tokens > 0 && state.unreserved_slots() > 0 {
        let Some(key) = state.queue.get(index) else { break };
        match try_admit(state, key)? {
            Admission::Full => break,
            outcome @ (Admission::Held | Admission::Loading) => {
                if let Some(waiting) = state.sequences.of_mut(key).waiting_mut() {
                    waiting.held += u32::from(outcome == Admission::Held);
                }
                index += 1;
                // Looking further than slots reach can't admit more.
                if index > state.pages.slots().len() {
                    break;
                }
            }
            Admission::Admitted => {
                let arrival = state.sequences.of(key).arrival;
                newest_admitted = newest_admitted.max(Some(arrival));
                let computed = rows::push_chunk(state, assembly, key, &mut budget)?;
                if computed == 0 {
                    break;
                }
            }
        }
    }
    if let Some(newest) = newest_admitted {
        state.queue.pass_over(&mut state.sequences, newest);
    }
    Ok(())
}

/// Admits a sequence that was being loaded for, at once, so that nobody evicts what came. Without
/// room it waits on like any other.
pub(super) fn admit_loaded(state: &mut State, key: SequenceKey) -> Result<(), ScheduleError> {
    let Some(sequence) = state.sequences.get(key) else { return Ok(()) };
    let arrival = sequence.arrival;
    // Reserved slots are of those who are still being loaded for.
    if state.unreserved_slots() > 0 && try_admit(state, key)? == Admission::Admitted {
        state.queue.pass_over(&mut state.sequences, arrival);
    }
    Ok(())
}

fn try_admit(state: &mut State, key: SequenceKey) -> Result<Admission, ScheduleError> {
    let sequence = state.sequences.of(key);
    if sequence.is_loading() {
        return Ok(Admission::Loading);
    }
    let is_patient = sequence.waiting().is_some_and(|waiting| waiting.held < MOST_HELD);
    let found = state.pages.probe(sequence.namespace, sequence.matchable());
    let to_load = loading::worth_loading(state, key, found);
    if is_patient && is_worth_holding(state, sequence, found.tokens + to_load) {
        return Ok(Admission::Held);
    }
    if !has_room(state, need(state, sequence, found.tokens)) {
        return Ok(Admission::Full);
    }
    if to_load > 0
        && let Some(admission) = loading::order(state, key, to_load, is_patient)?
    {
        return Ok(admission);
    }
    let sequence = state.sequences.of(key);
    let acquired = state.pages.acquire(sequence.namespace, sequence.matchable())?;
    let Some(holding) = acquired else { return Ok(Admission::Full) };
    let cached = holding.protected();
    // Locking shrank what is evictable: read it again.
    if !has_room(state, need(state, sequence, cached)) {
        state.pages.refuse(holding)?;
        return Ok(Admission::Full);
    }
    state.queue.leave(key);
    state.settle(key, holding, cached)?;
    Ok(Admission::Admitted)
}

/// Whether a sequence with so many cached positions would be admitted beside the running ones.
pub(super) fn has_room_for(state: &State, key: SequenceKey, cached: usize) -> bool {
    has_room(state, need(state, state.sequences.of(key), cached))
}

/// What a sequence needs: pages for what is left of its known tokens, whole ones, and for its
/// output, clipped; and its window.
fn need(state: &State, sequence: &Sequence, cached: usize) -> Need {
    let page_size = state.config.page_size;
    let pages = sequence.known().saturating_sub(cached).div_ceil(page_size);
    let share = state.pages.windowed_share(sequence.longest());
    Need {
        tokens: pages * page_size + sequence.tokens_left().min(CLIPPED_OUTPUT),
        windowed: share.saturating_sub(cached / page_size),
    }
}

/// Whether that much can be had without taking what running sequences, and those that are being
/// loaded for, are expected to need. Alone, a sequence always has room: it was checked at its
/// arrival.
fn has_room(state: &State, needed: Need) -> bool {
    let loading = state.transfers.iter().flat_map(Transfers::loading);
    let loading = loading
        .filter_map(|(key, end)| Some(need(state, state.sequences.get(key)?, end).tokens as f64));
    let loading = loading.reduce(|sum, needed| sum + needed);
    if state.sequences.running().is_empty() && loading.is_none() {
        return true;
    }
    let page_size = state.config.page_size;
    let available = (state.pages.available_of(GroupKind::Full) * page_size) as f64;
    let ratio = state.reserve.get();
    let expected: f64 =
        state.sequences.iter_running().map(|sequence| expected_need(sequence, ratio)).sum();
    available - expected - loading.unwrap_or_default() >= needed.tokens as f64
        && has_windowed_room(state, needed.windowed)
}

/// A window is needed to its full and for as long as its sequence runs, so nothing of it is
/// hoped for.
fn has_windowed_room(state: &State, needed: usize) -> bool {
    if state.config.windowed.is_none() {
        return true;
    }
    let rest = |sequence: &Sequence| {
        let held = sequence.running().map_or(0, |r| state.pages.windowed_held(&r.holding));
        state.pages.windowed_share(sequence.longest()).saturating_sub(held)
    };
    let expected: usize = state.sequences.iter_running().map(rest).sum();
    state.pages.available_of(GroupKind::Windowed) >= expected + needed
}

/// Positions that a running sequence will probably still take.
fn expected_need(sequence: &Sequence, ratio: f64) -> f64 {
    let launched = sequence.running().map_or(0, |running| running.launched);
    let rest_of_prompt = sequence.known().saturating_sub(launched);
    let output = sequence.tokens_left().min(CLIPPED_OUTPUT);
    rest_of_prompt as f64 + output as f64 * ratio
}

/// Whether another sequence is computing a longer prefix of this one than is cached, or having it
/// loaded, so that waiting for it computes less. `matched` tokens are cached.
fn is_worth_holding(state: &State, sequence: &Sequence, matched: usize) -> bool {
    let leads = |leader: &Sequence, end: usize| {
        leader.namespace == sequence.namespace
            && common_pages(state, sequence.matchable(), &leader.tokens[..end]) > matched
    };
    let mut running = state.sequences.iter_running();
    let mut loading = state.transfers.iter().flat_map(Transfers::loading);
    running.any(|leader| leader.is_prefilling() && leads(leader, leader.known()))
        || loading
            .any(|(other, end)| state.sequences.get(other).is_some_and(|leader| leads(leader, end)))
}

/// Tokens in whole pages that both begin with.
fn common_pages(state: &State, tokens: &[u32], others: &[u32]) -> usize {
    let same = tokens.iter().zip(others).take_while(|(a, b)| a == b).count();
    state.pages.pool().floor_page(same)
}
