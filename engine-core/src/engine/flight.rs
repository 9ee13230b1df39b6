//! What was started on the device and not committed.

use std::time::Instant;

use crate::backend::{Batch, Executor, PageCopy, RowFailure, StepError, Ticket};
use crate::error::EngineDead;

/// What one plan started: a step, copies between the tiers, or a step and copies behind it.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) step: Option<Step>,
    pub(super) copies: Option<Result<Ticket, StepError>>,
}

/// A launched step.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) outcome: Launched,
    pub(super) rows: u32,
    pub(super) launched_at: Instant,
}

#[derive(Debug)]
pub(super) enum Launched {
    Ticket(Ticket),
    /// It never ran. The error is committed in its turn, after the steps launched before it.
    Failed(StepError),
}

/// Starts a step.
pub(super) fn launch(executor: &mut dyn Executor, batch: &Batch<'_>) -> Result<Step, EngineDead> {
    let rows = batch.rows.len() as u32;
    let _span = tracing::trace_span!("launch", step = batch.step, rows).entered();
    let launched_at = Instant::now();
    let outcome = match executor.launch(batch) {
        Ok(ticket) => Launched::Ticket(ticket),
        Err(StepError::Dead { reason }) => return Err(EngineDead::new(reason)),
        Err(error) => Launched::Failed(of_whole_step(error, rows)),
    };
    Ok(Step { outcome, rows, launched_at })
}

/// Starts copies, if there are any, after a step if there was one.
pub(super) fn start_copies(
    executor: &mut dyn Executor,
    step: Option<&Step>,
    copies: &[PageCopy],
) -> Result<Option<Result<Ticket, StepError>>, EngineDead> {
    if copies.is_empty() {
        return Ok(None);
    }
    let started = match step.map(|step| &step.outcome) {
        // There is nothing left to copy.
        Some(Launched::Failed(error @ StepError::KvLost { .. })) => Err(error.clone()),
        _ => executor.transfer(copies),
    };
    match started {
        Err(StepError::Dead { reason }) => Err(EngineDead::new(reason)),
        started => Ok(Some(started)),
    }
}

/// A step that was not completed has no result for any of its rows, whichever it was that failed.
pub(super) fn of_whole_step(error: StepError, rows: u32) -> StepError {
    let StepError::Rows(mut failures) = error else { return error };
    for row in 0..rows {
        if !failures.iter().any(|failure| failure.row == row) {
            failures.push(RowFailure { row, reason: "another row failed its launch".to_owned() });
        }
    }
    StepError::Rows(failures)
}
