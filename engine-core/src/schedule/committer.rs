//! A step or copies have ended: tokens become known, KV becomes cacheable.

use radix_cache::Token;

use super::admission::admit_loaded;
use super::arrival::{FinishReason, PromptWant, SequenceId};
use super::error::ScheduleError;
use super::flights::{LaunchedRow, RowKind};
use super::news::News;
use super::report::SchedulerStats;
use super::sequence::{Phase, Sequence, SequenceKey};
use super::state::State;
use super::transfers::Loaded;
use crate::backend::{OutputResult, RowFailure, Sampled, Span, StepError, StepResult};

/// Retires the oldest step in flight.
pub(super) fn commit(
    state: &mut State,
    result: &StepResult,
    error: Option<&StepError>,
) -> Result<(), ScheduleError> {
    let launched = state.flights.retire().ok_or(ScheduleError::NothingInFlight)?;
    match error {
        None => commit_rows(state, launched.step, &launched.rows, result, &[])?,
        Some(StepError::Rows(failures)) => {
            commit_rows(state, launched.step, &launched.rows, result, failures)?;
        }
        Some(error) => lose_kv(state, &launched.rows, &error.to_string())?,
    }
    state.flights.recycle(launched.rows);
    Ok(())
}

/// Retires the oldest copies in flight.
pub(super) fn copies_done(
    state: &mut State,
    error: Option<&StepError>,
) -> Result<(), ScheduleError> {
    let transfers = state.transfers.as_mut().ok_or(ScheduleError::NothingInFlight)?;
    if let Some(error @ StepError::KvLost { .. }) = error
        && transfers.took_kv()?
    {
        lose_kv(state, &[], &error.to_string())?;
        state.transfers.iter_mut().for_each(super::transfers::Transfers::end_forgotten);
        return Ok(());
    }
    let loads = transfers.end(state.pages.pool_mut(), error.is_none(), &mut state.stats)?;
    for &Loaded { key, executed } in &loads {
        stop_loading(state, key, executed);
    }
    loads.iter().try_for_each(|loaded| admit_loaded(state, loaded.key))
}

/// A sequence goes on with tokens that were not sampled.
pub(super) fn append(
    state: &mut State,
    id: SequenceId,
    tokens: &[Token],
) -> Result<(), ScheduleError> {
    let Some(key) = state.sequences.find(id) else { return Ok(()) };
    let sequence = state.sequences.of_mut(key);
    if let Ok(running) = sequence.running_mut() {
        if !state.flights.preempt(key, running.run) {
            return Ok(());
        }
        running.pending -= 1;
    }
    let sampled = |&token| Sampled { token, logprob: f32::NAN, top: Span::default() };
    let tokens: Vec<Sampled> = tokens.iter().map(sampled).collect();
    let nothing = StepResult::default();
    match take(sequence, &mut state.news, &mut state.stats, &tokens, &nothing) {
        Some(reason) => state.finish(key, reason),
        None => Ok(()),
    }
}

fn commit_rows(
    state: &mut State,
    step: u64,
    rows: &[LaunchedRow],
    result: &StepResult,
    failures: &[RowFailure],
) -> Result<(), ScheduleError> {
    for (index, row) in rows.iter().enumerate() {
        let Some(sequence) = state.sequences.get_mut(row.key).filter(|s| s.runs_as(row.run)) else {
            // It ended, or was put back, after this row was launched.
            continue;
        };
        if let Some(failure) = failures.iter().find(|failure| failure.row as usize == index) {
            state.finish(row.key, FinishReason::Error(failure.reason.clone()))?;
            continue;
        }
        let tokens = match row.output {
            Some(output) => answer(step, result, output, row.kind)?,
            None => &[],
        };
        advance(sequence, &mut state.stats, row, tokens.len())?;
        let mut finished = take(sequence, &mut state.news, &mut state.stats, tokens, result);
        if let Some((output, positions)) = row.of_prompt {
            tell_of_prompt(state, row.key, step, result.output(output), positions, result)?;
            let sequence = state.sequences.of(row.key);
            if sequence.max_tokens == 0 && sequence.unanswered.is_empty() {
                finished = Some(FinishReason::Length);
            }
        }
        // Windows move on with every page; for the others, what is generated is cached at the end.
        if row.kind == RowKind::Chunk || state.config.windowed.is_some() {
            state.protect(row.key)?;
        }
        if let Some(reason) = finished {
            state.finish(row.key, reason)?;
        }
    }
    Ok(())
}

