//! Each check finds its bug, at its line, and is silent when it is switched off.

mod support;

use cuda_emulator::check::{Checks, Problem, Report, Severity};
use cuda_emulator::{Arguments, Launch, Options, Outcome, Schedule};
use support::{Device, assert_clean, shape};

const BUGS: &str = include_str!("../fixtures/bugs.ptx");
const SOURCE: &str = include_str!("../kernels/bugs.cu");

/// Room for the results of a kernel, and its argument.
fn run(kernel: &str, shape: Launch, options: &Options) -> Outcome {
    let mut device = Device::new(BUGS);
    let out = device.upload(&vec![0i32; 4096]);
    device.run(kernel, shape, &Arguments::new().with(out), options)
}

fn run_with_data(kernel: &str, shape: Launch, options: &Options) -> Outcome {
    let mut device = Device::new(BUGS);
    let out = device.upload(&vec![0i32; 4096]);
    let data = device.upload(&(0..4096).collect::<Vec<i32>>());
    device.run(kernel, shape, &Arguments::new().with(out).with(data), options)
}

fn without(name: &str) -> Options {
    let mut checks = Checks::default();
    assert!(checks.set(name, false));
    Options { checks, ..Options::default() }
}

/// The line that the source marks with `mark`.
fn line(mark: &str) -> u32 {
    let found = SOURCE.lines().position(|line| line.contains(&format!("// {mark}")));
    found.expect("the mark is there") as u32 + 1
}

fn only<'a>(outcome: &'a Outcome, mark: &str) -> &'a Report {
    let errors: Vec<_> = outcome.errors().collect();
    let [report] = errors.as_slice() else {
        panic!("{} reports: {:#?}", errors.len(), outcome.reports)
    };
    assert_eq!(report.site.line, Some(line(mark)), "{report}");
    assert_eq!(report.site.file.as_deref(), Some("bugs.cu"));
    report
}

#[test]
fn an_access_out_of_bounds_ends_the_launch() {
    let mut device = Device::new(BUGS);
    let data = device.upload(&[0i32; 100]);
    let arguments = Arguments::new().with(data);
    let outcome = device.run("touch", shape([2, 1, 1], 64), &arguments, &Options::default());
    let report = only(&outcome, "touch: no bounds test");
    let expected = Problem::OutOfBounds {
        access: "load",
        address: data + 400,
        bytes: 4,
        place: "offset 400 of an allocation of 400 bytes".to_owned(),
    };
    assert_eq!(report.problem, expected);
    assert_eq!(report.severity, Severity::Fault);
    assert_eq!((report.block, report.thread), (Some([1, 0, 0]), Some([36, 0, 0])));
    assert!(outcome.fault().is_some());
    // Without the check the access is dropped.
    let outcome = device.run("touch", shape([2, 1, 1], 64), &arguments, &without("bounds"));
    assert_clean(&outcome);
}

#[test]
fn memory_that_was_freed_is_told_from_memory_that_never_was() {
    let mut device = Device::new(BUGS);
    let data = device.upload(&[0i32; 64]);
    device.memory.free(data).unwrap();
    let arguments = Arguments::new().with(data);
    let outcome = device.run("touch", shape([1, 1, 1], 64), &arguments, &Options::default());
    let report = only(&outcome, "touch: no bounds test");
    assert!(matches!(report.problem, Problem::UseAfterFree { size: 256, .. }), "{report}");
    let nowhere = Arguments::new().with(0u64);
    let outcome = device.run("touch", shape([1, 1, 1], 64), &nowhere, &Options::default());
    let report = only(&outcome, "touch: no bounds test");
    assert!(report.to_string().contains("where nothing was ever allocated"), "{report}");
}

#[test]
fn a_vector_at_a_wrong_offset_is_misaligned() {
    let outcome = run_with_data("misaligned", shape([1, 1, 1], 1), &Options::default());
    let report = only(&outcome, "misaligned: 16 bytes at offset 4");
    assert!(matches!(report.problem, Problem::Misaligned { bytes: 16, .. }), "{report}");
}

#[test]
fn shared_memory_must_be_written_before_it_is_read() {
    let grid = shape([1, 1, 1], 64);
    let outcome = run("uninitialized_shared", grid, &Options::default());
    let report = only(&outcome, "uninitialized_shared: only half of it was written");
    assert!(matches!(report.problem, Problem::UninitializedShared { offset: 128, bytes: 4 }));
    assert_eq!(report.count, 32);
    assert_clean(&run("uninitialized_shared", grid, &without("uninitialized-shared")));
}

