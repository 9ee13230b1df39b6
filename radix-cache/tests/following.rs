//! Events, snapshots and exports: what others see of a cache.

use radix_cache::{
    CacheConfig, CacheError, Change, Namespace, PageId, RadixCache, Snapshot, Token, page_hash,
};

fn cache_with_two_branches(config: CacheConfig) -> RadixCache {
    let mut cache = RadixCache::new(config.page_size(2)).unwrap();
    let mut next = 0;
    for (namespace, prompt) in [(3, [1, 1, 2, 2, 3, 3]), (3, [1, 1, 2, 2, 4, 4]), (0, [9; 6])] {
        let mut matched = Vec::new();
        let acquired = cache.acquire(Namespace::tenant(namespace), &prompt, &mut matched).unwrap();
        let rest: &[Token] = &prompt[acquired.tokens..];
        let pages: Vec<PageId> = (next..).take(rest.len() / 2).map(PageId).collect();
        next += pages.len() as u32;
        let _ = cache.insert(acquired.lock, rest, &pages, &mut matched).unwrap();
        cache.release(acquired.lock).unwrap();
    }
    cache
}

#[test]
fn the_page_hash_is_xxh3_of_little_endian_tokens() {
    // Computed with the reference implementation: xxh3_64 with seed 0 of the bytes 01 00 00 00
    // 02 00 00 00 03 00 00 00 04 00 00 00, and of 05 00 00 00 with that as its seed.
    let first = page_hash(0, &[1, 2, 3, 4]);
    assert_eq!(first, 0x6FC1EBD4F4D6EA31);
    assert_eq!(page_hash(first, &[5]), 0xF9BCBB0938CFDE07);
    // The seed of a prompt's first page: the tenant, and with a salt the hash of its 8 bytes.
    assert_eq!(Namespace::tenant(7).seed(), 7);
    assert_eq!(Namespace::tenant(0).salted(0x2_0000_0001).seed(), page_hash(0, &[1, 2]));
    // More than a page can hold is hashed all the same.
    let long: Vec<Token> = (0..600).collect();
    assert_ne!(page_hash(0, &long), page_hash(0, &long[..512]));
}

#[test]
fn a_full_buffer_shows_as_a_gap() {
    let mut cache = cache_with_two_branches(CacheConfig::default().events(2));
    let sequences: Vec<u64> = cache.drain_events().map(|event| event.sequence).collect();
    assert_eq!(sequences, [1, 2]);
    assert_eq!(cache.next_event(), 3);
    assert_eq!(cache.drain_events().count(), 0);
    assert_eq!(cache.dump_events().len(), 4);
}

#[test]
fn events_name_parent_namespace_and_place() {
    let mut cache = cache_with_two_branches(CacheConfig::default().events(100));
    let events: Vec<_> = cache.drain_events().map(|event| event.change).collect();
    let Change::Stored(branch) = &events[1] else { panic!("{events:?}") };
    let above = page_hash(page_hash(3, &[1, 1]), &[2, 2]);
    assert_eq!(
        (branch.parent, branch.start, branch.namespace),
        (Some(above), 4, Namespace::tenant(3))
    );
    assert_eq!((&branch.tokens[..], branch.hashes.len(), branch.page_size), (&[4, 4][..], 1, 2));

    cache.evict(1, &mut Vec::new());
    let removed: Vec<_> = cache.drain_events().map(|event| event.change).collect();
    let [Change::Removed { hashes, namespace, .. }] = &removed[..] else { panic!("{removed:?}") };
    assert_eq!((*namespace, &hashes[..]), (Namespace::tenant(3), &[page_hash(above, &[3, 3])][..]));
    cache.reset(&mut Vec::new());
    assert_eq!(cache.drain_events().last().unwrap().change, Change::Cleared);
}

#[test]
fn without_events_nothing_is_told() {
    let mut cache = cache_with_two_branches(CacheConfig::default());
    assert_eq!(cache.drain_events().count(), 0);
    assert!(cache.dump_events().is_empty());
}

