//! How fast the prefix cache is, as the table of `docs/cache.md`.
//!
//! ```text
//! UNDERSTORY_TRACE=conversation_trace.jsonl cargo bench -p radix-cache
//! ```
//!
//! Criterion measures; the table gives its least and its median time an operation, since on a
//! shared machine only the least says what the code costs. Without a trace, the excerpt in
//! `radix-cache/data` is replayed.

#[path = "cache/block_hash.rs"]
mod block_hash;
#[path = "cache/replay.rs"]
mod replay;
#[path = "cache/router_tree.rs"]
mod router_tree;
#[path = "cache/table.rs"]
mod table;
#[path = "cache/trace.rs"]
mod trace;
#[path = "cache/windows.rs"]
mod windows;

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion};
use radix_cache::{CacheConfig, LockId, Namespace, PageId, RadixCache, Token};

use crate::block_hash::BlockHashCache;
use crate::replay::{Replayed, TreeWithPool, lru_hit_rate, replay};
use crate::router_tree::RouterTree;
use crate::table::Table;

/// The prompt of the look-up figures.
const PROMPT: usize = 8_192;
/// How many nodes it is cut into.
const NODES: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache-bench");
    let mut criterion = Criterion::default()
        .configure_from_args()
        .output_directory(&directory)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_500))
        .sample_size(30)
        .without_plots();
    let mut table = Table::new(directory);
    probe(&mut criterion, &mut table);
    probe_cold(&mut criterion, &mut table);
    insert(&mut criterion, &mut table);
    locks(&mut criterion, &mut table);
    evict(&mut criterion, &mut table);
    chunks(&mut criterion, &mut table);
    replays(&mut table)?;
    memory(&mut table);
    windows::windows(&mut criterion, &mut table);
    criterion.final_summary();
    table.print();
    Ok(())
}

fn new_cache(page_size: usize) -> RadixCache {
    RadixCache::new(CacheConfig::default().page_size(page_size)).expect("the page size is valid")
}

/// Tokens that no other `seed` gives.
fn tokens(seed: u64, count: usize) -> Vec<Token> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as Token
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Hands out page numbers that were never used.
#[derive(Debug, Default)]
struct Pages(u32);

impl Pages {
    fn take(&mut self, count: usize) -> Vec<PageId> {
        let first = self.0;
        self.0 += count as u32;
        (first..self.0).map(PageId).collect()
    }
}

/// Caches a prompt as so many nodes of equal length and returns a lock on its end.
///
/// A short branch is left after each node but the last, so that the nodes stay apart.
fn cache_path(
    cache: &mut RadixCache,
    pages: &mut Pages,
    namespace: Namespace,
    prompt: &[Token],
    nodes: usize,
) -> LockId {
    let page_size = cache.page_size();
    let lock = cache.acquire(namespace, &[], &mut Vec::new()).expect("few locks").lock;
    let pieces = prompt.chunks(prompt.len() / nodes);
    for (number, piece) in pieces.enumerate() {
        let run = pages.take(piece.len() / page_size);
        let mut canonical = Vec::new();
        let _ = cache.insert(lock, piece, &run, &mut canonical).expect("whole pages");
        if number + 1 == nodes {
            break;
        }
        let branch = cache.fork(lock).expect("few locks");
        let twig = tokens(1_000 + number as u64, page_size);
        let _ = cache.insert(branch, &twig, &pages.take(1), &mut canonical).expect("one page");
        cache.release(branch).expect("held");
    }
    lock
}

fn probe(criterion: &mut Criterion, table: &mut Table) {
    let prompt = tokens(1, PROMPT);
    for (page_size, target) in [(16, "2 µs"), (1, "3 µs")] {
        let mut cache = new_cache(page_size);
        cache_path(&mut cache, &mut Pages::default(), Namespace::tenant(0), &prompt, NODES);
        assert_eq!(cache.probe(Namespace::tenant(0), &prompt).tokens, PROMPT);
        let name = format!("probe 8192 tokens, page {page_size}, 8 nodes, warm");
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| black_box(&cache).probe(Namespace::tenant(0), black_box(&prompt)));
        });
        table.measured(&name, 1.0, target);

        let mut blocks = BlockHashCache::new(page_size, PROMPT / page_size + 8);
        blocks.serve(&prompt);
        let name = format!("  block-hash cache: hash and look up, page {page_size}");
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| {
                blocks.hash(black_box(&prompt));
                blocks.lookup(usize::MAX)
            });
        });
        table.measured(&name, 1.0, "");
        let name = format!("  block-hash cache: look up alone, page {page_size}");
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| blocks.lookup(usize::MAX));
        });
        table.measured(&name, 1.0, "");
        probe_router_tree(criterion, table, page_size, &prompt);
    }
}