#[test]
fn device_memory_must_be_written_before_it_is_read() {
    let mut device = Device::new(BUGS);
    let out = device.room::<i32>(64);
    let data = device.room::<i32>(64);
    device.memory.write(data, &[0; 100]).unwrap();
    let arguments = Arguments::new().with(out).with(data);
    let grid = shape([1, 1, 1], 64);
    let outcome = device.run("uninitialized_global", grid, &arguments, &Options::default());
    let report = only(&outcome, "uninitialized_global");
    assert_eq!(report.problem, Problem::UninitializedGlobal { address: data + 100, bytes: 4 });
    assert_eq!(report.count, 64 - 25);
    let off = without("uninitialized-global");
    assert_clean(&device.run("uninitialized_global", grid, &arguments, &off));
}

#[test]
fn warps_need_a_barrier_between_a_write_and_a_read() {
    let grid = shape([1, 1, 1], 64);
    let outcome = run("shared_race", grid, &Options::default());
    let races: Vec<_> = outcome
        .errors()
        .filter(|report| matches!(report.problem, Problem::SharedRace { .. }))
        .collect();
    assert!(!races.is_empty(), "{:#?}", outcome.reports);
    for race in &races {
        let other = race.other.as_ref().and_then(|site| site.line);
        let lines = [race.site.line, other];
        assert!(lines.contains(&Some(line("shared_race: written here"))), "{race}");
        assert!(lines.contains(&Some(line("shared_race: read with no barrier"))), "{race}");
    }
    let mut checks = Checks::default();
    checks.set("shared-races", false);
    checks.set("uninitialized-shared", false);
    assert_clean(&run("shared_race", grid, &Options { checks, ..Options::default() }));
    // A warp alone races with nobody.
    let outcome = run("shared_race", shape([1, 1, 1], 32), &without("uninitialized-shared"));
    assert_clean(&outcome);
}

#[test]
fn blocks_that_write_the_same_elements_race() {
    let grid = shape([4, 1, 1], 32);
    for schedule in [Schedule::InOrder, Schedule::Random(3)] {
        let options = Options { schedule, ..Options::default() };
        let outcome = run("global_race", grid, &options);
        let report = only(&outcome, "global_race");
        assert!(matches!(report.problem, Problem::GlobalRace { access: "store", .. }), "{report}");
    }
    assert_clean(&run("global_race", grid, &without("global-races")));
    assert_clean(&run("global_race", shape([1, 1, 1], 32), &Options::default()));
}

#[test]
fn a_fence_and_a_counter_order_blocks() {
    for seed in 0..10 {
        let mut device = Device::new(BUGS);
        let (out, partial) = (device.room::<i32>(1), device.room::<i32>(320));
        let counter = device.upload(&[0u32]);
        let arguments = Arguments::new().with(out).with(partial).with(counter);
        let options = Options { schedule: Schedule::Random(seed), ..Options::default() };
        assert_clean(&device.run("last_block", shape([10, 1, 1], 32), &arguments, &options));
        assert_eq!(device.download::<i32>(out, 1), [32 * 55]);
    }
}

#[test]
fn copies_must_be_waited_for() {
    let grid = shape([1, 1, 1], 32);
    let outcome = run_with_data("copy_not_waited_for", grid, &Options::default());
    let report = only(&outcome, "copy_not_waited_for");
    assert!(matches!(report.problem, Problem::AsyncCopyPending { access: "load", offset: 0 }));
    let outcome = run_with_data("copy_left", grid, &Options::default());
    let errors: Vec<_> = outcome.errors().collect();
    assert!(matches!(errors[0].problem, Problem::AsyncCopyLeft { count: 32 }), "{errors:?}");
    assert_clean(&run_with_data("copy_left", grid, &without("async-copies")));
}

#[test]
fn a_shuffle_needs_all_lanes_of_its_mask() {
    let grid = shape([1, 1, 1], 32);
    let outcome = run("divergent_shuffle", grid, &Options::default());
    let report = outcome.fault().expect("the shuffle is refused");
    let expected = Problem::LanesMissing { mask: u32::MAX, missing: 0xfff0_0000 };
    assert_eq!(report.problem, expected);
    assert_clean(&run("divergent_shuffle", grid, &without("divergence")));
    // Threads that a block doesn't have are not missing.
    assert_clean(&run("divergent_shuffle", shape([1, 1, 1], 20), &Options::default()));
}

#[test]
fn a_barrier_needs_all_lanes_of_a_warp() {
    let outcome = run("divergent_barrier", shape([1, 1, 1], 64), &Options::default());
    let report = only(&outcome, "divergent_barrier");
    assert_eq!(report.problem, Problem::DivergentBarrier { lanes: 0xffff, live: u32::MAX });
}

