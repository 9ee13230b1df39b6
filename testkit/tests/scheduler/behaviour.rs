//! What the scheduler promises beyond being right: who goes first, and what is not computed twice.
//!
//! Each test is a workload of its own through the same driver, so all rules hold here too.

use std::borrow::Cow;
use std::sync::Arc;

use engine_core::backend::{SlotSampling, StepError, StepResult};
use engine_core::kv::GroupKind::{self, Full, Windowed};
use engine_core::schedule::{
    Arrival, HostTierConfig, Input, InputError, Plan, PromptWant, QueuePolicy, Refusal, RequestId,
    ScheduleError, Scheduler, SchedulerConfig, SequenceId, WindowedConfig,
};
use engine_core::{Namespace, Retention, Token};
use testkit::shadow::model;

use crate::script::{Script, VOCABULARY, batches, roomy};
use crate::workload::Action;

#[test]
fn requests_that_arrive_together_compute_their_common_prefix_once() {
    for overlapped in [false, true] {
        let mut script = Script::new();
        let prefix = script.tokens(64);
        for _ in 0..8 {
            let mut prompt = prefix.clone();
            prompt.extend(script.tokens(4));
            script.arrive(0, prompt, 5);
        }
        let stats = script.run(roomy(8), overlapped).stats;
        assert_eq!((stats.prompt_tokens, stats.cached_tokens), (8 * 68, 7 * 64));
        assert_eq!(stats.prefill_tokens, 68 + 7 * 4);
    }
}

#[test]
fn samples_of_one_request_share_its_prompt_even_without_a_cache() {
    let mut script = Script::new();
    let prompt = script.tokens(50);
    let request = script.request(prompt, 5, 4);
    script.actions.push((0, Action::Arrive(request)));
    let mut config = roomy(8);
    config.cache = false;
    let stats = script.run(config, true).stats;
    assert_eq!(stats.prefill_tokens, 50 + 3 * 2);
}

#[test]
fn a_prompt_seen_before_leaves_one_token_to_compute_at_least() {
    for (len, cached) in [(40, 32), (33, 32), (32, 16), (16, 0)] {
        let mut script = Script::new();
        let prompt = script.tokens(len);
        script.arrive(0, prompt.clone(), 3);
        script.arrive(50, prompt, 3);
        assert_eq!(script.run(roomy(8), false).stats.cached_tokens, cached);
    }
}

#[test]
fn a_fork_computes_nothing_that_its_parent_has_computed() {
    let mut script = Script::new();
    let prompt = script.tokens(20);
    script.arrive(0, prompt, 12);
    let suffix = script.tokens(3);
    let branch = script.request(suffix, 4, 1);
    script.actions.push((6, Action::Fork(0, branch)));
    let stats = script.run(roomy(8), false).stats;
    // The parent's newest token has no KV yet, so the branch begins with it.
    assert_eq!(stats.prefill_tokens, 20 + 1 + 3);
}

#[test]
fn a_long_prompt_never_keeps_others_from_decoding() {
    for overlapped in [false, true] {
        let mut script = Script::new();
        let (short, long) = (script.tokens(5), script.tokens(300));
        script.arrive(0, short, 15);
        script.arrive(2, long, 1);
        let mut config = roomy(4);
        config.chunked_prefill_size = 16;
        let report = script.run(config, overlapped);
        let decoding: Vec<u32> = batches(&report).map(|batch| batch.decode_rows).collect();
        // One token came with the prompt; each of the next fourteen steps brings another.
        assert_eq!(decoding[..15], [&[0][..], &[1; 14]].concat());
        assert!(decoding.len() > 15, "the long prompt took {} steps", decoding.len());
    }
}

