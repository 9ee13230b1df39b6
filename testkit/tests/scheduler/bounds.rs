//! Where the scheduler's rules end: who waits for how long, and what happens at the last page.

use engine_core::backend::SlotSampling;
use engine_core::schedule::{QueuePolicy, SchedulerConfig};
use testkit::faults::Fault;
use testkit::shadow::model;

use crate::script::{Script, VOCABULARY, batches, roomy};

#[test]
fn a_retraction_makes_admission_careful() {
    // The one that stays has shown that it generates nearly all that it may.
    let mut script = Script::new();
    let (first, second) = (script.tokens(16), script.tokens(16));
    script.arrive(0, first, 640);
    script.arrive(560, second, 100);
    let mut config = SchedulerConfig::new(16, 47, 4, 1000);
    config.retract_every = Some(580);
    let report = script.run(config, false);
    let runs = |batch: &crate::log::Snapshot| batch.seeds.contains(&2);
    let steps: Vec<bool> = batches(&report).map(runs).collect();
    let begins = steps.iter().position(|&runs| runs).unwrap();
    assert!((560..580).contains(&begins), "{begins}");
    // Before it was put back it was admitted at once; now it waits until the first one is nearly done.
    let away = steps[begins..].iter().skip_while(|&&runs| runs).take_while(|&&runs| !runs).count();
    assert!(away >= 20, "{away}");
}

#[test]
fn those_who_lost_their_kv_come_back_in_their_order() {
    let mut script = Script::new();
    for _ in 0..4 {
        let prompt = script.tokens(20);
        let time = script.actions.len().min(1) as u64;
        script.arrive(time, prompt, 5);
    }
    let report = script.run_with(roomy(8), true, &[(0, Fault::KvLost)], &[]);
    let batches: Vec<_> = batches(&report).map(|batch| &batch.seeds[..]).collect();
    // The first step is lost with its only row, the second with the memory.
    assert_eq!(batches[..3], [&[1][..], &[1, 2, 3, 4], &[2, 3, 4]]);
}

#[test]
fn the_newest_of_those_admitted_together_passes_the_others_over() {
    let mut script = Script::new();
    let known = script.tokens(64);
    script.arrive(0, known.clone(), 1);
    for _ in 0..30 {
        script.arrive(10, known[..40].to_vec(), 1);
    }
    let unknown = script.tokens(40);
    script.arrive(10, unknown, 1);
    // Two go in each round: a newer one, then an older one while there are any.
    for round in 0..80 {
        for _ in 0..1 + u32::from(round >= 30) {
            script.arrive(11 + round, known.clone(), 1);
        }
    }
    let mut config = roomy(2);
    config.queue_policy = QueuePolicy::LongestPrefix;
    let admitted = script.run(config, false).admitted;
    let place = admitted.iter().position(|id| id.request.0 == 32);
    assert_eq!(place, Some(1 + 2 * 64));
}

#[test]
fn a_prompt_may_take_every_page() {
    for overlapped in [false, true] {
        let mut script = Script::new();
        let prompt = script.tokens(39);
        script.arrive(0, prompt, 1);
        let stats = script.run(SchedulerConfig::new(4, 10, 2, 60), overlapped).stats;
        assert_eq!((stats.generated_tokens, stats.retractions), (1, 0));
    }
}

#[test]
fn what_a_struck_sequence_generated_is_not_cached() {
    let mut script = Script::new();
    let prompt = script.tokens(20);
    script.arrive(0, prompt.clone(), 20);
    let generated = model::continue_alone(&prompt, &SlotSampling::greedy(), VOCABULARY, 12, &[]);
    script.arrive(50, [&prompt[..], &generated].concat(), 1);
    let config = SchedulerConfig::new(4, 100, 4, 1000);
    let stats = script.run_with(config, false, &[(14, Fault::Row(0))], &[]).stats;
    assert_eq!(stats.cached_tokens, 20, "the prompt alone");
}
