//! What callers can ask of the prefix cache, and what it tells.

use std::time::Duration;

use engine_core::{CacheEvent, Policy};

use crate::support::*;

#[test]
fn a_prefix_that_is_kept_outlives_those_that_came_after_it() {
    let hits = |keep: Option<Duration>| {
        let engine = Shadowed::new(small());
        let mut kept = request(&prompt(1, 60), 1);
        kept.keep_cached_for = keep;
        engine.generate(kept).unwrap();
        // 1024 positions hold about six of these.
        for number in 2..10 {
            engine.generate(request(&prompt(number, 150), 1)).unwrap();
        }
        engine.generate(request(&prompt(1, 60), 1)).unwrap().remove(0).usage.cached_tokens
    };
    assert_eq!(hits(None), 0);
    assert_eq!(hits(Some(Duration::from_secs(3600))), 56);
}

#[test]
fn a_prefix_of_high_priority_outlives_others_under_the_priority_policy() {
    let hits = |priority| {
        let mut options = small();
        options.eviction_policy = Policy::Priority;
        let engine = Shadowed::new(options);
        engine.generate(request(&prompt(1, 60), 1).cache_priority(priority)).unwrap();
        for number in 2..10 {
            engine.generate(request(&prompt(number, 150), 1)).unwrap();
        }
        engine.generate(request(&prompt(1, 60), 1)).unwrap().remove(0).usage.cached_tokens
    };
    assert_eq!(hits(0), 0);
    assert_eq!(hits(1), 56);
}

#[test]
fn cache_events_are_told_in_order_and_a_slow_taker_sees_the_gap() {
    let mut options = small();
    options.cache_events = 4;
    let engine = Shadowed::new(options);
    engine.generate(request(&prompt(1, 60), 1)).unwrap();
    wait_until_idle(&engine);
    let first: Vec<u64> = sequence_numbers(&engine.take_cache_events());
    assert_eq!(first.first(), Some(&0), "{first:?}");
    assert!(engine.take_cache_events().is_empty());

    for number in 2..20 {
        engine.generate(request(&prompt(number, 150), 1)).unwrap();
    }
    wait_until_idle(&engine);
    let later = sequence_numbers(&engine.take_cache_events());
    assert_eq!(later.len(), 4);
    assert!(later.windows(2).all(|pair| pair[1] == pair[0] + 1), "{later:?}");
    assert!(later[0] > first[first.len() - 1] + 1, "no gap: {first:?}, {later:?}");
}

#[test]
fn without_the_cache_requests_share_nothing_but_their_own_samples_do() {
    let mut options = small();
    options.cache = false;
    let engine = Shadowed::new(options);
    let first = engine.submit(request(&prompt(1, 60), 8)).unwrap();
    let second = engine.submit(request(&prompt(1, 60), 8)).unwrap();
    for generation in [first, second] {
        assert_eq!(generation.wait().unwrap()[0].usage.cached_tokens, 0);
    }
    let mut twins = request(&prompt(1, 60), 8);
    twins.sampling.n = 2;
    let outputs = engine.generate(twins).unwrap();
    let cached: u32 = outputs.iter().map(|output| output.usage.cached_tokens).sum();
    assert_eq!(cached, 56);
    // The last token is told before the pages are counted again.
    wait_until_idle(&engine);
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.pages.free, snapshot.pages.capacity);
}

fn sequence_numbers(events: &[CacheEvent]) -> Vec<u64> {
    events.iter().map(|event| event.sequence).collect()
}
