//! What the cache promises, one promise a test.

use radix_cache::{CacheConfig, CacheError, Namespace, PageId, RadixCache, Token};

const HOME: Namespace = Namespace::tenant(1);

fn cache(page_size: usize) -> RadixCache {
    RadixCache::new(CacheConfig::default().page_size(page_size)).unwrap()
}

fn pages(numbers: core::ops::Range<u32>) -> Vec<PageId> {
    numbers.map(PageId).collect()
}

/// Caches `tokens` below the given pages and lets go of them.
fn store(cache: &mut RadixCache, namespace: Namespace, tokens: &[Token], numbers: &[PageId]) {
    let mut matched = Vec::new();
    let acquired = cache.acquire(namespace, tokens, &mut matched).unwrap();
    let rest = &numbers[matched.len()..];
    let mut canonical = Vec::new();
    let tokens = &tokens[acquired.tokens..];
    let inserted = cache.insert(acquired.lock, tokens, rest, &mut canonical).unwrap();
    assert_eq!(inserted.present_pages, 0);
    cache.release(acquired.lock).unwrap();
    cache.check_invariants().unwrap();
}

#[test]
fn page_sizes_are_powers_of_two_up_to_512() {
    for page_size in 0..1100 {
        let built = RadixCache::new(CacheConfig::default().page_size(page_size));
        if [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].contains(&page_size) {
            assert_eq!(built.unwrap().page_size(), page_size);
        } else {
            assert_eq!(built.unwrap_err(), CacheError::PageSize { page_size });
        }
    }
}

#[test]
fn equal_prompts_admitted_together_are_stored_once() {
    let mut cache = cache(2);
    let prompt = [5, 5, 6, 6, 7, 7];
    let mut matched = Vec::new();
    let first = cache.acquire(HOME, &prompt, &mut matched).unwrap();
    let second = cache.acquire(HOME, &prompt, &mut matched).unwrap();
    assert!(matched.is_empty());

    let mut canonical = Vec::new();
    let taken = cache.insert(first.lock, &prompt, &pages(10..13), &mut canonical).unwrap();
    assert_eq!((taken.present_pages, taken.new_pages), (0, 3));
    assert!(canonical.is_empty());

    // The second has computed one page more than the first.
    let longer = [5, 5, 6, 6, 7, 7, 8, 8];
    let taken = cache.insert(second.lock, &longer, &pages(20..24), &mut canonical).unwrap();
    assert_eq!((taken.present_pages, taken.new_pages), (3, 1));
    assert_eq!(canonical, pages(10..13));
    assert_eq!(cache.locked_tokens(first.lock), Ok(6));
    assert_eq!(cache.locked_tokens(second.lock), Ok(8));
    cache.check_invariants().unwrap();
}

#[test]
fn locked_prefix_survives_eviction() {
    let mut cache = cache(2);
    store(&mut cache, HOME, &[1, 1, 2, 2, 3, 3, 4, 4], &pages(0..4));
    let mut matched = Vec::new();
    let held = cache.acquire(HOME, &[1, 1, 2, 2, 9, 9], &mut matched).unwrap();
    assert_eq!(matched, pages(0..2));

    let mut freed = Vec::new();
    assert_eq!(cache.evict(usize::MAX, &mut freed), 2);
    assert_eq!(freed, pages(2..4));
    assert_eq!(cache.probe(HOME, &[1, 1, 2, 2, 3, 3]).tokens, 4);
    cache.release(held.lock).unwrap();
    assert_eq!(cache.evict(usize::MAX, &mut freed), 2);
    assert_eq!(cache.counts().total, 0);
    cache.check_invariants().unwrap();
}

#[test]
fn a_leaf_is_trimmed_from_its_tail() {
    let mut cache = cache(1);
    store(&mut cache, HOME, &[1, 2, 3, 4, 5], &pages(0..5));
    let mut freed = Vec::new();
    assert_eq!(cache.evict(2, &mut freed), 2);
    assert_eq!(freed, pages(3..5));
    assert_eq!(cache.probe(HOME, &[1, 2, 3, 4, 5]).tokens, 3);
    cache.check_invariants().unwrap();
}