#[test]
fn the_longest_cached_prefix_goes_first_where_the_policy_says_so() {
    for policy in [QueuePolicy::FirstCome, QueuePolicy::LongestPrefix] {
        let mut script = Script::new();
        let known = script.tokens(100);
        script.arrive(0, known.clone(), 2);
        let unknown = script.tokens(100);
        script.arrive(50, unknown, 2);
        script.arrive(50, known[..40].to_vec(), 2);
        script.arrive(50, known[..80].to_vec(), 2);
        let mut config = roomy(1);
        config.queue_policy = policy;
        let order: Vec<u64> =
            script.run(config, false).admitted.iter().map(|id| id.request.0).collect();
        let expected = match policy {
            QueuePolicy::LongestPrefix => [1, 4, 3, 2],
            _ => [1, 2, 3, 4],
        };
        assert_eq!(order, expected);
    }
}

#[test]
fn whoever_was_passed_over_64_times_goes_first() {
    let mut script = Script::new();
    let known = script.tokens(40);
    script.arrive(0, known.clone(), 1);
    let unknown = script.tokens(40);
    script.arrive(10, unknown, 1);
    for _ in 0..100 {
        script.arrive(10, known.clone(), 1);
    }
    let mut config = roomy(1);
    config.queue_policy = QueuePolicy::LongestPrefix;
    let admitted = script.run(config, false).admitted;
    let place = admitted.iter().position(|id| id.request == RequestId(2));
    assert_eq!(place, Some(1 + 64));
}

#[test]
fn a_limit_beyond_the_context_ends_at_the_context() {
    let mut script = Script::new();
    let prompt = script.tokens(20);
    script.arrive(0, prompt, 500);
    let mut config = roomy(2);
    config.context_length = 50;
    assert_eq!(script.run(config, true).stats.generated_tokens, 30);
}

#[test]
fn when_pages_run_out_the_last_to_come_waits_and_loses_nothing() {
    let mut script = Script::new();
    for _ in 0..3 {
        let prompt = script.tokens(30);
        script.arrive(0, prompt, 150);
    }
    // Two can begin, but not end, beside each other.
    let config = SchedulerConfig::new(16, 20, 8, 200);
    let stats = script.run(config, true).stats;
    assert!(stats.retractions > 0);
    assert_eq!(stats.generated_tokens, 3 * 150);
}

#[test]
fn another_namespace_does_not_wait_for_a_prefix_that_it_can_not_use() {
    for (namespace, rows) in [(0, 1), (1, 2)] {
        let mut script = Script::new();
        let prompt = script.tokens(40);
        script.arrive(0, prompt.clone(), 3);
        let mut other = script.request(prompt, 3, 1);
        other.namespace = Namespace::tenant(namespace);
        script.actions.push((0, Action::Arrive(other)));
        let report = script.run(roomy(8), false);
        assert_eq!(batches(&report).next().map(|batch| batch.rows.len()), Some(rows));
    }
}

#[test]
fn nobody_waits_for_a_sequence_that_only_decodes() {
    let mut script = Script::new();
    let prompt = script.tokens(20);
    script.arrive(0, prompt.clone(), 100);
    let generated = model::continue_alone(&prompt, &SlotSampling::greedy(), VOCABULARY, 40, &[]);
    script.arrive(50, [prompt, generated].concat(), 2);
    let report = script.run(roomy(8), false);
    let begins = batches(&report).position(|batch| batch.seeds.contains(&2));
    assert_eq!(begins, Some(50));
}

