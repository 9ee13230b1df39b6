//! Copies between the tiers: what the shadow holds an engine to, and how they fail.

use engine_core::PageId;
use engine_core::backend::{Deadline, Executor, PageCopy, StepError, Ticket, Tier};
use testkit::faults::{Faults, TransferFault};
use testkit::null::{NullBackend, NullExecutor};
use testkit::shadow::Violation;
use testkit::shadow::model::continue_alone;

use crate::engine::{Engine, GROUP, VOCABULARY, known};

fn save(device: u32, host: u32) -> PageCopy {
    let (from, to) = ((Tier::Device, PageId(device)), (Tier::Host, PageId(host)));
    PageCopy { group: GROUP, from, to }
}

fn load(host: u32, device: u32) -> PageCopy {
    let (from, to) = ((Tier::Host, PageId(host)), (Tier::Device, PageId(device)));
    PageCopy { group: GROUP, from, to }
}

impl Engine {
    fn start(&mut self, copies: &[PageCopy]) -> Ticket {
        self.executor.transfer(copies).unwrap()
    }

    fn end(&mut self, ticket: Ticket) -> Result<(), StepError> {
        self.executor.wait_transfer(ticket, Deadline::NEVER)
    }

    fn copy(&mut self, copies: &[PageCopy]) {
        let ticket = self.start(copies);
        self.end(ticket).unwrap();
    }

    fn last_violation(&self) -> Violation {
        self.ledger.violations().pop().expect("a violation is recorded")
    }
}

/// An engine that has computed a page of a prompt into page 0.
fn with_a_page() -> (Engine, [u32; 4]) {
    let mut engine = Engine::new();
    let prompt = [1, 2, 3, 4];
    engine.open(0, &[0]);
    engine.run(&[(0, 0, &known(prompt), false)]);
    engine.close(0);
    (engine, prompt)
}

#[test]
fn a_page_that_was_away_continues_like_the_original() {
    let (mut engine, prompt) = with_a_page();
    engine.copy(&[save(0, 2)]);
    engine.executor.poison(GROUP, |page| page == PageId(0));
    engine.open(1, &[3, 4]);
    engine.run(&[(1, 0, &known([9]), false)]);
    engine.copy(&[load(2, 5)]);
    engine.open(2, &[5, 6]);
    let sampled = engine.run(&[(2, 4, &known([7]), true)]);
    let whole = [&prompt[..], &[7]].concat();
    let sampling = engine_core::backend::SlotSampling::greedy();
    assert_eq!(sampled, continue_alone(&whole, &sampling, VOCABULARY, 1, &[]));
}

#[test]
fn copies_run_in_the_order_of_steps_and_are_waited_for_in_it() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    let step = engine.launch(&[(0, 0, &known([1, 2, 3, 4]), false)]).unwrap();
    let copy = engine.start(&[save(0, 0)]);
    engine.wait(step).unwrap();
    engine.end(copy).unwrap();

    let (first, second) = (engine.start(&[save(0, 1)]), engine.start(&[save(0, 2)]));
    let first = first.number();
    assert!(engine.end(second).is_err());
    let expected = Some(first);
    assert_eq!(engine.last_violation(), Violation::TicketOrder { expected, found: first + 1 });
}

#[test]
fn a_page_that_is_copied_is_neither_written_nor_free() {
    let (mut engine, _) = with_a_page();
    let _ticket = engine.start(&[save(0, 1)]);
    engine.open(0, &[0]);
    let tier = Tier::Device;
    let what = "a row that writes it";
    let breach = engine.breach(&[(0, 0, &known([5]), false)]);
    assert_eq!(breach, Violation::UnderWay { tier, page: PageId(0), what });

    let (mut engine, _) = with_a_page();
    let _ticket = engine.start(&[save(0, 1)]);
    engine.executor.poison(GROUP, |page| page == PageId(0));
    assert_eq!(engine.last_violation(), Violation::FreedUnderWay { page: PageId(0) });
}