#[test]
fn warps_must_meet_at_the_same_barrier() {
    let grid = shape([1, 1, 1], 64);
    let outcome = run("mismatched_barrier", grid, &Options::default());
    let errors: Vec<_> = outcome.errors().collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].problem, Problem::MismatchedBarrier { barrier: 0 });
    assert!(errors[0].other.is_some());
    assert_clean(&run("mismatched_barrier", grid, &without("barriers")));
}

#[test]
fn a_barrier_that_nobody_completes_is_a_deadlock() {
    let outcome = run("deadlock", shape([1, 1, 1], 64), &Options::default());
    let report = outcome.fault().expect("a deadlock");
    assert_eq!(report.problem, Problem::Deadlock { waiting: 1 });
}

#[test]
fn a_division_by_zero_is_told() {
    let mut device = Device::new(BUGS);
    let out = device.room::<i32>(32);
    let arguments = |divisor: i32| Arguments::new().with(out).with(divisor);
    let grid = shape([1, 1, 1], 32);
    let outcome = device.run("division", grid, &arguments(0), &Options::default());
    let errors: Vec<_> = outcome.errors().collect();
    assert_eq!(errors[0].problem, Problem::DivisionByZero);
    assert_clean(&device.run("division", grid, &arguments(3), &Options::default()));
    assert_clean(&device.run("division", grid, &arguments(0), &without("division")));
}

#[test]
fn conflicts_and_scattered_accesses_are_advice() {
    let grid = shape([1, 1, 1], 32);
    let outcome = run("bank_conflicts", grid, &Options::default());
    assert_clean(&outcome);
    let found = outcome
        .reports
        .iter()
        .find(|report| report.site.line == Some(line("bank_conflicts: all lanes use one bank")));
    let expected = Problem::BankConflicts { wavefronts: 32, ideal: 1, executions: 1 };
    assert_eq!(found.map(|report| &report.problem), Some(&expected));
    assert_eq!(run("bank_conflicts", grid, &without("bank-conflicts")).reports, []);

    let outcome = run("uncoalesced", grid, &Options::default());
    assert_clean(&outcome);
    let expected = Problem::Uncoalesced { sectors: 32, ideal: 4, executions: 1 };
    assert_eq!(outcome.reports[0].problem, expected);
    assert_eq!(outcome.reports[0].severity, Severity::Advice);
    assert_eq!(run("uncoalesced", grid, &without("coalescing")).reports, []);
}

#[test]
fn lanes_that_store_the_same_value_to_one_place_are_a_warning() {
    let outcome = run("redundant_store", shape([1, 1, 1], 64), &Options::default());
    assert_eq!(outcome.errors().count(), 0, "{:#?}", outcome.reports);
    let [report] = outcome.warnings().collect::<Vec<_>>()[..] else { panic!("{outcome:#?}") };
    assert!(matches!(report.problem, Problem::RedundantStore { lanes: 0xffff_fffe, .. }));
    assert_eq!(report.site.line, Some(line("redundant_store")));
    // Once for each warp.
    assert_eq!(report.count, 2);
    let off = run("redundant_store", shape([1, 1, 1], 64), &without("redundant-stores"));
    assert_clean(&off);
}

#[test]
fn lanes_that_store_different_values_to_one_place_are_an_error() {
    let grid = shape([1, 1, 1], 32);
    let outcome = run("conflicting_store", grid, &Options::default());
    let report = only(&outcome, "conflicting_store");
    let expected = Problem::ConflictingStore { address: 0, first: 0, second: 1 };
    assert_eq!((&report.problem, report.count), (&expected, 16));
    assert_clean(&run("conflicting_store", grid, &without("redundant-stores")));
}

#[test]
fn an_endless_loop_is_stopped() {
    let options = Options { instruction_limit: 100_000, ..Options::default() };
    let outcome = run("endless", shape([1, 1, 1], 32), &options);
    assert!(matches!(outcome.fault().unwrap().problem, Problem::Timeout { .. }));
}

#[test]
fn a_trap_names_its_thread() {
    let device = Device::new(BUGS);
    let grid = shape([1, 1, 1], 32);
    let outcome = device.run("stops", grid, &Arguments::new(), &Options::default());
    let report = outcome.fault().unwrap();
    assert_eq!((&report.problem, report.thread), (&Problem::Trap, Some([5, 0, 0])));
}

#[test]
fn a_report_says_where_and_what_to_look_at() {
    let outcome = run("shared_race", shape([1, 1, 1], 64), &without("uninitialized-shared"));
    let text = outcome.reports[0].to_string();
    for part in ["error: shared_race:", "bugs.cu:", "block (0, 0, 0)", "hint: a __syncthreads()"] {
        assert!(text.contains(part), "{text}");
    }
    let json = outcome.reports[0].to_json();
    assert!(json.contains("\"problem\":\"shared-race\"") && json.contains("\"hint\""), "{json}");
}
