//! In steady state the cache allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use radix_cache::{CacheConfig, LockId, Namespace, PageId, Policy, RadixCache, Token};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches nothing but a
// thread-local number that needs no allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Serves a prompt of `branch` and evicts as much as it added, so that the cache stays full.
fn serve(cache: &mut RadixCache, branch: u32, buffers: &mut Buffers) {
    for (position, token) in buffers.prompt.iter_mut().enumerate() {
        // A shared start, a middle with eight variants, an end of its own.
        *token = match position {
            0..64 => position as Token,
            64..128 => branch % 8 * 1_000 + position as Token,
            _ => branch * 1_000 + position as Token,
        };
    }
    buffers.matched.clear();
    let namespace = Namespace::tenant(u64::from(branch % 2));
    let found = cache.probe(namespace, &buffers.prompt).tokens;
    let acquired = cache.acquire(namespace, &buffers.prompt, &mut buffers.matched).unwrap();
    assert_eq!(acquired.tokens, found);
    let missing = buffers.prompt.len() / 16 - buffers.matched.len();
    if buffers.free.len() < missing {
        cache.evict(missing - buffers.free.len(), &mut buffers.free);
    }
    let own = buffers.free.len() - missing;
    let tokens = &buffers.prompt[acquired.tokens..];
    buffers.matched.clear();
    let inserted =
        cache.insert(acquired.lock, tokens, &buffers.free[own..], &mut buffers.matched).unwrap();
    buffers.free.truncate(own + inserted.present_pages);
    if buffers.has_window {
        keep_window(cache, acquired.lock, buffers);
    }
    let fork = cache.fork(acquired.lock).unwrap();
    cache.release(acquired.lock).unwrap();
    cache.release(fork).unwrap();
}

struct Buffers {
    prompt: Vec<Token>,
    matched: Vec<PageId>,
    free: Vec<PageId>,
    has_window: bool,
    windowed: Vec<PageId>,
}

/// Gives the cache the windowed pages of what was inserted, all but the oldest.
fn keep_window(cache: &mut RadixCache, lock: LockId, buffers: &mut Buffers) {
    const KEPT: usize = 6;
    buffers.windowed.extend(cache.take_freed_windowed());
    if buffers.windowed.len() < KEPT {
        cache.evict_windowed(KEPT - buffers.windowed.len(), &mut buffers.windowed);
    }
    let own = buffers.windowed.len() - KEPT;
    buffers.matched.clear();
    cache.put_windowed(lock, &buffers.windowed[own..], &mut buffers.matched).unwrap();
    let mut kept = own;
    for (number, there) in buffers.matched.iter().enumerate() {
        if buffers.windowed[own + number] != *there {
            buffers.windowed.swap(kept, own + number);
            kept += 1;
        }
    }
    buffers.windowed.truncate(kept);
    buffers.matched.clear();
    cache.windowed_pages(lock, &mut buffers.matched).unwrap();
    assert_eq!(buffers.matched.len(), 4);
}

#[test]
fn steady_state_allocates_nothing() {
    let has_window = [false, true];
    for (policy, has_window) in
        Policy::ALL.into_iter().flat_map(|policy| has_window.map(|has_window| (policy, has_window)))
    {
        let mut config = CacheConfig::default().policy(policy);
        if has_window {
            config = config.windowed_group(64);
        }
        let mut cache = RadixCache::new(config).unwrap();
        let mut buffers = Buffers {
            prompt: vec![0; 256],
            matched: Vec::with_capacity(64),
            free: (0..512).map(PageId).collect(),
            has_window,
            windowed: (0..128).map(PageId).collect(),
        };
        for branch in 0..2_000 {
            serve(&mut cache, branch, &mut buffers);
        }
        let before = ALLOCATIONS.with(Cell::get);
        for branch in 2_000..4_000 {
            serve(&mut cache, branch, &mut buffers);
        }
        let allocations = ALLOCATIONS.with(Cell::get) - before;
        assert_eq!(allocations, 0, "under {policy:?}, with a window: {has_window}");
        assert!(cache.statistics().pages_removed > 10_000);
        assert_eq!(cache.statistics().windowed_removed > 1_000, has_window);
        cache.check_invariants().unwrap();
    }
}
