//! The tree against a naive cache, over random operations.
//!
//! `RADIX_CACHE_OPERATIONS` sets how many operations each setup runs (20,000 unless told
//! otherwise), and `RADIX_CACHE_SEED` the seed of the first run. A failure names its seed and its
//! operation.

mod choices;
mod drive;
mod follower;
mod model;
mod prompts;
mod transfers;
mod windows;

use std::env;

use radix_cache::{Policy, WritePolicy};

use crate::choices::Seed;
use crate::drive::{Driver, Setup};

/// A fresh cache every so often, so that early states are seen as often as worn ones.
const OPERATIONS_A_RUN: usize = 2_000;

fn from_environment(name: &str, default: u64) -> u64 {
    env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

/// Runs one setup for as many operations as asked for, split evenly over `shares` setups. Returns
/// how many tokens matched, and how many more would have if their windowed pages had been there.
fn agree(setup: Setup, shares: usize) -> (u64, u64) {
    let operations = from_environment("RADIX_CACHE_OPERATIONS", 20_000) as usize / shares;
    let first = from_environment("RADIX_CACHE_SEED", 1);
    let mut left = operations;
    let mut seed = first;
    let (mut hit, mut out_of_window) = (0, 0);
    while left > 0 {
        let run = left.min(OPERATIONS_A_RUN);
        let mut driver = Driver::new(setup);
        if let Err(difference) = driver.run(&mut Seed(seed), run) {
            panic!("{setup:?}, RADIX_CACHE_SEED={seed}: {difference}");
        }
        hit += driver.cache.statistics().tokens_hit;
        out_of_window += driver.cache.statistics().tokens_out_of_window;
        left -= run;
        seed += 1;
    }
    println!("{setup:?}: {operations} operations agree, seeds {first}..{seed}");
    println!("  {hit} tokens matched, {out_of_window} more had lost their window");
    (hit, out_of_window)
}

fn agree_at_page_size(page_size: usize) {
    for policy in Policy::ALL {
        agree(
            Setup { page_size, policy, events: true, host: None, window: None },
            Policy::ALL.len(),
        );
    }
}

#[test]
fn pages_of_1_token_agree_with_the_naive_cache() {
    agree_at_page_size(1);
}

#[test]
fn pages_of_4_tokens_agree_with_the_naive_cache() {
    agree_at_page_size(4);
}

#[test]
fn pages_of_16_tokens_agree_with_the_naive_cache() {
    agree_at_page_size(16);
}

#[test]
fn pages_of_128_tokens_agree_with_the_naive_cache() {
    agree_at_page_size(128);
}

#[test]
fn every_policy_agrees_with_the_naive_cache() {
    for policy in Policy::ALL {
        agree(Setup { page_size: 1, policy, events: false, host: None, window: None }, 1);
    }
}

#[test]
fn two_tiers_agree_with_the_naive_cache() {
    let writes = [WritePolicy::Through, WritePolicy::ThroughAfterHits(2), WritePolicy::Back];
    for page_size in [1, 4, 16, 128] {
        for write in writes {
            let host = Some((Policy::Lru, write));
            agree(
                Setup { page_size, policy: Policy::Lru, events: true, host, window: None },
                writes.len(),
            );
        }
    }
}

#[test]
fn two_tiers_of_every_policy_agree_with_the_naive_cache() {
    for (number, policy) in Policy::ALL.into_iter().enumerate() {
        // Each with itself, and with one that asks for something else.
        for other in [policy, Policy::ALL[(number + 1) % Policy::ALL.len()]] {
            let host = Some((other, WritePolicy::Through));
            agree(Setup { page_size: 1, policy, events: false, host, window: None }, 2);
        }
    }
}

#[test]
fn page_groups_agree_with_the_naive_cache() {
    for page_size in [1, 4, 16, 128] {
        for policy in Policy::ALL {
            let window = Some(2 * page_size + 1);
            let setup = Setup { page_size, policy, events: true, host: None, window };
            let (hit, out_of_window) = agree(setup, Policy::ALL.len());
            // Both have to happen, or nothing was shown.
            assert!(hit > 0 && out_of_window > 0, "{hit} and {out_of_window} tokens");
        }
    }
}

#[test]
fn page_groups_of_every_policy_agree_with_the_naive_cache() {
    for policy in Policy::ALL {
        agree(Setup { page_size: 1, policy, events: false, host: None, window: Some(4) }, 1);
    }
}

#[test]
fn windows_of_every_size_agree_with_the_naive_cache() {
    // Nothing but the token itself, less than a page, up to a page's border and one beyond it, and
    // more than any prompt has.
    let windows = [1, 2, 4, 5, 6, 9, 12, 13, 1_000];
    for window in windows {
        let (policy, window) = (Policy::Lru, Some(window));
        let setup = Setup { page_size: 4, policy, events: false, host: None, window };
        agree(setup, windows.len());
    }
}
