//! Watches the events of a request go by.

use std::sync::atomic::Ordering;
use std::time::Instant;

use understory::error::GenerationError;
use understory::request::{FinishReason, Finished, GenerationEvent, Request};

use super::{Metrics, Requests, histogram};
use histogram::{COUNTS, Histogram, SECONDS};

/// Measures one generation.
#[derive(Debug)]
pub(crate) struct Observer {
    metrics: Metrics,
    stream: bool,
    /// When each sample's last token came.
    last: Vec<Option<Instant>>,
}

impl Observer {
    pub(super) fn new(metrics: Metrics, request: &Request, stream: bool) -> Self {
        let requests = &metrics.inner.requests;
        requests.submitted.fetch_add(1, Ordering::Relaxed);
        requests.samples.record(f64::from(request.sampling.n));
        if let Some(max) = request.sampling.max_tokens {
            requests.max_tokens.record(f64::from(max));
        }
        let last = vec![None; request.sampling.n as usize];
        Self { metrics, stream, last }
    }

    pub(crate) fn observe(&mut self, event: &Result<GenerationEvent, GenerationError>) {
        let requests = &self.metrics.inner.requests;
        let streamed = usize::from(self.stream);
        let count = |counters: &[std::sync::atomic::AtomicU64; 2], by: u64| {
            if let Some(counter) = counters.get(streamed) {
                counter.fetch_add(by, Ordering::Relaxed);
            }
        };
        match event {
            Ok(GenerationEvent::Admitted { sample: 0, prompt_tokens, .. }) => {
                count(&requests.prompt_tokens, u64::from(*prompt_tokens));
            }
            Ok(GenerationEvent::Token { sample, at, .. }) => {
                count(&requests.generated_tokens, 1);
                if let Some(last) = self.last.get_mut(*sample as usize)
                    && let Some(last) = last.replace(*at)
                {
                    requests.inter_token.record_time(at.saturating_duration_since(last));
                }
                self.metrics.count_token();
            }
            Ok(GenerationEvent::Finished(finished)) => requests.finish(finished),
            _ => {}
        }
    }
}

impl Requests {
    fn finish(&self, finished: &Finished) {
        let usage = &finished.usage;
        // What was given up says nothing about how long answers take.
        if finished.reason == FinishReason::Abort {
            return;
        }
        self.total.record_time(usage.total_time());
        self.prompt.record(f64::from(usage.prompt_tokens));
        self.generation.record(f64::from(usage.completion_tokens));
        self.max_generation.record(f64::from(usage.completion_tokens));
        if let Some(queue) = usage.queue_time() {
            self.queue.record_time(queue);
        }
        if let Some(first) = usage.time_to_first_token() {
            self.first_token.record_time(first);
        }
        if let Some(admitted) = usage.admitted {
            self.inference.record_time(usage.finish.saturating_duration_since(admitted));
            if let Some(first) = usage.first_token {
                self.prefill.record_time(first.saturating_duration_since(admitted));
            }
        }
        if let Some(first) = usage.first_token {
            let decode = usage.finish.saturating_duration_since(first);
            self.decode.record_time(decode);
            if let Some(gaps) = usage.completion_tokens.checked_sub(1).filter(|gaps| *gaps > 0) {
                self.per_token.record(decode.as_secs_f64() / f64::from(gaps));
            }
        }
    }
}

impl Default for Requests {
    fn default() -> Self {
        let seconds = || Histogram::new(SECONDS);
        let counts = || Histogram::new(COUNTS);
        Self {
            submitted: Default::default(),
            prompt_tokens: Default::default(),
            generated_tokens: Default::default(),
            first_token: seconds(),
            inter_token: seconds(),
            per_token: seconds(),
            total: seconds(),
            queue: seconds(),
            prefill: seconds(),
            decode: seconds(),
            inference: seconds(),
            prompt: counts(),
            generation: counts(),
            max_generation: counts(),
            samples: counts(),
            max_tokens: counts(),
        }
    }
}