#[test]
fn the_leaf_that_nobody_used_for_longest_goes_first() {
    let mut cache = cache(1);
    store(&mut cache, HOME, &[1, 1], &pages(0..2));
    store(&mut cache, HOME, &[1, 2], &[PageId(0), PageId(2)]);
    store(&mut cache, HOME, &[3], &pages(3..4));
    // A use of the first leaf; a probe is none.
    store(&mut cache, HOME, &[1, 1], &pages(0..2));
    assert_eq!(cache.probe(HOME, &[1, 2]).tokens, 2);
    let mut freed = Vec::new();
    cache.evict(4, &mut freed);
    assert_eq!(freed, [2, 3, 1, 0].map(PageId));
}

#[test]
fn releasing_twice_is_an_error() {
    let mut cache = cache(1);
    let lock = cache.acquire(HOME, &[1], &mut Vec::new()).unwrap().lock;
    let fork = cache.fork(lock).unwrap();
    cache.release(lock).unwrap();
    let unknown = CacheError::UnknownLock { lock };
    assert_eq!(cache.release(lock), Err(unknown.clone()));
    assert_eq!(cache.fork(lock), Err(unknown.clone()));
    assert_eq!(cache.locked_tokens(lock), Err(unknown.clone()));
    assert_eq!(cache.release_and_drop(lock, &mut Vec::new()), Err(unknown.clone()));
    assert_eq!(cache.insert(lock, &[], &[], &mut Vec::new()), Err(unknown.clone()));

    // The slot is used again; the old id still is nobody's.
    let next = cache.acquire(HOME, &[1], &mut Vec::new()).unwrap().lock;
    assert_ne!(next, lock);
    assert_eq!(cache.release(lock), Err(unknown));
    cache.release(fork).unwrap();
    cache.release(next).unwrap();
    cache.check_invariants().unwrap();
}

#[test]
fn locks_from_before_a_split_hold_what_they_held() {
    let mut cache = cache(1);
    let long = cache.acquire(HOME, &[1, 2, 3, 4], &mut Vec::new()).unwrap().lock;
    let _ = cache.insert(long, &[1, 2, 3, 4], &pages(0..4), &mut Vec::new()).unwrap();
    let short = cache.acquire(HOME, &[1, 2, 9], &mut Vec::new()).unwrap().lock;
    cache.check_invariants().unwrap();
    cache.release(short).unwrap();
    assert_eq!(cache.counts().locked, 4);
    assert_eq!(cache.locked_tokens(long), Ok(4));
    assert_eq!(cache.evict(4, &mut Vec::new()), 0);
    cache.check_invariants().unwrap();
}

#[test]
fn every_lock_dies_in_a_reset() {
    let mut cache = cache(1);
    store(&mut cache, HOME, &[1, 2], &pages(0..2));
    let lock = cache.acquire(HOME, &[1], &mut Vec::new()).unwrap().lock;
    let mut freed = Vec::new();
    cache.reset(&mut freed);
    freed.sort();
    assert_eq!(freed, pages(0..2));
    assert_eq!(cache.release(lock), Err(CacheError::UnknownLock { lock }));
    assert_eq!(cache.probe(HOME, &[1, 2]).tokens, 0);
    cache.check_invariants().unwrap();
    store(&mut cache, HOME, &[1, 2], &pages(0..2));
    assert_eq!(cache.release(lock), Err(CacheError::UnknownLock { lock }));
}

#[test]
fn namespaces_never_match_each_other() {
    let mut cache = cache(1);
    store(&mut cache, HOME, &[1, 2, 3], &pages(0..3));
    assert_eq!(cache.probe(Namespace::tenant(2), &[1, 2, 3]).tokens, 0);
    store(&mut cache, Namespace::tenant(2), &[1, 2, 3], &pages(3..6));
    assert_eq!(cache.probe(HOME.salted(2), &[1, 2, 3]).tokens, 0);
    store(&mut cache, HOME.salted(2), &[1, 2, 3], &pages(6..9));
    assert_eq!(cache.counts().total, 9);
}

