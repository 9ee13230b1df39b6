//! The other comparator: the radix tree of `dynamo-kv-router`, which places requests by the prefix
//! that each worker has cached.
//!
//! It is an index, not a cache: it holds block hashes, no tokens and no pages, locks nothing and
//! doesn't decide what is evicted. So it is fed what a cache of one worker did, as the events of
//! that cache tell it, and asked for the same prompts.

use std::error::Error;
use std::time::{Duration, Instant};

use dynamo_kv_router::protocols::{
    BlockHashOptions, ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData,
    KvCacheStoreData, KvCacheStoredBlockData, LocalBlockHash, RouterEvent,
    compute_block_hash_for_seq,
};
use dynamo_kv_router::{KvCacheEventError, RadixTree};
use radix_cache::{CacheConfig, Change, Event, Token};

use crate::replay::{Replayed, TreeWithPool};
use crate::trace::Request;

/// The one worker.
const WORKER: u64 = 0;

/// The router's tree, following one cache.
pub(crate) struct RouterTree {
    tree: RadixTree,
    page_size: usize,
}

impl RouterTree {
    pub(crate) fn new(page_size: usize) -> Self {
        Self { tree: RadixTree::new(), page_size }
    }

    /// Hashes a prompt's full blocks, each by itself.
    pub(crate) fn hash(&self, prompt: &[Token]) -> Vec<LocalBlockHash> {
        compute_block_hash_for_seq(prompt, self.page_size as u32, BlockHashOptions::default())
    }

    /// How many of a prompt's blocks the worker has.
    pub(crate) fn look_up(&self, blocks: Vec<LocalBlockHash>) -> usize {
        let scores = self.tree.find_matches(blocks, false).scores;
        scores.values().max().map_or(0, |&blocks| blocks as usize)
    }

    /// What a change of the cache is to the router. Nothing in this benchmark clears a cache.
    pub(crate) fn translate(&self, event: Event) -> Option<RouterEvent> {
        let data = match event.change {
            Change::Stored(stored) => {
                let local = self.hash(&stored.tokens);
                let block = |(hash, tokens_hash)| KvCacheStoredBlockData {
                    block_hash: ExternalSequenceBlockHash(hash),
                    tokens_hash,
                    mm_extra_info: None,
                };
                KvCacheEventData::Stored(KvCacheStoreData {
                    parent_hash: stored.parent.map(ExternalSequenceBlockHash),
                    start_position: None,
                    blocks: stored.hashes.into_iter().zip(local).map(block).collect(),
                })
            }
            Change::Removed { hashes, .. } => {
                let block_hashes = hashes.into_iter().map(ExternalSequenceBlockHash).collect();
                KvCacheEventData::Removed(KvCacheRemoveData { block_hashes })
            }
            _ => return None,
        };
        let event = KvCacheEvent { event_id: event.sequence, data, dp_rank: 0 };
        Some(RouterEvent::new(WORKER, event))
    }

    /// Follows a change.
    pub(crate) fn apply(&mut self, event: RouterEvent) -> Result<(), KvCacheEventError> {
        self.tree.apply_event(event)
    }
}

/// What a replay showed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    /// Time spent on hashing prompts.
    pub(crate) hashing: Duration,
    /// Time spent on looking them up.
    pub(crate) looking_up: Duration,
    /// Time spent on following the cache.
    pub(crate) following: Duration,
    /// Requests for which the router's tree matched what the cache served.
    pub(crate) agreed: usize,
}

/// Serves the whole trace from a cache, whose time isn't counted, and lets a router's tree follow.
pub(crate) fn follow(
    requests: &[Request],
    page_size: usize,
    pages: usize,
) -> Result<Followed, Box<dyn Error>> {
    let config = CacheConfig::default().page_size(page_size).events(1 << 20);
    let mut cache = TreeWithPool::new(config, pages)?;
    let mut router = RouterTree::new(page_size);
    let mut followed = Followed::default();
    let mut prompt = Vec::new();
    for request in requests {
        request.expand(&mut prompt);
        let started = Instant::now();
        let mut blocks = router.hash(&prompt);
        followed.hashing += started.elapsed();
        // A prompt's last token is computed in any case, so that its logits are.
        blocks.truncate(prompt.len().saturating_sub(1) / page_size);
        let started = Instant::now();
        let matched = router.look_up(blocks);
        followed.looking_up += started.elapsed();
        followed.agreed += usize::from(matched == cache.serve(&prompt));
        let changes: Vec<_> =
            cache.cache.drain_events().filter_map(|event| router.translate(event)).collect();
        let started = Instant::now();
        for change in changes {
            router.apply(change)?;
        }
        followed.following += started.elapsed();
    }
    Ok(followed)
}