/// The same hit in the tree of `dynamo-kv-router`.
fn probe_router_tree(
    criterion: &mut Criterion,
    table: &mut Table,
    page_size: usize,
    prompt: &[Token],
) {
    let config = CacheConfig::default().page_size(page_size).events(1_000);
    let mut cache = RadixCache::new(config).expect("the page size is valid");
    cache_path(&mut cache, &mut Pages::default(), Namespace::tenant(0), prompt, NODES);
    let mut router = RouterTree::new(page_size);
    for event in cache.drain_events() {
        let event = router.translate(event).expect("nothing was cleared");
        router.apply(event).expect("parents come first");
    }
    let blocks = router.hash(prompt);
    assert_eq!(router.look_up(blocks.clone()), prompt.len() / page_size);
    let name = format!("  tree of dynamo-kv-router: hash and look up, page {page_size}");
    criterion.bench_function(&name, |bencher| {
        bencher.iter(|| router.look_up(router.hash(black_box(prompt))));
    });
    table.measured(&name, 1.0, "");
    let name = format!("  tree of dynamo-kv-router: look up alone, page {page_size}");
    criterion.bench_function(&name, |bencher| {
        let setup = || blocks.clone();
        bencher.iter_batched(setup, |blocks| router.look_up(blocks), BatchSize::SmallInput);
    });
    table.measured(&name, 1.0, "");
}

/// Long prompts at random from a tree of a million leaves, most of which no level of the machine's
/// caches holds.
fn probe_cold(criterion: &mut Criterion, table: &mut Table) {
    const PATHS: u64 = 2_000;
    const LEAVES_A_PATH: u64 = 500;
    let mut cache = new_cache(16);
    let mut pages = Pages::default();
    for path in 0..PATHS {
        let prompt = tokens(path + 1, PROMPT);
        let lock = cache_path(&mut cache, &mut pages, Namespace::tenant(0), &prompt, NODES);
        for leaf in 0..LEAVES_A_PATH {
            let fork = cache.fork(lock).expect("few locks");
            let twig = tokens(path << 20 | leaf, 16);
            let _ = cache.insert(fork, &twig, &pages.take(1), &mut Vec::new()).expect("one page");
            cache.release(fork).expect("held");
        }
        cache.release(lock).expect("held");
    }
    let name = "probe 8192 tokens, page 16, 8 nodes, cold, 1M leaves";
    let mut path = 0;
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                path = (path + 769) % PATHS;
                let prompt = tokens(path + 1, PROMPT);
                let started = Instant::now();
                black_box(cache.probe(Namespace::tenant(0), &prompt));
                elapsed += started.elapsed();
            }
            elapsed
        });
    });
    table.measured(name, 1.0, "reported");
}

fn insert(criterion: &mut Criterion, table: &mut Table) {
    const BATCH: u64 = 64;
    let mut cache = new_cache(16);
    let mut pages = Pages::default();
    let lock = cache_path(&mut cache, &mut pages, Namespace::tenant(0), &tokens(1, PROMPT), NODES);
    let leaves: Vec<_> = (2..2 + BATCH).map(|seed| tokens(seed, 1_024)).collect();
    let own = pages.take(64);
    let name = "insert 1024 tokens below 8192, from a lock";
    let (mut canonical, mut freed) = (Vec::new(), Vec::new());
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let batch = left.min(BATCH) as usize;
                let forks: Vec<_> =
                    (0..batch).map(|_| cache.fork(lock).expect("few locks")).collect();
                let started = Instant::now();
                for (fork, leaf) in forks.iter().zip(&leaves) {
                    let inserted = cache.insert(*fork, leaf, &own, &mut canonical);
                    let _ = black_box(inserted);
                }
                elapsed += started.elapsed();
                for fork in forks {
                    freed.clear();
                    cache.release_and_drop(fork, &mut freed).expect("held");
                }
                left -= batch as u64;
            }
            elapsed
        });
    });
    table.measured(name, 1.0, "0.5 µs + the copy");

    let name = "  the copy alone: 4 KiB of tokens, 256 bytes of pages";
    let mut copies: Vec<_> = leaves.iter().map(|leaf| (leaf.clone(), own.clone())).collect();
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            for ((tokens, pages), leaf) in copies.iter_mut().zip(&leaves) {
                tokens.copy_from_slice(black_box(leaf));
                pages.copy_from_slice(black_box(&own));
            }
        });
    });
    table.measured(name, BATCH as f64, "");
}