/// Counts a row as computed, which brought so many tokens.
fn advance(
    sequence: &mut Sequence,
    stats: &mut SchedulerStats,
    row: &LaunchedRow,
    tokens: usize,
) -> Result<(), ScheduleError> {
    let known = sequence.known() + tokens;
    let running = sequence.running_mut()?;
    running.computed = row.end;
    match row.kind {
        RowKind::Decode | RowKind::Chunk => running.pending -= tokens,
        RowKind::Verify { drafted } => {
            // The first token needs no proposal, each further one is a proposal that was right. What
            // the wrong ones left in the pages behind is overwritten before it is read.
            let accepted = tokens.saturating_sub(1);
            running.is_verifying = false;
            running.computed += accepted;
            running.launched = running.computed;
            stats.accepted_tokens += accepted as u64;
            if let Some(drafting) = &mut sequence.drafting {
                drafting.record(drafted as usize, accepted, known);
            }
        }
    }
    Ok(())
}

/// Makes tokens known, up to one that ends the sequence. Returns the reason if there is one.
fn take(
    sequence: &mut Sequence,
    news: &mut News,
    stats: &mut SchedulerStats,
    tokens: &[Sampled],
    result: &StepResult,
) -> Option<FinishReason> {
    tokens.iter().find_map(|sampled| {
        stats.generated_tokens += 1;
        news.token(sequence.id, sampled, result);
        sequence.append(sampled.token)
    })
}

/// Passes on what a row tells of the prompt, after so many more positions.
fn tell_of_prompt(
    state: &mut State,
    key: SequenceKey,
    step: u64,
    answer: Option<&OutputResult>,
    positions: u32,
    result: &StepResult,
) -> Result<(), ScheduleError> {
    let sequence = state.sequences.of_mut(key);
    let first = sequence.unanswered.start;
    sequence.unanswered.start += positions as usize;
    match sequence.want {
        PromptWant::Nothing => {}
        PromptWant::Scores { .. } => {
            let tokens = answer.map_or(&[][..], |answer| result.tokens_of(answer));
            if tokens.len() != positions as usize {
                let (output, found) = (answer.map_or(u32::MAX, |a| a.output), tokens.len());
                let most = positions as usize;
                return Err(ScheduleError::Answer { step, output, found, most });
            }
            state.news.scored(sequence.id, first + 1, tokens, result);
        }
        PromptWant::Vector(_) => {
            let vector = answer.map_or(&[][..], |answer| result.vector_of(answer));
            state.news.pooled(sequence.id, positions, vector);
        }
    }
    Ok(())
}

/// The tokens of an output.
fn answer(
    step: u64,
    result: &StepResult,
    output: u32,
    kind: RowKind,
) -> Result<&[Sampled], ScheduleError> {
    // Where no row failed, the answers stand where they were asked for.
    let there = result.outputs.get(output as usize).filter(|answer| answer.output == output);
    let answer = there.or_else(|| result.output(output));
    let tokens = answer.map_or(&[][..], |answer| result.tokens_of(answer));
    let most = match kind {
        RowKind::Decode | RowKind::Chunk => 1,
        RowKind::Verify { drafted } => drafted as usize + 1,
    };
    if (1..=most).contains(&tokens.len()) {
        return Ok(tokens);
    }
    Err(ScheduleError::Answer { step, output, found: tokens.len(), most })
}

/// The KV memory is gone. The sequences of the step's rows end; the others are computed again.
fn lose_kv(state: &mut State, rows: &[LaunchedRow], reason: &str) -> Result<(), ScheduleError> {
    for row in rows {
        let running = state.sequences.get(row.key).and_then(|sequence| sequence.running());
        if running.is_some_and(|running| running.run == row.run) {
            state.finish(row.key, FinishReason::Error(reason.to_owned()))?;
        }
    }
    while let Some(&key) = state.sequences.running().last() {
        state.put_back(key)?;
    }
    state.pages.reset()?;
    if let Some(transfers) = &mut state.transfers {
        for key in transfers.forget(state.pages.pool_mut())? {
            stop_loading(state, key, false);
            if let Some(waiting) = state.sequences.get_mut(key).and_then(|s| s.waiting_mut()) {
                waiting.has_loaded = false;
            }
        }
    }
    state.flights.drain();
    Ok(())
}

/// What a sequence waited for has come, or will not.
fn stop_loading(state: &mut State, key: SequenceKey, executed: bool) {
    let Some(sequence) = state.sequences.get_mut(key) else { return };
    if let Phase::Loading(waiting) = &mut sequence.phase {
        let mut waiting = std::mem::take(waiting);
        if !executed {
            waiting.loaded = 0..0;
        }
        sequence.phase = Phase::Waiting(waiting);
    }
}
