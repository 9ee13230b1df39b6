//! Property tests of the scheduler: random workloads on the shadow backend, through the plain and
//! the overlapped loop, against an oracle that computes every sequence alone.
//!
//! A failure names its seed. `UNDERSTORY_SEED=n` runs that one case, `UNDERSTORY_CASES=n` as many
//! as wanted in the place of each test's own number.

mod behaviour;
mod bounds;
mod copies;
mod driver;
mod host_tier;
mod log;
mod rules;
mod script;
mod workload;

use engine_core::schedule::SeededBug;
use rules::{Failure, Report};
use workload::{Case, Flavour};

/// Seeds to run: as many as the test wants, or what the environment says.
fn seeds(usually: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("UNDERSTORY_SEED"), number("UNDERSTORY_CASES")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(cases)) => 0..cases,
        (None, None) => 0..usually,
    }
}

/// Runs the cases and returns what they added up to.
fn check(flavour: Flavour, usually: u64) -> Sum {
    let mut sum = Sum::default();
    for seed in seeds(usually) {
        let case = Case::new(seed, flavour);
        match driver::run(&case) {
            Err(failure) => panic!("UNDERSTORY_SEED={seed}: {failure}\n{case:#?}"),
            Ok(Report { stats, strikes, .. }) => {
                sum.cases += 1;
                sum.cached += stats.cached_tokens;
                sum.evicted += stats.evicted_pages;
                sum.retractions += stats.retractions;
                sum.strikes += strikes;
                sum.host_hits += stats.host_hits;
                sum.to_host += stats.pages_to_host;
                sum.failed_transfers += stats.failed_transfers;
            }
        }
    }
    println!("{sum:?}");
    sum
}

/// Shows that the cases go where bugs are.
#[derive(Debug, Default)]
struct Sum {
    cases: u64,
    cached: u64,
    evicted: u64,
    retractions: u64,
    strikes: u64,
    host_hits: u64,
    to_host: u64,
    failed_transfers: u64,
}

#[test]
fn every_sequence_generates_what_it_generates_alone() {
    let sum = check(Flavour::default(), 3000);
    // Not for a single seed.
    if sum.cases >= 100 {
        assert!(sum.cached > sum.cases && sum.evicted > sum.cases && sum.retractions > 50);
    }
}

#[test]
fn a_batch_of_64_changes_nothing() {
    check(Flavour { wide: true, ..Flavour::default() }, 60);
}

#[test]
fn faults_end_the_struck_and_spare_the_others() {
    let sum = check(Flavour { faults: true, ..Flavour::default() }, 1000);
    if sum.cases >= 100 {
        assert!(sum.strikes > sum.cases);
    }
}

#[test]
fn a_host_tier_changes_no_token() {
    let sum = check(Flavour { host: true, ..Flavour::default() }, 1200);
    if sum.cases >= 100 {
        assert!(sum.host_hits > sum.cases / 4 && sum.to_host > sum.cases, "{sum:?}");
    }
}

#[test]
fn copies_that_fail_change_no_token() {
    let sum = check(Flavour { host: true, faults: true, ..Flavour::default() }, 1000);
    if sum.cases >= 100 {
        assert!(sum.failed_transfers > sum.cases / 2 && sum.host_hits > sum.cases / 8, "{sum:?}");
    }
}

#[test]
fn a_log_of_inputs_replays_every_decision() {
    for seed in seeds(200) {
        let flavour = Flavour { faults: seed % 3 == 0, host: seed % 2 == 0, wide: false };
        let case = Case::new(seed, flavour);
        let report = driver::run(&case).unwrap_or_else(|failure| panic!("{seed}: {failure}"));
        let differs = log::replay(case.config.clone(), &report.log);
        assert_eq!(differs, None, "UNDERSTORY_SEED={seed}: the replay decides otherwise there");
    }
}

/// Cases that a planted bug has to be caught in. Without a bug they pass: see the tests above.
const CASES_A_BUG: u64 = 800;

/// Plants a bug in one case after the other. Returns what the first one that fails finds.
fn catch(plant: impl Fn(&mut Case)) -> Option<(u64, Failure)> {
    (0..CASES_A_BUG).find_map(|number| {
        let flavour = Flavour { faults: number % 2 == 1, host: number % 4 >= 2, wide: false };
        let mut case = Case::new(number / 4, flavour);
        plant(&mut case);
        // A broken cache may well overflow a count, which in this build is a panic.
        let found = std::panic::catch_unwind(|| driver::run(&case).err());
        found.unwrap_or(Some(Failure::Panic)).map(|failure| (number, failure))
    })
}

#[test]
fn every_bug_planted_in_the_scheduler_is_caught() {
    let missed = SeededBug::ALL.iter().filter(|&&bug| {
        let caught = catch(|case| case.config.seeded_bug = Some(bug));
        println!("{bug:?}: {caught:?}");
        caught.is_none()
    });
    assert_eq!(missed.collect::<Vec<_>>(), Vec::<&SeededBug>::new());
}
