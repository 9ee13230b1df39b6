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

/// Name, label `state` where it has one, and value of a gauge.
type GaugeOf = (&'static str, &'static str, fn(&EngineSnapshot) -> f64);
/// Name and value of a counter, which only grows.
type CounterOf = (&'static str, fn(&EngineSnapshot) -> u64);

const GAUGES: [GaugeOf; 11] = [
    ("understory_requests_running", "", |now| now.scheduler.running as f64),
    ("understory_requests_waiting", "", |now| now.scheduler.waiting as f64),
    ("understory_requests_queued", "", |now| now.queued as f64),
    ("understory_cache_hit_rate", "", EngineSnapshot::cache_hit_rate),
    ("understory_pages", "free", |now| now.pages.free as f64),
    ("understory_pages", "evictable", |now| now.pages.cached_evictable as f64),
    ("understory_pages", "locked", |now| now.pages.cached_locked as f64),
    ("understory_pages", "loading", |now| now.pages.loading as f64),
    ("understory_pages", "owned", |now| now.pages.owned_by_sequences as f64),
    ("understory_host_pages", "", |now| now.pages.on_host as f64),
    ("understory_windowed_pages_in_use", "", |now| now.windowed_pages.in_use() as f64),
];

const COUNTERS: [CounterOf; 19] = [
    ("understory_compiles_in_traffic_total", |now| now.compiles_in_traffic),
    ("understory_prompt_tokens_total", |now| now.scheduler.prompt_tokens),
    ("understory_cached_tokens_total", |now| now.scheduler.cached_tokens),
    ("understory_prefill_tokens_total", |now| now.scheduler.prefill_tokens),
    ("understory_generated_tokens_total", |now| now.scheduler.generated_tokens),
    ("understory_verification_rows_total", |now| now.scheduler.verification_rows),
    ("understory_proposed_tokens_total", |now| now.scheduler.proposed_tokens),
    ("understory_accepted_tokens_total", |now| now.scheduler.accepted_tokens),
    ("understory_cache_requests_total", |now| now.cache.requests),
    ("understory_cache_requests_hit_total", |now| now.cache.requests_hit),
    ("understory_cache_duplicate_pages_total", |now| now.cache.pages_duplicate),
    ("understory_retractions_total", |now| now.scheduler.retractions),
    ("understory_evicted_pages_total", |now| now.scheduler.evicted_pages),
    ("understory_host_cached_tokens_total", |now| now.scheduler.host_cached_tokens),
    ("understory_host_hits_total", |now| now.scheduler.host_hits),
    ("understory_loaded_tokens_total", |now| now.scheduler.loaded_tokens),
    ("understory_pages_to_host_total", |now| now.scheduler.pages_to_host),
    ("understory_transfers_total", |now| now.scheduler.transfers),
    ("understory_failed_transfers_total", |now| now.scheduler.failed_transfers),
];

/// Handles of the metrics. They belong to the recorder that was installed when the engine was
/// built; using them allocates nothing.
#[derive(Debug)]
pub(super) struct Meters {
    gauges: [Gauge; GAUGES.len()],
    counters: [Counter; COUNTERS.len()],
    step_seconds: Histogram,
    step_rows: Histogram,
    snapshot: EngineSnapshot,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            gauges: GAUGES.map(|(name, state, _)| match state {
                "" => gauge!(name),
                _ => gauge!(name, "state" => state),
            }),
            counters: COUNTERS.map(|(name, _)| counter!(name)),
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
        let now = EngineSnapshot {
            scheduler,
            pages,
            windowed_pages,
            cache,
            queued,
            compiles_in_traffic,
            ..self.snapshot
        };
        for (gauge, (.., value)) in self.gauges.iter().zip(GAUGES) {
            gauge.set(value(&now));
        }
        for (counter, (_, value)) in self.counters.iter().zip(COUNTERS) {
            counter.absolute(value(&now));
        }
        self.snapshot = now;
        now
    }
}