#[test]
fn exports_collapse_long_runs() {
    let mut cache = cache_with_two_branches(CacheConfig::default());
    let long: Vec<Token> = (100..140).collect();
    let lock = cache.acquire(Namespace::tenant(5), &[], &mut Vec::new()).unwrap().lock;
    let pages: Vec<PageId> = (50..70).map(PageId).collect();
    let _ = cache.insert(lock, &long, &pages, &mut Vec::new()).unwrap();

    let dot = cache.to_dot();
    assert!(dot.contains("100 101 102 103 … 32 … 136 137 138 139\\n20 pages, 1 pins"), "{dot}");
    assert_eq!(dot.matches("->").count(), cache.shape().nodes);

    let json: serde_json::Value = serde_json::from_str(&cache.to_json()).unwrap();
    let nodes = json["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), cache.shape().nodes);
    let pages: u64 = nodes.iter().map(|node| node["pages"].as_u64().unwrap()).sum();
    assert_eq!(pages as usize, cache.counts().total);
    let ids: Vec<_> = nodes.iter().map(|node| &node["id"]).collect();
    for (place, node) in nodes.iter().enumerate() {
        assert!(node["parent"].is_null() || ids[..place].contains(&&node["parent"]));
    }
}

#[test]
fn the_shape_counts_what_is_there() {
    let cache = cache_with_two_branches(CacheConfig::default());
    let shape = cache.shape();
    assert_eq!((shape.namespaces, shape.nodes, shape.leaves), (2, 4, 3));
    assert_eq!((shape.depth, shape.longest_prefix, shape.pages.total), (2, 6, 7));
    let statistics = cache.statistics();
    assert_eq!((statistics.requests, statistics.requests_hit), (3, 1));
    assert_eq!((statistics.tokens, statistics.tokens_hit), (18, 4));
    assert!(cache.memory().contents >= 7 * 12);
}

/// Changes one thing in a good snapshot and expects it to be refused at the given node.
fn refused(change: impl FnOnce(&mut Snapshot)) -> usize {
    let config = CacheConfig::default().page_size(2);
    let mut snapshot = cache_with_two_branches(config.clone()).snapshot();
    assert!(RadixCache::restore(config.clone(), &snapshot).is_ok());
    change(&mut snapshot);
    match RadixCache::restore(config, &snapshot) {
        Err(CacheError::Snapshot { node, .. }) => node,
        other => panic!("{other:?}"),
    }
}

#[test]
fn snapshots_that_are_no_tree_are_refused() {
    assert_eq!(refused(|snapshot| snapshot.page_size = 4), 0);
    assert_eq!(refused(|snapshot| snapshot.nodes[1].pages.clear()), 1);
    assert_eq!(refused(|snapshot| snapshot.nodes[1].tokens.truncate(1)), 1);
    assert_eq!(refused(|snapshot| snapshot.nodes[2].pages = snapshot.nodes[0].pages.clone()), 2);
    assert_eq!(refused(|snapshot| snapshot.nodes[2].pages[0] = PageId(u32::MAX)), 2);
    assert_eq!(refused(|snapshot| snapshot.nodes[0].parent = Some(0)), 0);
    assert_eq!(refused(|snapshot| snapshot.nodes[0].used = u64::MAX), 0);
    assert_eq!(refused(|snapshot| snapshot.nodes[2].namespace = Namespace::tenant(77)), 2);
    assert_eq!(refused(|snapshot| snapshot.nodes[2].tokens = snapshot.nodes[1].tokens.clone()), 2);
}

#[cfg(feature = "serde")]
#[test]
fn snapshots_and_events_survive_being_written() {
    let config = CacheConfig::default().events(9);
    let mut cache = cache_with_two_branches(config.clone());
    let snapshot = cache.snapshot();
    let written = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&written).unwrap(), snapshot);
    let restored = RadixCache::restore(config.page_size(2), &snapshot).unwrap();
    assert_eq!(restored.snapshot().nodes.len(), snapshot.nodes.len());

    let events: Vec<_> = cache.drain_events().collect();
    let written = serde_json::to_string(&events).unwrap();
    assert_eq!(serde_json::from_str::<Vec<radix_cache::Event>>(&written).unwrap(), events);
}