/// Locks and unlocks whole paths of eight nodes that nobody else holds: the worst case.
fn locks(criterion: &mut Criterion, table: &mut Table) {
    const PATHS: u64 = 256;
    let mut cache = new_cache(16);
    let mut pages = Pages::default();
    let prompts: Vec<_> = (0..PATHS).map(|path| tokens(path + 1, NODES * 16)).collect();
    for (path, prompt) in prompts.iter().enumerate() {
        let namespace = Namespace::tenant(path as u64);
        let lock = cache_path(&mut cache, &mut pages, namespace, prompt, NODES);
        cache.release(lock).expect("held");
    }
    let mut matched = Vec::new();
    let mut held = Vec::new();
    let mut run = |iterations: u64, time_release: bool| {
        let mut elapsed = Duration::ZERO;
        let mut left = iterations;
        while left > 0 {
            let batch = left.min(PATHS) as usize;
            let started = Instant::now();
            for (path, prompt) in prompts.iter().take(batch).enumerate() {
                matched.clear();
                let namespace = Namespace::tenant(path as u64);
                let acquired = cache.acquire(namespace, prompt, &mut matched);
                held.push(acquired.expect("few locks").lock);
            }
            let acquired = started.elapsed();
            let started = Instant::now();
            for lock in held.drain(..) {
                cache.release(lock).expect("held");
            }
            elapsed += if time_release { started.elapsed() } else { acquired };
            left -= batch as u64;
        }
        elapsed
    };
    let name = "unlock 8 levels and file the leaf";
    criterion.bench_function(name, |bencher| bencher.iter_custom(|count| run(count, true)));
    table.measured(name, 1.0, "230 ns");
    let name = "look up 8 one-page nodes, unfile the leaf and lock";
    criterion.bench_function(name, |bencher| bencher.iter_custom(|count| run(count, false)));
    table.measured(name, 1.0, "230 ns + look-up");
    let mut path = 0;
    let name = "  the look-up alone";
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            path = (path + 1) % PATHS;
            cache.probe(Namespace::tenant(path), &prompts[path as usize])
        });
    });
    table.measured(name, 1.0, "");
}

/// A tree of so many one-page leaves below a thousand parents.
fn many_leaves(leaves: u64) -> (RadixCache, Pages) {
    let mut cache = new_cache(16);
    let mut pages = Pages::default();
    for leaf in 0..leaves {
        add_leaf(&mut cache, leaf, pages.take(2));
    }
    (cache, pages)
}

/// Adds a leaf below one of a thousand parents, and the parent if need be.
fn add_leaf(cache: &mut RadixCache, leaf: u64, mut own: Vec<PageId>) {
    let mut prompt = tokens(1 + leaf % 1_000, 16);
    prompt.extend(tokens(1 << 32 | leaf, 16));
    let mut matched = Vec::new();
    let acquired = cache.acquire(Namespace::tenant(0), &prompt, &mut matched).expect("few locks");
    let rest = own.split_off(matched.len());
    let rest_tokens = &prompt[acquired.tokens..];
    let _ = cache.insert(acquired.lock, rest_tokens, &rest, &mut matched).expect("whole pages");
    cache.release(acquired.lock).expect("held");
}

fn evict(criterion: &mut Criterion, table: &mut Table) {
    for (leaves, target) in [(1_000, "0.3 µs"), (100_000, "0.8 µs"), (1_000_000, "1.5 µs")] {
        const BATCH: u64 = 500;
        let (mut cache, mut pages) = many_leaves(leaves);
        let mut next = leaves;
        let (mut steps, mut evicted) = (0, 0);
        let mut freed = Vec::new();
        let name = format!("evict one leaf of {leaves}");
        criterion.bench_function(&name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut elapsed = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let batch = left.min(BATCH);
                    freed.clear();
                    let before = cache.eviction_order_steps();
                    let started = Instant::now();
                    for _ in 0..batch {
                        cache.evict(1, &mut freed);
                    }
                    elapsed += started.elapsed();
                    steps += cache.eviction_order_steps() - before;
                    evicted += batch;
                    for _ in 0..batch {
                        add_leaf(&mut cache, next, pages.take(2));
                        next += 1;
                    }
                    left -= batch;
                }
                elapsed
            });
        });
        table.measured(&name, 1.0, target);
        let steps = steps as f64 / evicted.max(1) as f64;
        table.note(&format!("  levels of the order visited: {steps:.1} a leaf"));
    }
}

