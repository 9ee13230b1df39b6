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
mod recorded;
mod rules;
mod script;
mod workload;

use rules::Report;
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
                sum.proposed += stats.proposed_tokens;
                sum.accepted += stats.accepted_tokens;
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
    proposed: u64,
    accepted: u64,
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
fn windowed_groups_change_no_token() {
    let sum = check(Flavour { windowed: true, ..Flavour::default() }, 2000);
    if sum.cases >= 100 {
        assert!(sum.cached > sum.cases && sum.retractions > sum.cases / 60, "{sum:?}");
    }
}

#[test]
fn speculation_changes_no_token() {
    let sum = check(Flavour { speculation: true, ..Flavour::default() }, 2500);
    if sum.cases >= 100 {
        assert!(sum.proposed > 4 * sum.cases && sum.accepted > sum.cases, "{sum:?}");
    }
}

#[test]
fn speculation_survives_faults_and_the_host_tier() {
    let faults = Flavour { speculation: true, faults: true, ..Flavour::default() };
    check(faults, 800);
    check(Flavour { host: true, ..faults }, 600);
}

#[test]
fn speculation_in_windowed_groups_changes_no_token() {
    check(Flavour { speculation: true, windowed: true, ..Flavour::default() }, 1200);
    let wide = Flavour { speculation: true, windowed: true, wide: true, ..Flavour::default() };
    check(wide, 30);
}

#[test]
fn windowed_groups_survive_faults() {
    check(Flavour { windowed: true, faults: true, ..Flavour::default() }, 800);
}

#[test]
fn a_log_of_inputs_replays_every_decision() {
    for seed in seeds(200) {
        let faults = seed % 3 == 0;
        let (host, windowed) = (seed % 4 == 0, seed % 4 == 1);
        let speculation = seed % 5 < 2;
        let flavour = Flavour { faults, host, windowed, speculation, ..Flavour::default() };
        let case = Case::new(seed, flavour);
        let report = driver::run(&case).unwrap_or_else(|failure| panic!("{seed}: {failure}"));
        let differs = log::replay(case.config.clone(), &report.log);
        assert_eq!(differs, None, "UNDERSTORY_SEED={seed}: the replay decides otherwise there");
    }
}
