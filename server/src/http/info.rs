//! What the server tells about itself.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use understory::engine::EngineSnapshot;
use understory::error::SubmitError;
use understory::request::{GenerationEvent, Request, SamplingParams};
use understory::schedule::Refusal;

use super::answer::json_of;
use super::state::{Server, now};
use crate::protocol::Refused;

pub(super) async fn models(State(server): State<Server>) -> Response {
    let names = server.options().served_model_name.iter();
    let data: Vec<Value> = names.map(|name| described(&server, name)).collect();
    json_of(&json!({"object": "list", "data": data}))
}

pub(super) async fn model(State(server): State<Server>, Path(name): Path<String>) -> Response {
    match server.context().check_model(Some(&name)) {
        Ok(()) => json_of(&described(&server, &name)),
        Err(refused) => refused.into_response(),
    }
}

fn described(server: &Server, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": server.created(),
        "owned_by": "understory",
        "root": model_path(server),
        "parent": null,
        "max_model_len": server.engine().limits().context_length,
    })
}

fn model_path(server: &Server) -> String {
    let facts = server.engine().model();
    let path = facts.path.as_ref().map(|path| path.display().to_string());
    path.or_else(|| facts.source.clone()).unwrap_or_default()
}

/// 200 while requests are answered.
pub(super) async fn health(State(server): State<Server>) -> Response {
    match server.trouble() {
        None => StatusCode::OK.into_response(),
        Some(refused) => refused.into_response(),
    }
}

/// 200 if the engine gets on: a token has just come, or a request of one token is answered in time. Those who ask at
/// once share one such request.
pub(super) async fn health_generate(State(server): State<Server>) -> Response {
    if let Some(refused) = server.trouble() {
        return refused.into_response();
    }
    if server.metrics().last_token_age().is_some_and(|age| age < Duration::from_secs(5)) {
        return StatusCode::OK.into_response();
    }
    let asked = Instant::now();
    let mut probed = server.probed().lock().await;
    let gets_on = match *probed {
        Some((at, gets_on)) if at >= asked => gets_on,
        _ => {
            let gets_on = gets_on(&server).await;
            *probed = Some((Instant::now(), gets_on));
            gets_on
        }
    };
    if gets_on {
        return StatusCode::OK.into_response();
    }
    Refused::server(503, "the engine does not get on").into_response()
}

