//! What the windowed group promises, one promise a test.

use radix_cache::{
    CacheConfig, CacheError, Change, HostTier, LockId, Namespace, PageGroup, PageId, RadixCache,
    Retention, Snapshot, Token,
};

const HOME: Namespace = Namespace::tenant(0);
const PROMPT: [Token; 6] = [1, 2, 3, 4, 5, 6];

fn pages(numbers: core::ops::Range<u32>) -> Vec<PageId> {
    numbers.map(PageId).collect()
}

/// One-token pages; a token attends to itself and the two before it.
fn config() -> CacheConfig {
    CacheConfig::default().page_size(1).windowed_group(3)
}

/// Computes a prompt that is not cached, and keeps the last `windowed` windowed pages.
fn serve(cache: &mut RadixCache, prompt: &[Token], first: u32, windowed: u32) -> LockId {
    let end = first + prompt.len() as u32;
    let lock = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
    let _ = cache.insert(lock, prompt, &pages(first..end), &mut Vec::new()).unwrap();
    let mut canonical = Vec::new();
    let put = cache.put_windowed(lock, &pages(end - windowed..end), &mut canonical);
    assert_eq!(put, Ok(windowed as usize));
    assert_eq!(canonical, pages(end - windowed..end));
    cache.check_invariants().unwrap();
    lock
}

/// A cache that holds the prompt with all its pages, and nobody to hold it.
fn with_prompt() -> RadixCache {
    let mut cache = RadixCache::new(config()).unwrap();
    let lock = serve(&mut cache, &PROMPT, 0, 6);
    cache.release(lock).unwrap();
    cache
}

fn evict_windowed(cache: &mut RadixCache, count: usize) -> Vec<PageId> {
    let mut freed = Vec::new();
    assert_eq!(cache.evict_windowed(count, &mut freed), freed.len());
    cache.check_invariants().unwrap();
    freed
}

/// The prefixes of the prompt that can be used, by their length.
fn usable(cache: &RadixCache) -> Vec<usize> {
    let lengths = 1..=PROMPT.len();
    lengths.filter(|&length| cache.probe(HOME, &PROMPT[..length]).tokens == length).collect()
}

#[test]
fn what_fell_out_of_the_window_is_released_while_the_full_pages_stay() {
    let mut cache = with_prompt();
    assert_eq!(usable(&cache), [1, 2, 3, 4, 5, 6]);
    // From the front, the start of the prompt last: 2 and 3 are outside of both windows.
    assert_eq!(evict_windowed(&mut cache, 2), pages(2..4));
    assert_eq!(usable(&cache), [1, 2, 6]);
    assert_eq!(cache.counts().total, 6);
    assert_eq!(cache.counts().windowed.total, 4);
    assert_eq!(cache.take_freed_windowed().count(), 0);
}

#[test]
fn a_match_ends_where_its_window_is_there() {
    let mut cache = with_prompt();
    evict_windowed(&mut cache, 2);
    let mut full = Vec::new();
    let acquired = cache.acquire(HOME, &PROMPT[..5], &mut full).unwrap();
    assert_eq!((acquired.tokens, full), (2, pages(0..2)));
    let mut windowed = Vec::new();
    assert_eq!(cache.windowed_pages(acquired.lock, &mut windowed), Ok(0));
    assert_eq!(windowed, pages(0..2));

    let whole = cache.acquire(HOME, &PROMPT, &mut Vec::new()).unwrap();
    assert_eq!(whole.tokens, 6);
    windowed.clear();
    assert_eq!(cache.windowed_pages(whole.lock, &mut windowed), Ok(4));
    assert_eq!(windowed, pages(4..6));
    assert_eq!(cache.statistics().tokens_out_of_window, 3);
}

#[test]
fn a_lock_holds_the_window_before_its_end_and_no_more() {
    let mut cache = RadixCache::new(config()).unwrap();
    let lock = serve(&mut cache, &PROMPT[..4], 0, 4);
    let counts = cache.counts();
    assert_eq!((counts.locked, counts.windowed.locked, counts.windowed.evictable), (4, 2, 2));
    assert_eq!(evict_windowed(&mut cache, 100), [1, 0].map(PageId));

    // The window moves with the lock.
    let _ = cache.insert(lock, &PROMPT[4..5], &pages(4..5), &mut Vec::new()).unwrap();
    assert_eq!(cache.put_windowed(lock, &pages(4..5), &mut Vec::new()), Ok(1));
    assert_eq!(evict_windowed(&mut cache, 100), pages(2..3));
    let fork = cache.fork(lock).unwrap();
    cache.release(lock).unwrap();
    assert_eq!(evict_windowed(&mut cache, 100), []);
    cache.release(fork).unwrap();
    assert_eq!(evict_windowed(&mut cache, 100).len(), 2);
    assert_eq!(cache.counts().total, 5);
}

