//! Which path is answered by what.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};

use super::answer::{Intake, generate};
use super::guard::guard;
use super::state::Server;
use super::{control, embeddings, info};
use crate::protocol::Refused;
use crate::{intake, page};

impl Server {
    /// All routes, for a service that mounts them beside its own.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/", get(page::page))
            .route("/figures", get(page::figures))
            .route("/v1/chat/completions", generating(intake::chat, "messages"))
            .route("/v1/completions", generating(intake::completion, "prompt"))
            .route("/generate", generating_put(intake::generate, "input_ids"))
            .route("/v1/responses", generating(intake::response, "input"))
            .route("/v1/messages", generating(intake::message, "messages"))
            .route("/v1/messages/count_tokens", post(control::count))
            .route("/v1/embeddings", post(embeddings::embeddings))
            .route("/v1/models", get(info::models))
            .route("/v1/models/{*name}", get(info::model))
            .route("/health", get(info::health))
            .route("/ready", get(info::health))
            .route("/ping", get(info::health).post(info::health))
            .route("/health_generate", get(info::health_generate))
            .route("/get_model_info", get(info::model_info))
            .route("/model_info", get(info::model_info))
            .route("/get_server_info", get(info::server_info))
            .route("/server_info", get(info::server_info))
            .route("/kv_event_sources", get(info::kv_event_sources))
            .route("/v1/loads", get(info::loads))
            .route("/load", get(info::load))
            .route("/metrics", get(info::metrics))
            .route("/flush_cache", get(control::flush).post(control::flush))
            .route("/reset_prefix_cache", post(control::flush))
            .route("/abort_request", post(control::abort))
            .route("/tokenize", post(control::tokenize))
            .route("/v1/tokenize", post(control::tokenize))
            .route("/detokenize", post(control::detokenize))
            .route("/v1/detokenize", post(control::detokenize))
            .fallback(unknown)
            .method_not_allowed_fallback(wrong_method)
            .layer(from_fn_with_state(self.clone(), guard))
            .with_state(self.clone())
    }
}

fn generating(intake: Intake, prompt: &'static str) -> MethodRouter<Server> {
    post(move |State(server): State<Server>, request: Request<Body>| {
        generate(server, request, intake, prompt)
    })
}

fn generating_put(intake: Intake, prompt: &'static str) -> MethodRouter<Server> {
    let handler = move |State(server): State<Server>, request: Request<Body>| {
        generate(server, request, intake, prompt)
    };
    post(handler).put(handler)
}

async fn unknown(uri: Uri) -> Response {
    let message = format!("there is no route {}", uri.path());
    Refused::invalid(None, message).code("not_found").status(404).into_response()
}

async fn wrong_method() -> Response {
    let message = "the route does not take this method";
    Refused::invalid(None, message).code("method_not_allowed").status(405).into_response()
}
