//! Faults strike the steps that they are told to, and no others.

use std::time::Duration;

use engine_core::backend::{
    Backend, BackendError, Batch, CompileOptions, Deadline, Executor, InputToken, Limits,
    OutputRequest, Row, SlotId, Slots, Span, StepError, StepResult, Ticket,
};
use engine_core::weights::MapWeights;
use testkit::faults::{Fault, Faults, FaultyBackend};
use testkit::null::{NullBackend, NullExecutor};

pub(crate) fn limits() -> Limits {
    Limits { rows: 2, tokens: 2, outputs: 2, slots: 2, pages: vec![4] }
}

fn executor(faults: &[(u64, Fault)]) -> Faults<NullExecutor> {
    Faults::new(NullBackend::new().with_token(7).executor(limits()), faults.iter().cloned())
}

/// Two rows of one token, each of which samples.
fn launch(executor: &mut dyn Executor, step: u64) -> Result<Ticket, StepError> {
    let tokens = [InputToken::Known(1); 2];
    let span = |start| Span { start, len: 1 };
    let rows = [0, 1].map(|row| Row {
        slot: SlotId(row),
        tokens: span(row),
        position: 0,
        outputs: span(row),
    });
    let outputs = [0, 1].map(|row| OutputRequest::sample(row, row));
    executor.launch(&Batch::new(step, &tokens, &rows, 2, &outputs, &[], &Slots::new(2, 1)))
}

/// Launches and waits; returns the outputs that were answered.
fn step(executor: &mut dyn Executor, number: u64) -> Result<Vec<u32>, (StepError, Vec<u32>)> {
    let mut result = StepResult::default();
    let outcome = launch(executor, number)
        .and_then(|ticket| executor.wait(ticket, Deadline::NEVER, &mut result));
    let answered = result.outputs.iter().map(|result| result.output).collect();
    outcome.map_err(|error| (error, Vec::clone(&answered))).map(|()| answered)
}

#[test]
fn a_struck_row_has_no_answer_and_the_others_have_theirs() {
    let mut executor = executor(&[(1, Fault::Row(3))]);
    assert_eq!(step(&mut executor, 0), Ok(vec![0, 1]));
    let (error, answered) = step(&mut executor, 1).unwrap_err();
    assert!(matches!(error, StepError::Rows(rows) if rows.len() == 1 && rows[0].row == 1));
    assert_eq!(answered, [0]);
    assert_eq!(step(&mut executor, 2), Ok(vec![0, 1]));
    assert_eq!(executor.strikes(), 1);
}

#[test]
fn lost_kv_is_reported_and_the_executor_goes_on() {
    let mut executor = executor(&[(0, Fault::KvLost)]);
    let (error, answered) = step(&mut executor, 0).unwrap_err();
    assert!(matches!(error, StepError::KvLost { .. }) && answered.is_empty());
    assert_eq!(step(&mut executor, 1), Ok(vec![0, 1]));
}

#[test]
fn a_launch_that_fails_leaves_no_ticket_behind() {
    let mut executor = executor(&[(1, Fault::LaunchFails)]);
    let before = launch(&mut executor, 0).unwrap();
    assert!(matches!(launch(&mut executor, 1), Err(StepError::KvLost { .. })));
    let mut result = StepResult::default();
    executor.wait(before, Deadline::NEVER, &mut result).unwrap();
    assert_eq!(step(&mut executor, 2), Ok(vec![0, 1]));
}

#[test]
fn a_dead_device_stays_dead() {
    for fault in [Fault::Dead, Fault::Hang] {
        let mut executor = executor(&[(0, fault)]);
        let ticket = launch(&mut executor, 0).unwrap();
        let deadline = Deadline::after(Duration::from_millis(1));
        let waited = executor.wait(ticket, deadline, &mut StepResult::default());
        assert!(matches!(waited, Err(StepError::Dead { .. })));
        assert!(matches!(launch(&mut executor, 1), Err(StepError::Dead { .. })));
    }
}

#[test]
fn a_backend_passes_its_faults_on_or_runs_out_of_memory() {
    let options = CompileOptions::new(limits(), 16, 64);
    let compile = |backend: &dyn Backend| backend.compile(&[], &MapWeights::new(), &options);
    let faulty = FaultyBackend::new(NullBackend::new(), [(0, Fault::Dead)]);
    let mut executor = compile(&faulty).unwrap();
    assert!(matches!(step(&mut *executor, 0), Err((StepError::Dead { .. }, _))));
    let small = FaultyBackend::out_of_memory(NullBackend::new());
    assert!(matches!(compile(&small), Err(BackendError::Memory { needed: 4, .. })));
}