#[test]
fn runs_that_do_not_fill_their_pages_are_refused() {
    let mut cache = cache(4);
    let lock = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
    let refused = cache.insert(lock, &[1, 2, 3], &pages(0..1), &mut Vec::new());
    assert_eq!(refused, Err(CacheError::RaggedRun { tokens: 3, pages: 1, page_size: 4 }));
    assert_eq!(cache.counts().total, 0);
    cache.check_invariants().unwrap();
}

#[test]
fn the_number_that_stands_for_no_page_is_refused() {
    let mut cache = cache(1);
    let lock = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
    let refused = cache.insert(lock, &[1], &[PageId(u32::MAX)], &mut Vec::new());
    assert_eq!(refused, Err(CacheError::ReservedPage));
    assert_eq!(cache.load(HOME, &[1], &[PageId(u32::MAX)]), Err(CacheError::ReservedPage));
    cache.check_invariants().unwrap();
}

#[test]
fn a_page_can_not_be_inserted_over_itself() {
    let mut cache = cache(1);
    store(&mut cache, HOME, &[1, 2], &pages(0..2));
    let lock = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
    let mut canonical = Vec::new();
    let refused = cache.insert(lock, &[1, 2, 3], &pages(0..3), &mut canonical);
    assert_eq!(refused, Err(CacheError::PageAlreadyCached { page: PageId(0) }));
    assert!(canonical.is_empty());
    assert_eq!(cache.counts().total, 2);
    cache.check_invariants().unwrap();
}

#[test]
fn without_caching_a_sequence_leaves_only_what_others_use() {
    let mut cache = cache(1);
    let first = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
    let _ = cache.insert(first, &[1, 2], &pages(0..2), &mut Vec::new()).unwrap();
    let second = cache.fork(first).unwrap();
    let _ = cache.insert(first, &[3], &pages(2..3), &mut Vec::new()).unwrap();
    let _ = cache.insert(second, &[4, 5], &pages(3..5), &mut Vec::new()).unwrap();
    let mut freed = Vec::new();
    assert_eq!(cache.release_and_drop(first, &mut freed), Ok(1));
    assert_eq!(freed, pages(2..3));
    assert_eq!(cache.release_and_drop(second, &mut freed), Ok(4));
    assert_eq!(cache.counts().total, 0);
    cache.check_invariants().unwrap();
}

#[test]
fn clear_keeps_what_is_locked() {
    let mut cache = cache(1);
    store(&mut cache, HOME, &[1, 2, 3], &pages(0..3));
    store(&mut cache, Namespace::tenant(9), &[1, 2, 3], &pages(3..6));
    let lock = cache.acquire(HOME, &[1], &mut Vec::new()).unwrap().lock;
    let mut freed = Vec::new();
    cache.clear(&mut freed);
    assert_eq!(freed.len(), 5);
    assert_eq!(cache.locked_tokens(lock), Ok(1));
    assert_eq!(cache.probe(HOME, &[1, 2, 3]).tokens, 1);
    cache.check_invariants().unwrap();
}

/// Caches enough siblings that some share all 32 bits of their hash (300,000 make about ten
/// pairs), and counts the look-ups that find another one's page.
fn mistaken_siblings(mut cache: RadixCache) -> usize {
    const SIBLINGS: u32 = 300_000;
    let mut mistakes = 0;
    for token in 0..SIBLINGS {
        let mut canonical = Vec::new();
        let lock = cache.acquire(HOME, &[], &mut canonical).unwrap().lock;
        let _ = cache.insert(lock, &[token], &[PageId(token)], &mut canonical).unwrap();
        mistakes += canonical.len();
        cache.release(lock).unwrap();
    }
    let mut matched = Vec::new();
    for token in 0..2 * SIBLINGS {
        matched.clear();
        let lock = cache.acquire(HOME, &[token], &mut matched).unwrap().lock;
        let expected = (token < SIBLINGS).then_some(PageId(token));
        mistakes += usize::from(matched.first().copied() != expected);
        cache.release(lock).unwrap();
    }
    mistakes
}

#[test]
fn a_hash_collision_never_serves_another_prompt() {
    assert_eq!(mistaken_siblings(cache(1)), 0);
}
