//! What the second tier promises, one promise a test.

use radix_cache::{
    CacheConfig, CacheError, HostTier, Namespace, PageId, RadixCache, Retention, Tier, Token,
    Transfer, WritePolicy,
};

const HOME: Namespace = Namespace::tenant(0);
const PROMPT: [Token; 6] = [1, 2, 3, 4, 5, 6];

fn pages(numbers: core::ops::Range<u32>) -> Vec<PageId> {
    numbers.map(PageId).collect()
}

/// A cache of one-token pages with the prompt on the device.
fn with_prompt(host_pages: u32, write: WritePolicy) -> RadixCache {
    let tier = HostTier::new(host_pages).write(write);
    let config = CacheConfig::default().page_size(1).host_tier(tier);
    let mut cache = RadixCache::new(config).unwrap();
    let lock = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
    let _ = cache.insert(lock, &PROMPT, &pages(0..6), &mut Vec::new()).unwrap();
    cache.release(lock).unwrap();
    cache
}

fn save(cache: &mut RadixCache, tokens: &[Token]) -> Option<Transfer> {
    let lock = cache.acquire(HOME, tokens, &mut Vec::new()).unwrap().lock;
    let transfer = cache.save(lock).unwrap();
    cache.release(lock).unwrap();
    transfer
}

#[test]
fn what_was_saved_can_be_loaded_after_eviction() {
    let mut cache = with_prompt(8, WritePolicy::Through);
    let saved = save(&mut cache, &PROMPT).unwrap();
    assert_eq!((saved.to, &saved.device), (Tier::Host, &pages(0..6)));
    let mut freed = Vec::new();
    assert_eq!(cache.evict(6, &mut freed), 0, "a copy under way holds what it reads");
    cache.confirm(saved.id, &mut freed).unwrap();
    assert_eq!(cache.evict(6, &mut freed), 6);

    let found = cache.probe(HOME, &PROMPT);
    assert_eq!((found.tokens, found.host_tokens), (0, 6));
    let loaded = cache.load(HOME, &PROMPT, &pages(20..24)).unwrap().unwrap();
    assert_eq!((&loaded.device, &loaded.host[..]), (&pages(20..24), &saved.host[..4]));
    let found = cache.probe(HOME, &PROMPT);
    assert_eq!((found.tokens, found.host_tokens), (0, 0), "what is on its way is neither");
    assert!(cache.load(HOME, &PROMPT, &pages(30..34)).unwrap().is_none());

    freed.clear();
    cache.confirm(loaded.id, &mut freed).unwrap();
    assert!(freed.is_empty());
    let found = cache.probe(HOME, &PROMPT);
    assert_eq!((found.tokens, found.host_tokens), (4, 2));
    cache.check_invariants().unwrap();
}

#[test]
fn a_load_that_fails_gives_its_pages_back() {
    let mut cache = with_prompt(8, WritePolicy::Through);
    let saved = save(&mut cache, &PROMPT).unwrap();
    let mut freed = Vec::new();
    cache.confirm(saved.id, &mut freed).unwrap();
    cache.evict(6, &mut freed);
    let loaded = cache.load(HOME, &PROMPT, &pages(20..26)).unwrap().unwrap();
    freed.clear();
    cache.fail(loaded.id, &mut freed).unwrap();
    assert_eq!(freed, pages(20..26));
    assert_eq!(cache.probe(HOME, &PROMPT).host_tokens, 6);
    let unknown = Err(CacheError::UnknownTransfer { transfer: loaded.id });
    assert_eq!(cache.confirm(loaded.id, &mut freed), unknown);
    cache.check_invariants().unwrap();
}

#[test]
fn computed_pages_win_over_loaded_ones() {
    let mut cache = with_prompt(8, WritePolicy::Through);
    let saved = save(&mut cache, &PROMPT).unwrap();
    let mut freed = Vec::new();
    cache.confirm(saved.id, &mut freed).unwrap();
    cache.evict(6, &mut freed);
    let loaded = cache.load(HOME, &PROMPT, &pages(20..26)).unwrap().unwrap();

    let lock = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
    let taken = cache.insert(lock, &PROMPT[..3], &pages(30..33), &mut Vec::new()).unwrap();
    assert_eq!((taken.present_pages, taken.new_pages), (0, 3));
    freed.clear();
    cache.confirm(loaded.id, &mut freed).unwrap();
    assert_eq!(freed, pages(20..23));
    let mut matched = Vec::new();
    let all = cache.acquire(HOME, &PROMPT, &mut matched).unwrap();
    assert_eq!(all.tokens, 6);
    assert_eq!(matched, [30, 31, 32, 23, 24, 25].map(PageId));
    cache.check_invariants().unwrap();
}

