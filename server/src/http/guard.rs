//! What happens to every request before its route: an id, a key, a count.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, State};
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::state::Server;
use crate::config::Origins;
use crate::emit::anthropic_error;
use crate::metrics::Open;
use crate::protocol::Refused;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    /// The request's id, sent or made.
    pub(crate) rid: String,
    /// Whom the key belongs to.
    pub(crate) tenant: Option<String>,
}

/// Routes that are open without a key: probes and scrapers have none, and the page asks its user for one.
const OPEN: [&str; 6] = ["/", "/health", "/ready", "/ping", "/metrics", "/health_generate"];

pub(crate) async fn guard(
    State(server): State<Server>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let open = server.metrics().open();
    let rid = request_id(request.headers());
    let (origin, wanted) = (
        request.headers().get("origin").cloned(),
        request.headers().get("access-control-request-headers").cloned(),
    );
    let is_anthropic = request.uri().path().starts_with("/v1/messages");
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>();
    let handler = path.map_or("other", |path| path.as_str()).to_owned();
    let cors = server.options().cors.as_ref();

    let mut response = if method == Method::OPTIONS && cors.is_some() {
        StatusCode::NO_CONTENT.into_response()
    } else {
        match admit(&server, request.headers(), request.uri().path()) {
            Ok(tenant) => {
                request.extensions_mut().insert(Identity { rid: rid.clone(), tenant });
                tokio::select! {
                    answered = next.run(request) => answered,
                    () = server.gave_up() => {
                        Refused::server(503, "the server is shutting down").into_response()
                    }
                }
            }
            Err(refused) => refused.into_response(),
        }
    };
    if is_anthropic {
        response = anthropic(response);
    }
    server.metrics().count_http(&method, &handler, response.status().as_u16());
    tracing::debug!(%method, handler, rid, status = response.status().as_u16(), "answered");
    let headers = response.headers_mut();
    if let Ok(rid) = HeaderValue::from_str(&rid) {
        headers.insert(REQUEST_ID, rid);
    }
    if let (Some(cors), Some(origin)) = (cors, origin) {
        allow(cors, origin, wanted, headers);
    }
    let (head, body) = response.into_parts();
    Response::from_parts(head, Body::new(WatchedBody { body, _open: open }))
}

/// A body whose request counts as open until the body is written, or dropped.
struct WatchedBody {
    body: Body,
    _open: Open,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn admit(server: &Server, headers: &HeaderMap, path: &str) -> Result<Option<String>, Refused> {
    if OPEN.contains(&path) {
        return Ok(None);
    }
    server.keys().admit(presented(headers)).ok_or_else(|| Refused {
        status: 401,
        kind: "invalid_request_error",
        message: "the API key is missing or wrong".to_owned(),
        param: None,
        code: Some("invalid_api_key"),
    })
}

/// The key that a client sent: as a bearer, by itself, or as Anthropic's clients do.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let authorization = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let bare = authorization.map(|value| match value.split_at_checked(7) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key,
        _ => value,
    });
    bare.map(<[u8]>::trim_ascii).or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes))
}

/// The id that the client sent, if it is one that logs and headers can show, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    const LONGEST: usize = 128;
    let sent = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_good = |id: &&str| {
        (1..=LONGEST).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    sent.filter(is_good).map_or_else(random_id, str::to_owned)
}

/// 32 hexadecimal digits. The standard library seeds its hash maps from the system's randomness.
pub(crate) fn random_id() -> String {
    let number = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", number(), number())
}

/// Errors as Anthropic's clients read them.
fn anthropic(response: Response) -> Response {
    match response.extensions().get::<Refused>() {
        None => response,
        Some(refused) => {
            let shown = anthropic_error(refused).to_string();
            response.map(|_| Body::from(shown))
        }
    }
}

/// `wanted` are the headers that a page asks to send: clients in browsers have headers of their own.
fn allow(
    origins: &Origins,
    origin: HeaderValue,
    wanted: Option<HeaderValue>,
    headers: &mut HeaderMap,
) {
    let allowed = match origins {
        Origins::Any => HeaderValue::from_static("*"),
        Origins::Listed(listed) if listed.iter().any(|own| own.as_bytes() == origin.as_bytes()) => {
            headers.append("vary", HeaderValue::from_static("origin"));
            origin
        }
        Origins::Listed(_) => return,
    };
    headers.insert("access-control-allow-origin", allowed);
    headers.insert("access-control-allow-methods", HeaderValue::from_static("GET, POST, PUT"));
    headers.append("vary", HeaderValue::from_static("access-control-request-headers"));
    if let Some(wanted) = wanted {
        headers.insert("access-control-allow-headers", wanted);
    }
    let exposed = HeaderValue::from_static("retry-after, x-request-id");
    headers.insert("access-control-expose-headers", exposed);
    headers.insert("access-control-max-age", HeaderValue::from_static("600"));
}
