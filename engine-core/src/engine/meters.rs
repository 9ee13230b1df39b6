//! Numbers about the engine: for the `metrics` facade, and as a snapshot.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use radix_cache::Statistics;

use crate::backend::Batch;
use crate::kv::PageCounts;
use crate::schedule::SchedulerStats;

/// What an engine has done since its start, and what it does now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct EngineSnapshot {
    /// Counts of the scheduler. Its `waiting` counts samples that were put back as well.
    pub scheduler: SchedulerStats,
    /// Samples that were submitted and have not run yet.
    pub queued: usize,
    /// Pages of KV in full page groups, by owner.
    pub pages: PageCounts,
    /// Pages of KV in windowed page groups, by owner; all zero without any.
    pub windowed_pages: PageCounts,
    /// What the prefix cache has done, look-ups of retracted samples and forks included.
    pub cache: Statistics,
    /// Steps that the device has finished.
    pub steps: u64,
    /// Time that the device has spent on them, as the host sees it.
    pub step_time: Duration,
    /// Time that it spent on the last one.
    pub last_step_time: Duration,
    /// Samples that have ended, by reason.
    pub endings: Endings,
    /// Shapes that the backend had to compile while requests waited. Should stay 0.
    pub compiles_in_traffic: u64,
}

/// Samples that have ended, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endings {
    /// At an end token or a stop string.
    pub stop: u64,
    /// At their token limit, or the context's.
    pub length: u64,
    /// Given up by their reader, or by a shutdown.
    pub abort: u64,
    /// With an error: of the device, or of code that came with the request.
    pub failed: u64,
    /// Refused on the engine's thread: branches whose parent had ended, say.
    pub refused: u64,
}

impl EngineSnapshot {
    /// Fraction of prompt tokens whose KV was in the cache.
    pub fn cache_hit_rate(&self) -> f64 {
        match self.scheduler.prompt_tokens {
            0 => 0.0,
            prompt_tokens => self.scheduler.cached_tokens as f64 / prompt_tokens as f64,
        }
    }
}

/// Handles of the metrics. They belong to the recorder that was installed when the engine was
/// built; using them allocates nothing.
#[derive(Debug)]
pub(super) struct Meters {
    running: Gauge,
    waiting: Gauge,
    queued: Gauge,
    hit_rate: Gauge,
    pages_free: Gauge,
    pages_evictable: Gauge,
    pages_locked: Gauge,
    pages_loading: Gauge,
    pages_owned: Gauge,
    host_pages: Gauge,
    windowed_pages: Gauge,
    compiles: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    prefill_tokens: Counter,
    generated_tokens: Counter,
    verification_rows: Counter,
    proposed_tokens: Counter,
    accepted_tokens: Counter,
    cache_requests: Counter,
    cache_requests_hit: Counter,
    duplicate_pages: Counter,
    retractions: Counter,
    evicted_pages: Counter,
    host_cached_tokens: Counter,
    host_hits: Counter,
    loaded_tokens: Counter,
    pages_to_host: Counter,
    transfers: Counter,
    failed_transfers: Counter,
    step_seconds: Histogram,
    step_rows: Histogram,
    snapshot: EngineSnapshot,
}