#[test]
fn write_back_copies_only_what_has_to_go() {
    let mut cache = with_prompt(8, WritePolicy::Back);
    assert!(save(&mut cache, &PROMPT).is_none());
    let (mut freed, mut ordered) = (Vec::new(), Vec::new());
    // The last two pages go; a copy of them is of no use without what leads to them.
    assert_eq!(cache.demote(2, &mut freed, &mut ordered), Ok(2));
    assert!(freed.is_empty());
    assert_eq!(ordered[0].device, pages(0..6));
    cache.confirm(ordered[0].id, &mut freed).unwrap();
    assert_eq!(freed, pages(4..6));
    let found = cache.probe(HOME, &PROMPT);
    assert_eq!((found.tokens, found.host_tokens), (4, 2));
    // The rest is on the host by now, so it goes at once.
    assert_eq!(cache.demote(4, &mut freed, &mut ordered), Ok(4));
    assert_eq!((freed.len(), ordered.len()), (6, 1));
    cache.check_invariants().unwrap();
}

#[test]
fn a_full_host_refuses_what_does_not_fit() {
    let mut cache = with_prompt(4, WritePolicy::Through);
    assert!(save(&mut cache, &PROMPT).is_none());
    let saved = save(&mut cache, &PROMPT[..4]).unwrap();
    cache.fail(saved.id, &mut Vec::new()).unwrap();
    assert_eq!(cache.counts().host, 0);
    assert!(save(&mut cache, &PROMPT[..4]).is_some(), "a failure gives the room back");
    cache.check_invariants().unwrap();
}

#[test]
fn the_host_keeps_what_is_retained_to_the_last() {
    let mut cache = with_prompt(6, WritePolicy::Through);
    let lock = cache.acquire(HOME, &PROMPT[..3], &mut Vec::new()).unwrap().lock;
    cache.retain(lock, Retention::default().until(10)).unwrap();
    cache.release(lock).unwrap();
    let mut freed = Vec::new();
    let saved = save(&mut cache, &PROMPT).unwrap();
    cache.confirm(saved.id, &mut freed).unwrap();
    cache.evict(6, &mut freed);

    // Another prompt needs three pages of the host, later ones all of them.
    for (prompt, kept) in [([7, 7, 7], 3), ([8, 8, 8], 3), ([9, 9, 9], 0)] {
        if kept == 0 {
            cache.advance(10);
        }
        let lock = cache.acquire(HOME, &[], &mut Vec::new()).unwrap().lock;
        let _ = cache.insert(lock, &prompt, &freed.split_off(freed.len() - 3), &mut Vec::new());
        let saved = cache.save(lock).unwrap().unwrap();
        cache.release(lock).unwrap();
        cache.confirm(saved.id, &mut freed).unwrap();
        cache.evict(3, &mut freed);
        assert_eq!(cache.probe(HOME, &PROMPT).host_tokens, kept);
        cache.check_invariants().unwrap();
    }
}

#[test]
fn nothing_is_saved_before_it_was_hit_often_enough() {
    let mut cache = with_prompt(8, WritePolicy::ThroughAfterHits(2));
    assert!(save(&mut cache, &PROMPT).is_none());
    let saved = save(&mut cache, &PROMPT[..3]).unwrap();
    assert_eq!(saved.device, pages(0..3));
    cache.check_invariants().unwrap();
}

#[test]
fn transfers_die_in_a_reset() {
    let mut cache = with_prompt(8, WritePolicy::Through);
    let saved = save(&mut cache, &PROMPT).unwrap();
    let mut freed = Vec::new();
    cache.reset(&mut freed);
    assert_eq!(freed.len(), 6);
    let unknown = CacheError::UnknownTransfer { transfer: saved.id };
    assert_eq!(cache.fail(saved.id, &mut freed), Err(unknown));
    cache.check_invariants().unwrap();
}