/// Whether the engine answers, or at least takes steps where its queue has no place for one more request.
async fn gets_on(server: &Server) -> bool {
    const PATIENCE: Duration = Duration::from_secs(20);
    const LOOK: Duration = Duration::from_millis(50);
    let steps = server.engine().snapshot().steps;
    let probe = async {
        let request = Request::new(vec![0]).sampling(SamplingParams::greedy(1)).priority(i32::MAX);
        let mut generation = match server.engine().submit_async(request).await {
            Ok(generation) => generation,
            Err(
                SubmitError::QueueFull { .. } | SubmitError::Refused(Refusal::QueueFull { .. }),
            ) => {
                while server.engine().snapshot().steps == steps {
                    tokio::time::sleep(LOOK).await;
                }
                return true;
            }
            Err(_) => return false,
        };
        while let Some(event) = futures_util::StreamExt::next(&mut generation).await {
            match event {
                Ok(GenerationEvent::Finished(_)) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    };
    tokio::time::timeout(PATIENCE, probe).await.unwrap_or(false)
}

pub(super) async fn model_info(State(server): State<Server>) -> Response {
    let architecture = server.engine().model().architecture.clone();
    let path = model_path(&server);
    json_of(&json!({
        "model_path": path,
        "tokenizer_path": path,
        "served_model_name": server.options().served_model_name.first(),
        "is_generation": true,
        "preferred_sampling_params": null,
        "weight_version": "default",
        "model_type": architecture,
        "architectures": architecture.iter().collect::<Vec<_>>(),
        "has_image_understanding": false,
        "has_audio_understanding": false,
    }))
}

pub(super) async fn server_info(State(server): State<Server>) -> Response {
    let (engine, options) = (server.engine(), server.options());
    let (limits, facts, snapshot) = (engine.limits(), engine.model(), engine.snapshot());
    let load = Load::of(&server, &snapshot);
    let path = model_path(&server);
    let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let memory = json!({
        "weight": gigabytes(facts.weight_bytes),
        "kvcache": gigabytes(limits.kv_bytes),
        "token_capacity": load.capacity,
        "graph": 0,
    });
    let internal = json!({
        "last_gen_throughput": load.throughput,
        "avg_spec_accept_length": null,
        "effective_max_running_requests_per_dp": limits.max_running_requests,
        "memory_usage": memory,
    });
    json_of(&json!({
        "model_path": path,
        "tokenizer_path": path,
        "served_model_name": options.served_model_name.first(),
        "tp_size": options.tp_size,
        "dp_size": 1,
        "pp_size": 1,
        "page_size": limits.page_size,
        "context_length": limits.context_length,
        "max_total_num_tokens": load.capacity,
        "max_running_requests": limits.max_running_requests,
        "chunked_prefill_size": limits.chunked_prefill_size,
        "disaggregation_mode": "null",
        "load_balance_method": "round_robin",
        "version": env!("CARGO_PKG_VERSION"),
        "kv_events": kv_events(&server),
        "internal_states": [internal],
        "gpu_memory_used_gb": gigabytes(facts.weight_bytes.saturating_add(limits.kv_bytes)),
        "kv_cache_usage": load.usage,
        "waiting_queue_size": load.waiting,
        "num_running_reqs": load.running,
    }))
}

/// SGLang's description of where changes of the cache are published.
fn kv_events(server: &Server) -> Value {
    let Some(config) = &server.options().kv_events else { return Value::Null };
    let parts = |endpoint: &str| {
        let address = endpoint.split_once("://").map_or(endpoint, |(_, address)| address);
        let (host, port) = address.rsplit_once(':')?;
        Some((host.to_owned(), port.parse::<u16>().ok()?))
    };
    let (host, port) = parts(&config.endpoint).unzip();
    let replay = config.replay_endpoint.as_deref().and_then(parts);
    json!({
        "publisher": config.publisher,
        "endpoint_host": host,
        "endpoint_port_base": port,
        "replay_endpoint_port_base": replay.map(|(_, port)| port),
        "topic": config.topic,
        "block_size": server.engine().limits().page_size,
        "dp_size": 1,
    })
}

/// vLLM's.
pub(super) async fn kv_event_sources(State(server): State<Server>) -> Response {
    let source = server.options().kv_events.as_ref().map(|config| {
        json!({
            "publisher": config.publisher,
            "endpoint": config.endpoint,
            "replay_endpoint": config.replay_endpoint,
            "topic": config.topic,
        })
    });
    json_of(&source.map_or_else(|| json!({}), |source| json!({"0": source})))
}

pub(super) async fn loads(State(server): State<Server>) -> Response {
    let load = Load::of(&server, &server.engine().snapshot());
    let rank = json!({
        "dp_rank": 0,
        "num_running_reqs": load.running,
        "num_waiting_reqs": load.waiting,
        "num_waiting_uncached_tokens": 0,
        "num_used_tokens": load.used,
        "num_total_tokens": load.used,
        "max_total_num_tokens": load.capacity,
        "max_running_requests": load.most_running,
        "token_usage": load.usage,
        "gen_throughput": load.throughput,
        "cache_hit_rate": load.hit_rate,
        "utilization": load.utilization,
    });
    json_of(&json!({
        "timestamp": now(),
        "version": env!("CARGO_PKG_VERSION"),
        "dp_rank_count": 1,
        "loads": [rank],
    }))
}

/// vLLM's count of requests in the server.
pub(super) async fn load(State(server): State<Server>) -> Response {
    let load = Load::of(&server, &server.engine().snapshot());
    json_of(&json!({"server_load": load.running + load.waiting}))
}

pub(super) async fn metrics(State(server): State<Server>) -> Response {
    let load = Load::of(&server, &server.engine().snapshot());
    let text = server.metrics().render(server.engine(), &load);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    /// Tokens of KV that running requests hold.
    pub(crate) used: usize,
    pub(crate) capacity: usize,
    pub(crate) most_running: u32,
    /// From 0 to 1.
    pub(crate) usage: f64,
    pub(crate) utilization: f64,
    /// Generated tokens a second, over the last few seconds.
    pub(crate) throughput: f64,
    pub(crate) hit_rate: f64,
}

impl Load {
    pub(crate) fn of(server: &Server, snapshot: &EngineSnapshot) -> Self {
        let limits = server.engine().limits();
        let capacity = (limits.pages as usize).saturating_mul(limits.page_size);
        let used = snapshot.pages.in_use().saturating_mul(limits.page_size);
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let running = snapshot.scheduler.running;
        Self {
            running,
            // Those that were put back wait as well, though they no longer hold a place in the queue.
            waiting: snapshot.queued.max(snapshot.scheduler.waiting),
            used,
            capacity,
            most_running: limits.max_running_requests,
            usage: ratio(used as f64, capacity as f64),
            utilization: ratio(running as f64, f64::from(limits.max_running_requests)),
            throughput: server.metrics().throughput(),
            hit_rate: snapshot.cache_hit_rate(),
        }
    }
}