impl Meters {
    pub(super) fn new() -> Self {
        let pages = |state: &'static str| gauge!("understory_pages", "state" => state);
        Self {
            running: gauge!("understory_requests_running"),
            waiting: gauge!("understory_requests_waiting"),
            queued: gauge!("understory_requests_queued"),
            hit_rate: gauge!("understory_cache_hit_rate"),
            pages_free: pages("free"),
            pages_evictable: pages("evictable"),
            pages_locked: pages("locked"),
            pages_loading: pages("loading"),
            pages_owned: pages("owned"),
            host_pages: gauge!("understory_host_pages"),
            windowed_pages: gauge!("understory_windowed_pages_in_use"),
            compiles: counter!("understory_compiles_in_traffic_total"),
            prompt_tokens: counter!("understory_prompt_tokens_total"),
            cached_tokens: counter!("understory_cached_tokens_total"),
            prefill_tokens: counter!("understory_prefill_tokens_total"),
            generated_tokens: counter!("understory_generated_tokens_total"),
            verification_rows: counter!("understory_verification_rows_total"),
            proposed_tokens: counter!("understory_proposed_tokens_total"),
            accepted_tokens: counter!("understory_accepted_tokens_total"),
            cache_requests: counter!("understory_cache_requests_total"),
            cache_requests_hit: counter!("understory_cache_requests_hit_total"),
            duplicate_pages: counter!("understory_cache_duplicate_pages_total"),
            retractions: counter!("understory_retractions_total"),
            evicted_pages: counter!("understory_evicted_pages_total"),
            host_cached_tokens: counter!("understory_host_cached_tokens_total"),
            host_hits: counter!("understory_host_hits_total"),
            loaded_tokens: counter!("understory_loaded_tokens_total"),
            pages_to_host: counter!("understory_pages_to_host_total"),
            transfers: counter!("understory_transfers_total"),
            failed_transfers: counter!("understory_failed_transfers_total"),
            step_seconds: histogram!("understory_step_seconds"),
            step_rows: histogram!("understory_step_rows"),
            snapshot: EngineSnapshot::default(),
        }
    }

    pub(super) fn launched(&mut self, batch: &Batch<'_>) {
        self.step_rows.record(batch.rows.len() as f64);
    }

    pub(super) fn retired(&mut self, step_time: Duration) {
        self.step_seconds.record(step_time);
        self.snapshot.steps += 1;
        self.snapshot.step_time += step_time;
        self.snapshot.last_step_time = step_time;
    }

    pub(super) fn observe(
        &mut self,
        scheduler: SchedulerStats,
        (pages, windowed_pages): (PageCounts, PageCounts),
        cache: Statistics,
        queued: usize,
        compiles_in_traffic: u64,
    ) -> EngineSnapshot {
        self.snapshot = EngineSnapshot {
            scheduler,
            pages,
            windowed_pages,
            cache,
            queued,
            compiles_in_traffic,
            ..self.snapshot
        };
        self.running.set(scheduler.running as f64);
        self.waiting.set(scheduler.waiting as f64);
        self.queued.set(queued as f64);
        self.hit_rate.set(self.snapshot.cache_hit_rate());
        self.pages_free.set(pages.free as f64);
        self.pages_evictable.set(pages.cached_evictable as f64);
        self.pages_locked.set(pages.cached_locked as f64);
        self.pages_loading.set(pages.loading as f64);
        self.pages_owned.set(pages.owned_by_sequences as f64);
        self.host_pages.set(pages.on_host as f64);
        self.windowed_pages.set(windowed_pages.in_use() as f64);
        self.compiles.absolute(compiles_in_traffic);
        self.prompt_tokens.absolute(scheduler.prompt_tokens);
        self.cached_tokens.absolute(scheduler.cached_tokens);
        self.prefill_tokens.absolute(scheduler.prefill_tokens);
        self.generated_tokens.absolute(scheduler.generated_tokens);
        self.verification_rows.absolute(scheduler.verification_rows);
        self.proposed_tokens.absolute(scheduler.proposed_tokens);
        self.accepted_tokens.absolute(scheduler.accepted_tokens);
        self.cache_requests.absolute(cache.requests);
        self.cache_requests_hit.absolute(cache.requests_hit);
        self.duplicate_pages.absolute(cache.pages_duplicate);
        self.retractions.absolute(scheduler.retractions);
        self.evicted_pages.absolute(scheduler.evicted_pages);
        self.host_cached_tokens.absolute(scheduler.host_cached_tokens);
        self.host_hits.absolute(scheduler.host_hits);
        self.loaded_tokens.absolute(scheduler.loaded_tokens);
        self.pages_to_host.absolute(scheduler.pages_to_host);
        self.transfers.absolute(scheduler.transfers);
        self.failed_transfers.absolute(scheduler.failed_transfers);
        self.snapshot
    }
}
