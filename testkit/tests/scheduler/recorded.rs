//! Logs that are written to a file and replayed.

use engine_core::schedule::{LOG_VERSION, ReplayError, replay};

use crate::driver;
use crate::workload::{Case, Flavour};

/// More than ten thousand inputs, with whatever a seed brings along.
fn recorded(seed: u64) -> Vec<u8> {
    let speculation = seed.is_multiple_of(2);
    let windowed = seed.is_multiple_of(3);
    let host = !windowed;
    let flavour = Flavour { faults: true, long: true, speculation, windowed, host, wide: false };
    let case = Case::new(seed, flavour);
    driver::run(&case).unwrap_or_else(|failure| panic!("{seed}: {failure}")).recorded
}

#[test]
fn a_recorded_log_of_ten_thousand_random_inputs_replays_the_same_decisions() {
    for seed in 0..3 {
        let log = recorded(seed);
        let replayed = replay(&log[..]).unwrap_or_else(|error| panic!("{seed}: {error}"));
        assert!(replayed.inputs >= 10_000, "{replayed:?}");
        assert!(replayed.plans >= 1000 && replayed.stats.steps > 0, "{replayed:?}");
    }
}

#[test]
fn a_log_that_lacks_an_input_leads_to_other_decisions() {
    let log = String::from_utf8(recorded(0)).unwrap();
    let arrival = log.lines().position(|line| line.contains("Arrive")).unwrap();
    let lines = log.lines().enumerate().filter(|(line, _)| *line != arrival);
    let shorter: String = lines.map(|(_, line)| format!("{line}\n")).collect();
    let error = replay(shorter.as_bytes()).unwrap_err();
    let is_noticed = matches!(error, ReplayError::Diverged { .. } | ReplayError::Schedule { .. });
    assert!(is_noticed, "{error}");
}

#[test]
fn a_log_of_another_version_is_refused() {
    let log = String::from_utf8(recorded(1)).unwrap();
    let current = format!("\"understory_scheduler_log\":{LOG_VERSION}");
    let older = log.replacen(&current, "\"understory_scheduler_log\":0", 1);
    assert_ne!(older, log);
    let error = replay(older.as_bytes()).unwrap_err();
    assert!(matches!(error, ReplayError::Version { found: 0, supported: LOG_VERSION }), "{error}");
}

#[test]
fn what_is_no_log_is_refused() {
    for text in ["", "hello\n", "{}\n", "{\"understory_scheduler_log\":\"new\"}\n"] {
        assert!(matches!(replay(text.as_bytes()), Err(ReplayError::NoLog)), "{text:?}");
    }
    let header = format!("{{\"understory_scheduler_log\":{LOG_VERSION},\"config\":{{}}}}\n");
    let error = replay(header.as_bytes()).unwrap_err();
    assert!(matches!(error, ReplayError::Malformed { line: 1, .. }), "{error}");
}
