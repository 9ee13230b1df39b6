//! Numbers for Prometheus: the engine's and the server's own, and SGLang's and vLLM's names for them, so that the
//! dashboards of either work. All series are there from the start, at zero.

mod histogram;
mod names;
mod observer;
mod recorder;
mod text;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::http::Method;
use understory::engine::Engine;
use understory::request::Request;

use crate::http::Load;
use histogram::Histogram;
pub(crate) use observer::Observer;
use recorder::Registry;
use text::Text;

/// All numbers of a server. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    registry: Registry,
    model: OnceLock<String>,
    begin: OnceLock<Instant>,
    requests: Requests,
    http: Mutex<BTreeMap<(String, String, &'static str), u64>>,
    rate: Mutex<Rate>,
    /// HTTP requests whose answers are not written whole.
    open: AtomicU64,
}

/// An HTTP request until its answer is written, or its client is gone.
#[derive(Debug)]
pub(crate) struct Open(Metrics);

/// What is known of requests when they end.
#[derive(Debug)]
struct Requests {
    submitted: AtomicU64,
    /// By whether the answer is streamed.
    prompt_tokens: [AtomicU64; 2],
    generated_tokens: [AtomicU64; 2],
    first_token: Histogram,
    inter_token: Histogram,
    per_token: Histogram,
    total: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt: Histogram,
    generation: Histogram,
    max_generation: Histogram,
    samples: Histogram,
    max_tokens: Histogram,
}

/// Generated tokens by second.
#[derive(Debug, Default)]
struct Rate {
    seconds: VecDeque<(u64, u64)>,
    last: Option<Instant>,
}

impl Metrics {
    /// No numbers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Builds an engine whose numbers are among these.
    pub fn record<T>(&self, build: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.inner.registry, build)
    }

    pub(crate) fn describe(&self, _engine: &Engine, names: &[String]) {
        let _ = self.inner.model.set(names.first().cloned().unwrap_or_default());
        let _ = self.inner.begin.set(Instant::now());
        let mut http = self.http();
        for handler in ["/v1/chat/completions", "/v1/completions", "/generate"] {
            http.entry(("POST".to_owned(), handler.to_owned(), "2xx")).or_default();
        }
    }

    /// Takes note of a request that is submitted.
    pub(crate) fn observer(&self, request: &Request, stream: bool) -> Observer {
        Observer::new(self.clone(), request, stream)
    }

    pub(crate) fn count_http(&self, method: &Method, handler: &str, status: u16) {
        let known = [Method::GET, Method::POST, Method::PUT, Method::OPTIONS, Method::HEAD];
        let method = if known.contains(method) { method.as_str() } else { "other" };
        let class = match status {
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            500..600 => "5xx",
            _ => "1xx",
        };
        *self.http().entry((method.to_owned(), handler.to_owned(), class)).or_default() += 1;
    }

    /// Counts an HTTP request until what is returned is dropped.
    pub(crate) fn open(&self) -> Open {
        self.inner.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Generated tokens a second, over the last three whole seconds.
    pub(crate) fn throughput(&self) -> f64 {
        const SECONDS: u64 = 3;
        let now = self.second();
        let rate = self.rate();
        let recent = |&&(second, _): &&(u64, u64)| second < now && second + SECONDS >= now;
        let tokens: u64 = rate.seconds.iter().filter(recent).map(|(_, tokens)| tokens).sum();
        tokens as f64 / SECONDS as f64
    }

    /// How long ago the last token came.
    pub(crate) fn last_token_age(&self) -> Option<Duration> {
        self.rate().last.map(|last| last.elapsed())
    }

    fn count_token(&self) {
        const KEPT: usize = 8;
        let second = self.second();
        let mut rate = self.rate();
        rate.last = Some(Instant::now());
        match rate.seconds.back_mut() {
            Some((last, tokens)) if *last == second => *tokens += 1,
            _ => rate.seconds.push_back((second, 1)),
        }
        if rate.seconds.len() > KEPT {
            rate.seconds.pop_front();
        }
    }

    fn second(&self) -> u64 {
        self.inner.begin.get().map_or(0, |begin| begin.elapsed().as_secs())
    }

    fn rate(&self) -> MutexGuard<'_, Rate> {
        self.inner.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn http(&self) -> MutexGuard<'_, BTreeMap<(String, String, &'static str), u64>> {
        self.inner.http.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn render(&self, engine: &Engine, now: &Load) -> String {
        let model = self.inner.model.get().map_or("", String::as_str);
        let mut text = Text::new(model);
        self.inner.registry.render(&mut text);
        names::render(&mut text, &self.inner.requests, engine, now);
        text.gauge("understory_http_requests_open", &[], load(&self.inner.open));
        text.family("http_requests_total", "counter");
        for ((method, handler, status), count) in &*self.http() {
            let labels = [("method", &**method), ("handler", handler), ("status", status)];
            text.sample("http_requests_total", &labels, *count as f64);
        }
        text.finish()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.inner.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn load(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}
