//! What a sliding window's page group costs: look-ups, locks, eviction and memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use radix_cache::{CacheConfig, Namespace, PageId, RadixCache};

use crate::table::Table;
use crate::{NODES, PROMPT, Pages, cache_path, tokens};

const PAGE: usize = 16;

pub(crate) fn windows(criterion: &mut Criterion, table: &mut Table) {
    for window in [None, Some(1_024), Some(4_096)] {
        probe_and_lock(criterion, table, window);
    }
    evict(criterion, table);
    memory(table);
}

fn new_cache(window: Option<usize>) -> RadixCache {
    let config = CacheConfig::default().page_size(PAGE);
    let config = match window {
        Some(window) => config.windowed_group(window),
        None => config,
    };
    RadixCache::new(config).expect("the page size is valid")
}

fn probe_and_lock(criterion: &mut Criterion, table: &mut Table, window: Option<usize>) {
    let mut cache = new_cache(window);
    let prompt = tokens(1, PROMPT);
    let lock = cache_path(&mut cache, &mut Pages::default(), Namespace::tenant(0), &prompt, NODES);
    if let Some(window) = window {
        let own = Pages::default().take(window / PAGE);
        cache.put_windowed(lock, &own, &mut Vec::new()).expect("the prompt is longer");
    }
    cache.release(lock).expect("held");
    assert_eq!(cache.probe(Namespace::tenant(0), &prompt).tokens, PROMPT);
    let with = match window {
        Some(window) => format!("with a window of {window}"),
        None => "without a window".to_owned(),
    };
    let name = format!("probe 8192 tokens, page {PAGE}, {with}");
    criterion.bench_function(&name, |bencher| {
        bencher.iter(|| black_box(&cache).probe(Namespace::tenant(0), black_box(&prompt)));
    });
    table.measured(&name, 1.0, "");
    let name = format!("lock and unlock 8192 tokens, page {PAGE}, {with}");
    let mut matched = Vec::new();
    criterion.bench_function(&name, |bencher| {
        bencher.iter(|| {
            matched.clear();
            let acquired = cache.acquire(Namespace::tenant(0), &prompt, &mut matched);
            cache.release(acquired.expect("few locks").lock).expect("held");
        });
    });
    table.measured(&name, 1.0, "");
}

/// A prompt of four pages for each number, with two windowed ones in front of its end if asked.
fn serve(cache: &mut RadixCache, pages: &mut Pages, prompts: core::ops::Range<u64>, put: bool) {
    for prompt in prompts {
        let prompt = tokens(prompt + 1, 4 * PAGE);
        let lock =
            cache.acquire(Namespace::tenant(0), &[], &mut Vec::new()).expect("few locks").lock;
        let _ = cache.insert(lock, &prompt, &pages.take(4), &mut Vec::new()).expect("whole pages");
        if put {
            cache.put_windowed(lock, &pages.take(2), &mut Vec::new()).expect("a windowed group");
        }
        cache.release(lock).expect("held");
    }
}

fn evict(criterion: &mut Criterion, table: &mut Table) {
    const BATCH: u64 = 500;
    let (mut cache, mut pages) = (new_cache(Some(2 * PAGE + 1)), Pages::default());
    let mut next = 50_000;
    serve(&mut cache, &mut pages, 0..next, true);
    let mut freed: Vec<PageId> = Vec::new();
    let name = "evict one windowed page of 100000";
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let batch = left.min(BATCH);
                freed.clear();
                let started = Instant::now();
                for _ in 0..batch {
                    cache.evict_windowed(1, &mut freed);
                }
                elapsed += started.elapsed();
                serve(&mut cache, &mut pages, next..next + batch / 2, true);
                next += batch / 2;
                left -= batch;
            }
            elapsed
        });
    });
    table.measured(name, 1.0, "");
}

fn memory(table: &mut Table) {
    const PROMPTS: u64 = 250_000;
    let structure = |window: Option<usize>, put: bool| {
        let mut cache = new_cache(window);
        serve(&mut cache, &mut Pages::default(), 0..PROMPTS, put);
        cache.memory().structure as f64
    };
    let window = Some(2 * PAGE + 1);
    let (without, empty, used) =
        (structure(None, false), structure(window, false), structure(window, true));
    let per = |bytes: f64, pages: u64| format!("{:.0} bytes", bytes / pages as f64);
    table.value("  a windowed group, a full page", per(empty - without, 4 * PROMPTS), "");
    table.value("  a windowed group, a windowed page", per(used - empty, 2 * PROMPTS), "");
}
