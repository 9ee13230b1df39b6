//! What the host tier promises beyond being right: what is loaded, when, and who waits for it.

use engine_core::WritePolicy;
use engine_core::backend::Tier;
use engine_core::schedule::{HostTierConfig, SchedulerConfig};
use testkit::faults::TransferFault;

use crate::log::Entry;
use crate::rules::Report;
use crate::script::{Script, batches};
use crate::workload::Action;

/// Prompts that drive another one off the device.
const OTHERS: u64 = 6;

/// 48 pages of 16 tokens on the device, of which a step takes one, and many on the host.
fn tiered(write: WritePolicy) -> SchedulerConfig {
    let mut config = SchedulerConfig::new(16, 48, 4, 400);
    config.chunked_prefill_size = 16;
    let mut tier = HostTierConfig::new(200);
    tier.write = write;
    tier.min_load_tokens = 32;
    config.host_tier = Some(tier);
    config
}

/// A prompt of 100 tokens, of which others have driven the first 96 off the device when the
/// returned time has come.
fn driven_off(script: &mut Script) -> (Vec<u32>, u64) {
    let prompt = script.tokens(100);
    script.arrive(0, prompt.clone(), 2);
    for round in 1..=OTHERS {
        let other = script.tokens(150);
        script.arrive(20 * round, other, 2);
    }
    (prompt, 20 * OTHERS + 40)
}

/// Copies in the direction of `to`, by plan.
fn copies(report: &Report, to: Tier) -> Vec<usize> {
    let plans = report.log.iter().filter_map(|entry| match entry {
        Entry::Plan(planned) => Some(planned.copies.iter().filter(|copy| copy.to.0 == to).count()),
        Entry::Input(_) => None,
    });
    plans.filter(|&count| count > 0).collect()
}

#[test]
fn a_prefix_that_left_is_loaded_and_not_computed() {
    for write in [WritePolicy::Through, WritePolicy::Back] {
        for overlapped in [false, true] {
            let mut script = Script::new();
            let (prompt, time) = driven_off(&mut script);
            script.arrive(time, prompt, 2);
            let report = script.run(tiered(write), overlapped);
            assert_eq!(copies(&report, Tier::Device), [6], "{write:?}");
            let stats = report.stats;
            assert_eq!((stats.cached_tokens, stats.host_cached_tokens), (96, 96), "{write:?}");
            assert_eq!((stats.host_hits, stats.loaded_tokens), (1, 96));
            assert_eq!(stats.prefill_tokens, 100 + OTHERS * 150 + 4);
        }
    }
}

#[test]
fn a_prefix_shorter_than_the_threshold_is_computed() {
    for (threshold, loaded) in [(96, 96), (97, 0)] {
        let mut script = Script::new();
        let (prompt, time) = driven_off(&mut script);
        script.arrive(time, prompt, 2);
        let mut config = tiered(WritePolicy::Through);
        config.host_tier.as_mut().unwrap().min_load_tokens = threshold;
        assert_eq!(script.run(config, false).stats.loaded_tokens, loaded);
    }
}

#[test]
fn a_load_that_fails_is_not_tried_again_but_computed() {
    for fault in [TransferFault::Refused, TransferFault::Fails] {
        for overlapped in [false, true] {
            let mut script = Script::new();
            let (prompt, time) = driven_off(&mut script);
            script.arrive(time, prompt, 2);
            // All the others were saved before.
            let faults = [(1 + OTHERS, fault)];
            let report = script.run_with(tiered(WritePolicy::Through), overlapped, &[], &faults);
            assert_eq!(copies(&report, Tier::Device), [6]);
            let stats = report.stats;
            assert_eq!((stats.failed_transfers, stats.loaded_tokens), (1, 0));
            assert_eq!((stats.cached_tokens, stats.host_hits), (0, 0));
            assert_eq!(stats.prefill_tokens, 2 * 100 + OTHERS * 150);
        }
    }
}

#[test]
fn others_go_on_while_one_is_loaded_for() {
    let mut script = Script::new();
    let (prompt, time) = driven_off(&mut script);
    let other = script.tokens(10);
    script.arrive(time, prompt, 2);
    script.arrive(time, other, 5);
    let report = script.run(tiered(WritePolicy::Through), true);
    let order: Vec<u64> = report.admitted.iter().map(|id| id.request.0).collect();
    assert_eq!(
        order[1 + OTHERS as usize..],
        [OTHERS + 3, OTHERS + 2],
        "the later one runs while the earlier one is loaded for"
    );
    assert_eq!(report.stats.host_hits, 1);
}