#[test]
fn one_that_does_not_fit_is_not_overtaken_by_a_smaller_one() {
    let mut script = Script::new();
    let (first, large, small) = (script.tokens(20), script.tokens(150), script.tokens(2));
    script.arrive(0, first, 60);
    script.arrive(2, large, 40);
    script.arrive(4, small, 2);
    let order = script.run(SchedulerConfig::new(16, 14, 8, 400), false).admitted;
    assert_eq!(order.iter().map(|id| id.request.0).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn those_that_came_later_are_not_passed_over() {
    let mut script = Script::new();
    let known = script.tokens(40);
    script.arrive(0, known.clone(), 1);
    for _ in 0..80 {
        script.arrive(10, known.clone(), 1);
    }
    script.arrive(10, known[..20].to_vec(), 1);
    script.arrive(10, known, 1);
    let mut config = roomy(1);
    config.queue_policy = QueuePolicy::LongestPrefix;
    let order = script.run(config, false).admitted;
    assert_eq!(order.iter().map(|id| id.request.0).skip(81).collect::<Vec<_>>(), [83, 82]);
}

#[test]
fn retraction_takes_the_one_with_the_fewest_tokens() {
    let mut script = Script::new();
    let (older, newer) = (script.tokens(20), script.tokens(10));
    script.arrive(0, older, 30);
    script.arrive(5, newer, 30);
    let mut config = roomy(4);
    config.retract_every = Some(12);
    let report = script.run(config, false);
    // It comes back with a prefill row, whose place in the batch is behind the decode rows.
    let back = batches(&report).skip(8).find(|batch| batch.rows.len() > batch.decode_rows as usize);
    assert_eq!(back.map(|batch| &batch.seeds[..]), Some(&[1, 2][..]));
}

#[test]
fn a_resumed_sequence_finds_its_own_pages_in_the_cache() {
    let mut script = Script::new();
    let prompt = script.tokens(64);
    script.arrive(0, prompt, 250);
    let mut config = roomy(2);
    config.retract_every = Some(50);
    let stats = script.run(config, false).stats;
    assert!(stats.retractions >= 4);
    // The page that was being filled, and the token that had no KV yet.
    assert!(stats.prefill_tokens <= 64 + stats.retractions * 17, "{stats:?}");
}

#[test]
fn the_longer_nothing_is_retracted_the_more_is_admitted() {
    let mut script = Script::new();
    let (first, second) = (script.tokens(16), script.tokens(16));
    script.arrive(0, first, 600);
    script.arrive(1, second, 180);
    let report = script.run(SchedulerConfig::new(16, 39, 4, 1000), false);
    let begins = batches(&report).position(|batch| batch.seeds.contains(&2));
    assert!(begins.is_some_and(|step| (10..200).contains(&step)), "{begins:?}");
}

fn arrival(request: u64, prompt: Vec<Token>, max_tokens: u32) -> Arrival {
    Arrival {
        id: SequenceId { request: RequestId(request), index: 0 },
        prompt,
        sampling: Arc::new(SlotSampling::greedy()),
        max_tokens,
        stop_tokens: [].into(),
        namespace: Namespace::tenant(0),
        retention: Retention::default(),
        constrained: false,
        speculation: false,
        priority: 0,
        want: PromptWant::Nothing,
    }
}

#[test]
fn what_can_never_run_is_refused_and_leaves_no_trace() {
    let mut config = SchedulerConfig::new(4, 10, 2, 60);
    config.max_waiting = 1;
    let mut scheduler = Scheduler::new(config).unwrap();
    let refusal = |scheduler: &mut Scheduler, arrival| match scheduler
        .apply(Input::Arrive(arrival))
        .unwrap_err()
    {
        InputError::Refused(refusal) => refusal,
        error => panic!("{error}"),
    };
    assert_eq!(refusal(&mut scheduler, arrival(1, vec![], 5)), Refusal::EmptyPrompt);
    assert_eq!(refusal(&mut scheduler, arrival(1, vec![1], 0)), Refusal::NothingToGenerate);
    let too_long = Refusal::PromptTooLong { prompt_len: 60, context_length: 60 };
    assert_eq!(refusal(&mut scheduler, arrival(1, vec![1; 60], 5)), too_long);
    let never_fits = Refusal::NeverFits { needed: 11, capacity: 10 };
    assert_eq!(refusal(&mut scheduler, arrival(1, vec![1; 36], 5)), never_fits);
    assert_eq!(
        refusal(&mut scheduler, arrival(1, vec![1; 36], u32::MAX)),
        Refusal::NeverFits { needed: 15, capacity: 10 }
    );
    assert!(scheduler.is_idle());
    assert!(matches!(scheduler.plan().unwrap(), Plan::Idle));

    scheduler.apply(Input::Arrive(arrival(1, vec![1; 36], 4))).unwrap();
    let full = refusal(&mut scheduler, arrival(2, vec![1], 1));
    assert_eq!(full, Refusal::QueueFull { waiting: 1 });
    assert!(matches!(scheduler.plan().unwrap(), Plan::Launch(_)));
    let id = SequenceId { request: RequestId(1), index: 0 };
    let exists = refusal(&mut scheduler, arrival(1, vec![1], 1));
    assert_eq!(exists, Refusal::Exists(id));
}

#[test]
fn limits_that_can_not_serve_anybody_are_refused() {
    let refused = |config: SchedulerConfig| {
        assert!(
            matches!(Scheduler::new(config.clone()), Err(ScheduleError::Config(_))),
            "{config:?}"
        );
    };
    for (page_size, pages, running, context) in
        [(4, 0, 1, 10), (4, 1, 0, 10), (4, 1, 1, 1), (0, 1, 1, 10)]
    {
        refused(SchedulerConfig::new(page_size, pages, running, context));
    }
    let built = Scheduler::new(SchedulerConfig::new(3, 4, 1, 10));
    assert!(matches!(built, Err(ScheduleError::Pool(_))), "3 is no page size");

    let with = |groups: &[GroupKind], windowed_pages: Option<u32>| {
        let mut config = SchedulerConfig::new(4, 100, 2, 200);
        config.groups = groups.to_vec();
        config.windowed = windowed_pages.map(|pages| WindowedConfig { window: 50, pages });
        config
    };
    refused(with(&[], None));
    refused(with(&[Full, Windowed], None));
    refused(with(&[Full], Some(50)));
    refused(with(&[Full, Windowed], Some(14)));
    let mut enough = with(&[Full, Windowed], Some(15));
    Scheduler::new(enough.clone()).unwrap();
    enough.host_tier = Some(HostTierConfig::new(10));
    refused(enough);
}

fn nothing(error: Option<StepError>) -> Input<'static> {
    Input::Commit { result: Cow::Owned(StepResult::default()), error: error.map(Cow::Owned) }
}

#[test]
fn a_backend_that_breaks_its_contract_is_an_error() {
    let mut scheduler = Scheduler::new(SchedulerConfig::new(4, 10, 2, 40)).unwrap();
    let committed = scheduler.apply(nothing(None)).unwrap_err();
    assert!(matches!(committed, InputError::Schedule(ScheduleError::NothingInFlight)));
    let committed = scheduler.apply(Input::CopiesDone { error: None }).unwrap_err();
    assert!(matches!(committed, InputError::Schedule(ScheduleError::NothingInFlight)));
    scheduler.apply(Input::Arrive(arrival(1, vec![1, 2], 2))).unwrap();
    assert!(matches!(scheduler.plan().unwrap(), Plan::Launch(_)));
    let committed = scheduler.apply(nothing(None)).unwrap_err();
    let InputError::Schedule(error) = committed else { panic!("{committed}") };
    assert!(matches!(error, ScheduleError::Answer { step: 0, output: 0, found: 0, most: 1 }));
}

#[test]
fn lost_kv_ends_the_step_s_sequences_and_no_waiting_one() {
    let mut scheduler = Scheduler::new(SchedulerConfig::new(4, 10, 1, 40)).unwrap();
    scheduler.apply(Input::Arrive(arrival(1, vec![1, 2], 2))).unwrap();
    scheduler.apply(Input::Arrive(arrival(2, vec![3, 4], 2))).unwrap();
    assert!(matches!(scheduler.plan().unwrap(), Plan::Launch(_)));
    let lost = StepError::KvLost { reason: "gone".into() };
    scheduler.apply(nothing(Some(lost))).unwrap();
    assert_eq!(scheduler.tokens(SequenceId { request: RequestId(1), index: 0 }), None);
    assert_eq!(scheduler.stats().waiting, 1);
    assert!(matches!(scheduler.plan().unwrap(), Plan::Launch(_)));
}