#[test]
fn a_page_that_is_copied_may_be_read() {
    let (mut engine, _) = with_a_page();
    let ticket = engine.start(&[save(0, 1)]);
    engine.open(0, &[0, 1]);
    let step = engine.launch(&[(0, 4, &known([5]), false)]).unwrap();
    engine.end(ticket).unwrap();
    engine.wait(step).unwrap();
}

#[test]
fn a_page_that_is_being_loaded_is_not_read() {
    let (mut engine, _) = with_a_page();
    engine.copy(&[save(0, 1)]);
    let _ticket = engine.start(&[load(1, 5)]);
    engine.open(0, &[5, 6]);
    let breach = engine.breach(&[(0, 4, &known([5]), false)]);
    let (tier, page, what) = (Tier::Device, PageId(5), "a row");
    assert_eq!(breach, Violation::UnderWay { tier, page, what });
}

#[test]
fn a_page_has_one_copy_into_it_at_a_time() {
    let (mut engine, _) = with_a_page();
    let _first = engine.start(&[save(0, 1)]);
    assert!(engine.executor.transfer(&[save(0, 1)]).is_err());
    let (tier, page, what) = (Tier::Host, PageId(1), "another transfer");
    assert_eq!(engine.last_violation(), Violation::UnderWay { tier, page, what });
}

#[test]
fn copying_what_nobody_wrote_or_what_is_not_there_is_found() {
    let mut engine = Engine::new();
    let ticket = engine.start(&[save(3, 0)]);
    assert!(engine.end(ticket).is_err());
    let (tier, page) = (Tier::Device, PageId(3));
    assert_eq!(engine.last_violation(), Violation::NothingToCopy { tier, page, position: 0 });

    let (mut engine, _) = with_a_page();
    assert!(engine.executor.transfer(&[save(0, 4)]).is_err());
    let unknown = Violation::UnknownPage { group: GROUP, page: PageId(4) };
    assert_eq!(engine.last_violation(), unknown);
}

#[test]
fn copies_under_way_are_lost_with_the_memory() {
    let (mut engine, _) = with_a_page();
    let ticket = engine.start(&[save(0, 1)]);
    engine.executor.lose_kv();
    assert!(matches!(engine.end(ticket), Err(StepError::KvLost { .. })));
    assert_eq!(engine.ledger.violations(), []);
}

fn faulty(faults: &[(u64, TransferFault)]) -> Faults<NullExecutor> {
    let limits = crate::faults::limits();
    Faults::new(NullBackend::new().executor(limits), [])
        .with_transfer_faults(faults.iter().copied())
}

fn transfer(executor: &mut dyn Executor) -> Result<(), StepError> {
    let ticket = executor.transfer(&[save(0, 0)])?;
    executor.wait_transfer(ticket, Deadline::NEVER)
}

#[test]
fn transfer_faults_strike_by_number_and_no_others() {
    let mut executor = faulty(&[
        (1, TransferFault::Refused),
        (2, TransferFault::Fails),
        (3, TransferFault::KvLost),
    ]);
    assert_eq!(transfer(&mut executor), Ok(()));
    let failed = |outcome| matches!(outcome, Err(StepError::TransferFailed { .. }));
    assert!(failed(transfer(&mut executor)));
    assert!(failed(transfer(&mut executor)));
    assert!(matches!(transfer(&mut executor), Err(StepError::KvLost { .. })));
    assert_eq!(transfer(&mut executor), Ok(()));
    assert_eq!(executor.strikes(), 3);
}

#[test]
fn a_device_that_dies_in_a_transfer_stays_dead() {
    let mut executor = faulty(&[(0, TransferFault::Dead)]);
    assert!(matches!(transfer(&mut executor), Err(StepError::Dead { .. })));
    assert!(matches!(transfer(&mut executor), Err(StepError::Dead { .. })));
}
