//! Continuing a running sequence along another branch.

use super::admission::has_room_for;
use super::arrival::{Arrival, SequenceId};
use super::error::{InputError, Refusal, ScheduleError};
use super::sequence::SequenceKey;
use super::state::State;

/// Adds a sequence that begins with the known tokens of `parent`, followed by the branch's own.
pub(super) fn fork(
    state: &mut State,
    parent: SequenceId,
    mut branch: Arrival,
) -> Result<(), InputError> {
    let key = state.sequences.find(parent).ok_or(Refusal::Unknown(parent))?;
    let sequence = state.sequences.of(key);
    let mut prompt = sequence.tokens.clone();
    prompt.append(&mut branch.prompt);
    branch.prompt = prompt;
    branch.namespace = sequence.namespace;
    state.config.check_arrival(&branch)?;
    if state.queue.len() >= state.config.max_waiting {
        return Err(Refusal::QueueFull { waiting: state.queue.len() }.into());
    }
    let priority = branch.priority;
    let branch = state.sequences.add(branch, &state.config)?;
    if !settle_beside(state, key, branch)? {
        state.queue.join(branch, priority);
    }
    Ok(())
}

/// Puts a branch into a slot of its own beside its parent, if there is room now.
fn settle_beside(
    state: &mut State,
    parent: SequenceKey,
    branch: SequenceKey,
) -> Result<bool, ScheduleError> {
    state.protect(parent)?;
    let Some(running) = state.sequences.of(parent).running() else { return Ok(false) };
    let protected = running.holding.protected();
    // One token must be left to compute, to have logits.
    let computed = running.computed.min(state.sequences.of(branch).matchable().len());
    if state.pages.free_slots() == 0
        || computed < protected
        || !has_room_for(state, branch, protected)
    {
        return Ok(false);
    }
    let holding = state.pages.branch(&running.holding, computed - protected)?;
    let Some(holding) = holding else { return Ok(false) };
    state.settle(branch, holding, computed)?;
    Ok(true)
}