#[test]
fn who_computes_a_hole_again_fills_it() {
    let mut cache = with_prompt();
    // What was only passed by, and half of the window at the end.
    assert_eq!(evict_windowed(&mut cache, 5), [2, 3, 1, 0, 4].map(PageId));
    assert!(usable(&cache).is_empty());

    let acquired = cache.acquire(HOME, &PROMPT, &mut Vec::new()).unwrap();
    assert_eq!(acquired.tokens, 0);
    let mut canonical = Vec::new();
    let inserted = cache.insert(acquired.lock, &PROMPT, &pages(10..16), &mut canonical).unwrap();
    assert_eq!((inserted.present_pages, &canonical), (6, &pages(0..6)));
    canonical.clear();
    assert_eq!(cache.put_windowed(acquired.lock, &pages(20..23), &mut canonical), Ok(2));
    assert_eq!(canonical, [20, 21, 5].map(PageId));
    cache.release(acquired.lock).unwrap();
    assert_eq!(usable(&cache), [5, 6]);
    cache.check_invariants().unwrap();
}

#[test]
fn of_two_that_computed_the_same_one_is_told_of_its_duplicates() {
    let mut cache = RadixCache::new(config()).unwrap();
    let second = cache.acquire(HOME, &PROMPT, &mut Vec::new()).unwrap().lock;
    let first = serve(&mut cache, &PROMPT, 0, 2);
    let mut canonical = Vec::new();
    let _ = cache.insert(second, &PROMPT, &pages(10..16), &mut canonical).unwrap();
    assert_eq!(canonical, pages(0..6));
    canonical.clear();
    // The first had let go of the page at 3 when it inserted.
    assert_eq!(cache.put_windowed(second, &pages(13..16), &mut canonical), Ok(1));
    assert_eq!(canonical, [13, 4, 5].map(PageId));
    let statistics = cache.statistics();
    assert_eq!((statistics.windowed_inserted, statistics.windowed_duplicate), (3, 2));
    cache.release(first).unwrap();
    cache.release(second).unwrap();
    cache.check_invariants().unwrap();
}

#[test]
fn evicting_a_full_page_takes_its_windowed_page_along() {
    let mut cache = with_prompt();
    let mut freed = Vec::new();
    assert_eq!(cache.evict(2, &mut freed), 2);
    assert_eq!(freed, pages(4..6));
    assert_eq!(cache.take_freed_windowed().collect::<Vec<_>>(), pages(4..6));
    assert_eq!(cache.counts().windowed.total, 4);

    let lock = cache.acquire(HOME, &PROMPT, &mut Vec::new()).unwrap().lock;
    cache.clear(&mut freed);
    let mut left: Vec<PageId> = cache.take_freed_windowed().collect();
    left.sort();
    assert_eq!((left, cache.counts().windowed.locked), (pages(0..2), 2));
    assert_eq!(cache.release_and_drop(lock, &mut freed), Ok(4));
    assert_eq!(cache.take_freed_windowed().count(), 2);
    cache.check_invariants().unwrap();
}

#[test]
fn the_loss_of_the_kv_gives_all_windowed_pages_back() {
    let mut cache = with_prompt();
    let lock = cache.acquire(HOME, &PROMPT, &mut Vec::new()).unwrap().lock;
    cache.reset(&mut Vec::new());
    assert_eq!(cache.take_freed_windowed().count(), 6);
    assert_eq!(cache.statistics().windowed_removed, 6);
    let unknown = CacheError::UnknownLock { lock };
    assert_eq!(cache.windowed_pages(lock, &mut Vec::new()), Err(unknown.clone()));
    assert_eq!(cache.put_windowed(lock, &[], &mut Vec::new()), Err(unknown));
    cache.check_invariants().unwrap();
}

#[test]
fn what_windows_passed_by_goes_before_the_end_of_a_parked_prompt() {
    let mut cache = with_prompt();
    evict_windowed(&mut cache, 4);
    assert_eq!(usable(&cache), [6]);
    // Later, and still running: everything but its window was only passed by.
    let busy = serve(&mut cache, &[7; 5], 10, 5);
    assert_eq!(evict_windowed(&mut cache, 3), [12, 11, 10].map(PageId));
    assert_eq!(usable(&cache), [6]);
    cache.release(busy).unwrap();
    // Both are ends now; the parked one has not been used for longer.
    assert_eq!(evict_windowed(&mut cache, 2), pages(4..6));
}

