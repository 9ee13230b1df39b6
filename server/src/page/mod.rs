//! The page at `/`: a chat, and what the engine does meanwhile. It needs nothing but this server.

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::http::{Load, Server, json_of};

const PAGE: &str = include_str!("index.html");

/// Nothing is loaded from elsewhere, and nothing is sent elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) async fn page() -> Response {
    let head = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
    ];
    (head, PAGE).into_response()
}

/// What the page draws.
pub(crate) async fn figures(State(server): State<Server>) -> Response {
    let snapshot = server.engine().snapshot();
    let load = Load::of(&server, &snapshot);
    let pages = snapshot.pages;
    json_of(&json!({
        "model": server.options().served_model_name.first(),
        "running": load.running,
        "waiting": load.waiting,
        "throughput": load.throughput,
        "hit_rate": load.hit_rate,
        "generated": snapshot.scheduler.generated_tokens,
        "retractions": snapshot.scheduler.retractions,
        "evicted": snapshot.scheduler.evicted_pages,
        "tree": pages.cached_evictable + pages.cached_locked,
        "shared": pages.cached_locked,
        "found": format!("{} of {}", snapshot.cache.requests_hit, snapshot.cache.requests),
        "pages": {
            "free": pages.free,
            "evictable": pages.cached_evictable,
            "locked": pages.cached_locked + pages.loading,
            "owned": pages.owned_by_sequences,
            "capacity": pages.capacity,
        },
    }))
}
