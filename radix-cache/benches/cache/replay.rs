//! The replay of a trace against a prefix cache.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use radix_cache::{CacheConfig, Namespace, PageId, RadixCache, Token};

use crate::trace::{Request, TOKENS_AN_ID};

/// What to call a trace.
pub(crate) fn name(path: Option<&Path>) -> String {
    let file = path.map(|path| path.file_name().unwrap_or_default().to_string_lossy());
    file.map_or_else(|| "the excerpt of the Mooncake trace".to_owned(), String::from)
}

/// Pages it takes to hold so many blocks of the trace.
pub(crate) fn pages(ids: usize, page_size: usize) -> usize {
    ids * TOKENS_AN_ID / page_size
}

/// A prefix cache that owns a pool of pages and serves one prompt after another.
pub(crate) trait Replayed {
    /// Looks a prompt up, makes room, stores what was missing. Returns the pages that matched.
    fn serve(&mut self, prompt: &[Token]) -> usize;
}

/// What a replay showed.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Time spent in the cache; expanding the trace isn't counted.
    pub(crate) elapsed: Duration,
    /// Tokens of each request, and how many of them were hit.
    pub(crate) served: Vec<(usize, usize)>,
}

/// Serves the whole trace in order.
pub(crate) fn replay(requests: &[Request], page_size: usize, cache: &mut dyn Replayed) -> Outcome {
    let mut outcome = Outcome { elapsed: Duration::ZERO, served: Vec::new() };
    let mut prompt = Vec::new();
    for request in requests {
        request.expand(&mut prompt);
        let started = Instant::now();
        let hit = cache.serve(&prompt);
        outcome.elapsed += started.elapsed();
        outcome.served.push((prompt.len(), hit * page_size));
    }
    outcome
}

/// The tree, with the page pool of an engine around it.
#[derive(Debug)]
pub(crate) struct TreeWithPool {
    pub(crate) cache: RadixCache,
    free: Vec<PageId>,
    matched: Vec<PageId>,
    fresh: Vec<PageId>,
    canonical: Vec<PageId>,
}

impl TreeWithPool {
    pub(crate) fn new(config: CacheConfig, pages: usize) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            cache: RadixCache::new(config)?,
            free: (0..pages as u32).map(PageId).collect(),
            matched: Vec::new(),
            fresh: Vec::new(),
            canonical: Vec::new(),
        })
    }
}

impl Replayed for TreeWithPool {
    fn serve(&mut self, prompt: &[Token]) -> usize {
        let page_size = self.cache.page_size();
        self.matched.clear();
        let known = &prompt[..prompt.len().saturating_sub(1)];
        let Ok(acquired) = self.cache.acquire(Namespace::tenant(0), known, &mut self.matched)
        else {
            return 0;
        };
        let missing = prompt.len() / page_size - self.matched.len();
        if self.free.len() < missing {
            self.cache.evict(missing - self.free.len(), &mut self.free);
        }
        if self.free.len() >= missing {
            self.fresh.clear();
            self.fresh.extend(self.free.drain(self.free.len() - missing..));
            let end = acquired.tokens + missing * page_size;
            self.canonical.clear();
            let tokens = &prompt[acquired.tokens..end];
            let inserted =
                self.cache.insert(acquired.lock, tokens, &self.fresh, &mut self.canonical);
            let duplicates = inserted.map_or(missing, |inserted| inserted.present_pages);
            self.free.extend_from_slice(&self.fresh[..duplicates]);
        }
        // The lock was made above, so this can't fail; a failure would show as lost capacity.
        let released = self.cache.release(acquired.lock);
        if released.is_ok() { self.matched.len() } else { 0 }
    }
}

/// The share of tokens that a plain LRU list of the trace's own blocks would have served.
pub(crate) fn lru_hit_rate(requests: &[Request], capacity: usize) -> f64 {
    let mut last_used = std::collections::HashMap::new();
    let mut by_age = std::collections::BTreeMap::new();
    let mut clock = 0_u64;
    let (mut hit, mut all) = (0, 0);
    for request in requests {
        let ids = &request.hash_ids;
        let present = ids.iter().take_while(|id| last_used.contains_key(*id)).count();
        all += request.input_length;
        hit += (present * TOKENS_AN_ID).min(request.input_length);
        // Last block first, so that a prefix never goes before what continues it.
        for &id in ids.iter().rev() {
            clock += 1;
            if let Some(before) = last_used.insert(id, clock) {
                by_age.remove(&before);
            }
            by_age.insert(clock, id);
        }
        while last_used.len() > capacity {
            if let Some((_, id)) = by_age.pop_first() {
                last_used.remove(&id);
            }
        }
    }
    hit as f64 / all as f64
}