#[test]
fn a_short_prompt_keeps_its_shorter_prefixes_to_the_last() {
    let mut cache = RadixCache::new(CacheConfig::default().page_size(1).windowed_group(9)).unwrap();
    let lock = serve(&mut cache, &PROMPT, 0, 6);
    cache.release(lock).unwrap();
    for left in (1..6).rev() {
        assert_eq!(evict_windowed(&mut cache, 1), [PageId(left)]);
        assert_eq!(usable(&cache), (1..=left as usize).collect::<Vec<_>>());
    }
}

#[test]
fn a_retained_window_goes_last_until_its_time_is_over() {
    let mut cache = with_prompt();
    let lock = cache.acquire(HOME, &PROMPT, &mut Vec::new()).unwrap().lock;
    cache.retain(lock, Retention::default().until(5)).unwrap();
    cache.release(lock).unwrap();
    let other = serve(&mut cache, &[7; 2], 10, 2);
    cache.release(other).unwrap();
    let restored = RadixCache::restore(config(), &cache.snapshot()).unwrap();
    for mut cache in [cache, restored] {
        let freed = evict_windowed(&mut cache, 6);
        assert!(freed.contains(&PageId(10)) && freed.contains(&PageId(11)), "{freed:?}");
        assert_eq!(cache.probe(HOME, &PROMPT).tokens, 6);
        let last = serve(&mut cache, &[8; 2], 20, 2);
        cache.release(last).unwrap();
        cache.advance(5);
        assert_eq!(evict_windowed(&mut cache, 2), pages(4..6));
    }
}

#[test]
fn events_name_the_group() {
    let mut cache = RadixCache::new(config().events(100)).unwrap();
    let lock = serve(&mut cache, &PROMPT, 0, 2);
    cache.release(lock).unwrap();
    assert_eq!(cache.dump_events().len(), 2);
    evict_windowed(&mut cache, 1);
    let changes: Vec<_> = cache.drain_events().map(|event| event.change).collect();
    let [Change::Stored(full), Change::Stored(windowed), Change::Removed { group, hashes, .. }] =
        &changes[..]
    else {
        panic!("{changes:?}")
    };
    assert_eq!((full.group, full.start, full.hashes.len()), (PageGroup::Full, 0, 6));
    assert_eq!((windowed.group, windowed.start), (PageGroup::Windowed, 4));
    assert_eq!((&windowed.tokens[..], &windowed.hashes[..]), (&PROMPT[4..], &full.hashes[4..]));
    assert_eq!(windowed.parent, Some(full.hashes[3]));
    assert_eq!((*group, &hashes[..]), (PageGroup::Windowed, &full.hashes[4..5]));
}

#[test]
fn exports_count_windowed_pages() {
    let mut cache = with_prompt();
    evict_windowed(&mut cache, 2);
    assert!(cache.to_dot().contains("6 pages, 4 windowed, 0 pins"), "{}", cache.to_dot());
    let json: serde_json::Value = serde_json::from_str(&cache.to_json()).unwrap();
    assert_eq!(json["nodes"][0]["windowed"], 4);
    assert_eq!(cache.shape().pages.windowed.evictable, 4);
}

#[test]
fn windows_that_make_no_sense_are_refused() {
    let refused = RadixCache::new(CacheConfig::default().windowed_group(0)).unwrap_err();
    assert_eq!(refused, CacheError::EmptyWindow);
    let with_host = CacheConfig::default().windowed_group(8).host_tier(HostTier::new(4));
    assert_eq!(RadixCache::new(with_host).unwrap_err(), CacheError::WindowWithHostTier);
}

#[test]
fn without_a_windowed_group_there_is_nothing_to_put_or_take() {
    let mut cache = RadixCache::new(CacheConfig::default()).unwrap();
    let lock = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
    let none = CacheError::NoWindowedGroup;
    assert_eq!(cache.put_windowed(lock, &[], &mut Vec::new()), Err(none.clone()));
    assert_eq!(cache.windowed_pages(lock, &mut Vec::new()), Err(none));
    assert_eq!(cache.evict_windowed(1, &mut Vec::new()), 0);
    assert_eq!(cache.take_freed_windowed().count(), 0);
}

#[test]
fn snapshots_with_windowed_pages_that_make_no_sense_are_refused() {
    let good = with_prompt().snapshot();
    let refused = |change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = good.clone();
        change(&mut snapshot);
        RadixCache::restore(config(), &snapshot).is_err()
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|snapshot| snapshot.nodes[0].windowed[0].place = 6));
    assert!(refused(&|snapshot| snapshot.nodes[0].windowed[0].place = 1));
    assert!(refused(&|snapshot| snapshot.nodes[0].windowed[0].page = PageId(1)));
    assert!(refused(&|snapshot| snapshot.nodes[0].windowed[0].page = PageId(u32::MAX)));
    assert!(refused(&|snapshot| snapshot.windowed_clock = 0));
    let without = CacheConfig::default().page_size(1);
    assert!(RadixCache::restore(without, &good).is_err());
}