fn chunks(criterion: &mut Criterion, table: &mut Table) {
    const CHUNK: usize = 2_000;
    let mut least = Vec::new();
    for length in [100_000, 200_000] {
        let prompt = tokens(7, length);
        let mut cache = new_cache(16);
        let own = Pages::default().take(length / 16);
        let name = format!("insert {length} tokens in chunks of {CHUNK}");
        let (mut canonical, mut freed) = (Vec::new(), Vec::new());
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| {
                let acquired = cache.acquire(Namespace::tenant(0), &[], &mut canonical);
                let lock = acquired.expect("few locks").lock;
                let chunks = prompt.chunks(CHUNK).zip(own.chunks(CHUNK / 16));
                for (tokens, pages) in chunks {
                    let _ = cache.insert(lock, tokens, pages, &mut canonical).expect("whole pages");
                }
                freed.clear();
                cache.release_and_drop(lock, &mut freed).expect("held");
            });
        });
        least.extend(table.measured(&name, 1.0, ""));
        let name = format!("  copying {length} tokens");
        let mut copy = prompt.clone();
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| copy.copy_from_slice(black_box(&prompt)));
        });
        least.extend(table.measured(&name, 1.0, ""));
    }
    if let [short, short_copy, long, long_copy] = least[..] {
        let ratio = |long: f64, short: f64| format!("{:.2} times", long / short);
        table.value("  twice the prompt takes", ratio(long, short), "2.2 times");
        table.value("  copying twice the prompt takes", ratio(long_copy, short_copy), "");
    }
}

fn replays(table: &mut Table) -> Result<(), Box<dyn Error>> {
    const PAGE: usize = 16;
    let path = trace::path();
    let requests = trace::read(path.as_deref())?;
    let ids = trace::unique_ids(&requests) / 10;
    let pages = replay::pages(ids, PAGE);
    let name = replay::name(path.as_deref());
    table.note(&format!(
        "replay of {name}: {} requests, {pages} pages of {PAGE} tokens, 10 % of the unique blocks",
        requests.len()
    ));
    let a_request = |outcome: &replay::Outcome| {
        outcome.elapsed.as_secs_f64() * 1e6 / requests.len().max(1) as f64
    };
    // Each goes three times, in turns; the least time counts.
    let (mut tree_least, mut blocks_least) = (f64::INFINITY, f64::INFINITY);
    let (mut tree_rate, mut blocks_rate) = (0.0, 0.0);
    for _ in 0..3 {
        let config = CacheConfig::default().page_size(PAGE);
        let tree = replay(&requests, PAGE, &mut TreeWithPool::new(config, pages)?);
        let blocks = replay(&requests, PAGE, &mut BlockHashCache::new(PAGE, pages));
        tree_least = a_request(&tree).min(tree_least);
        blocks_least = a_request(&blocks).min(blocks_least);
        (tree_rate, blocks_rate) = (hit_rate(&tree.served), hit_rate(&blocks.served));
    }
    let mean = requests.iter().map(|request| request.input_length).sum::<usize>() as f64
        / requests.len().max(1) as f64;
    table.value(
        &format!("  this tree, a request of {mean:.0} tokens"),
        format!("{tree_least:.1} µs"),
        "60 µs",
    );
    table.value("  block-hash cache", format!("{blocks_least:.1} µs"), "");
    let ratio = blocks_least / tree_least;
    table.value("  the tree is faster by", format!("{ratio:.1} times"), "3 times");
    let router = router_tree::follow(&requests, PAGE, pages)?;
    let time = |time: Duration| {
        format!("{:.1} µs", time.as_secs_f64() * 1e6 / requests.len().max(1) as f64)
    };
    table.value("  tree of dynamo-kv-router: hash", time(router.hashing), "");
    table.value("    look up", time(router.looking_up), "");
    table.value("    follow what this tree did", time(router.following), "");
    let agreed = format!("{} of {}", router.agreed, requests.len());
    table.value("    requests for which it matches what this tree served", agreed, "");
    let oracle = lru_hit_rate(&requests, ids);
    table.value("  hit rate, this tree", format!("{:.2} %", 100.0 * tree_rate), "");
    table.value("  hit rate, block-hash cache", format!("{:.2} %", 100.0 * blocks_rate), "");
    table.value("  hit rate, plain LRU list", format!("{:.2} %", 100.0 * oracle), "within 1 %");
    Ok(())
}

fn hit_rate(served: &[(usize, usize)]) -> f64 {
    let tokens: usize = served.iter().map(|(tokens, _)| tokens).sum();
    served.iter().map(|(_, hit)| hit).sum::<usize>() as f64 / tokens.max(1) as f64
}

fn memory(table: &mut Table) {
    let (cache, _) = many_leaves(1_000_000);
    let nodes = cache.shape().nodes;
    let bytes = cache.memory().structure as f64 / nodes as f64;
    table.value(
        "memory a node at 1M leaves, beside tokens and page numbers",
        format!("{bytes:.0} bytes"),
        "160 bytes",
    );
}