#[test]
fn nobody_takes_the_place_of_one_that_is_loaded_for() {
    // The only slot; or pages that only one of the two finds.
    for (slots, answer) in [(1, 5), (4, 350)] {
        let mut script = Script::new();
        let (prompt, time) = driven_off(&mut script);
        let other = script.tokens(20);
        script.arrive(time, prompt, 300);
        script.arrive(time, other, answer);
        let mut config = tiered(WritePolicy::Through);
        config.max_running = slots;
        let report = script.run(config, true);
        let order: Vec<u64> = report.admitted.iter().map(|id| id.request.0).collect();
        assert_eq!(order[1 + OTHERS as usize..], [OTHERS + 2, OTHERS + 3], "{slots} slots");
        assert_eq!(report.stats.host_hits, 1);
    }
}

#[test]
fn those_who_share_a_prefix_wait_for_one_load_of_it() {
    for overlapped in [false, true] {
        let mut script = Script::new();
        let (prompt, time) = driven_off(&mut script);
        let request = script.request(prompt, 2, 3);
        script.actions.push((time, Action::Arrive(request)));
        let report = script.run(tiered(WritePolicy::Through), overlapped);
        assert_eq!(copies(&report, Tier::Device), [6]);
        assert_eq!(report.stats.cached_tokens, 3 * 96);
        assert_eq!(report.stats.host_cached_tokens, 96, "two found it on the device");
    }
}

#[test]
fn one_given_up_while_it_is_loaded_for_never_runs_and_keeps_nothing() {
    for overlapped in [false, true] {
        let mut script = Script::new();
        let (prompt, time) = driven_off(&mut script);
        script.arrive(time, prompt.clone(), 2);
        // What was loaded for it stays cached, for the next one.
        script.actions.push((time + 1, Action::Abort(1 + OTHERS as usize)));
        script.arrive(time + 10, prompt, 2);
        let report = script.run(tiered(WritePolicy::Through), overlapped);
        let loads = copies(&report, Tier::Device);
        assert_eq!(loads, [6]);
        let (stats, order) = (report.stats, report.admitted);
        if overlapped {
            assert_eq!((stats.cached_tokens, stats.host_hits), (96, 1), "{order:?}");
        }
    }
}

#[test]
fn write_through_after_a_hit_copies_only_what_came_again() {
    let mut script = Script::new();
    let (prompt, time) = driven_off(&mut script);
    script.arrive(time, prompt.clone(), 2);
    script.arrive(time + 20, prompt, 2);
    let report = script.run(tiered(WritePolicy::ThroughAfterHits(1)), false);
    // Nothing came again before it was driven off; then it was computed, hit and copied.
    assert_eq!(copies(&report, Tier::Host), [6]);
    assert_eq!(report.stats.loaded_tokens, 0);
}

#[test]
fn write_back_copies_before_it_is_needed_and_only_what_leaves() {
    let mut script = Script::new();
    let prompt = script.tokens(60);
    script.arrive(0, prompt, 2);
    let report = script.run(tiered(WritePolicy::Back), false);
    assert!(copies(&report, Tier::Host).is_empty(), "nothing has to leave");

    let mut script = Script::new();
    driven_off(&mut script);
    let report = script.run(tiered(WritePolicy::Back), false);
    assert!(report.stats.pages_to_host > 0);
}

#[test]
fn under_write_back_a_load_forgets_nothing_to_make_room() {
    const PROMPTS: u64 = 10;
    for overlapped in [false, true] {
        let mut script = Script::new();
        let prompts: Vec<_> = (0..PROMPTS).map(|_| script.tokens(100)).collect();
        for round in 0..3 {
            for (number, prompt) in (0..).zip(&prompts) {
                script.arrive(20 * (PROMPTS * round + number), prompt.clone(), 1);
            }
        }
        let stats = script.run(tiered(WritePolicy::Back), overlapped).stats;
        // Sixty pages take turns in 48, and all of them are found again each time.
        assert_eq!(stats.cached_tokens, 2 * PROMPTS * 96, "{stats:?}");
        assert!(stats.host_hits > PROMPTS, "{stats:?}");
    }
}

#[test]
fn a_copy_that_takes_the_kv_with_it_ends_nobody() {
    for overlapped in [false, true] {
        let mut script = Script::new();
        let (prompt, time) = driven_off(&mut script);
        script.arrive(time, prompt, 2);
        let other = script.tokens(20);
        script.arrive(time, other, 20);
        let faults = [(1 + OTHERS, TransferFault::KvLost)];
        let report = script.run_with(tiered(WritePolicy::Through), overlapped, &[], &faults);
        assert_eq!(report.stats.generated_tokens, (1 + OTHERS) * 2 + 2 + 20);
        assert_eq!(report.stats.host_hits, 0);
        assert!(batches(&report).count() > 20);
    }
}
