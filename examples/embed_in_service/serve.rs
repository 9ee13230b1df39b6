//! Connections: how long a client may take, and how the service ends.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

/// How long clients may take, and how much they may send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the head of a request, from when it is expected. The connection is closed after it, an
    /// idle one too.
    pub(crate) head: Duration,
    /// For the body of a request.
    pub(crate) body: Duration,
    /// Longest body in bytes.
    pub(crate) body_bytes: usize,
    /// Longest silence of an answer: then a comment is sent, which shows whether the client is
    /// still there.
    pub(crate) silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            body_bytes: 16 << 20,
            silence: Duration::from_secs(1),
        }
    }
}

/// Why a body is not read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body did not come within {} seconds", limit.as_secs())]
    Slow { limit: Duration },
    #[error("the body broke off, or has more than {limit} bytes")]
    Unreadable { limit: usize, source: axum::Error },
}

impl BodyError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Slow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Unreadable { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

/// Reads a body within the limits.
pub(crate) async fn read(body: Body, limits: Limits) -> Result<Bytes, BodyError> {
    let limit = limits.body_bytes;
    match tokio::time::timeout(limits.body, to_bytes(body, limit)).await {
        Ok(bytes) => bytes.map_err(|source| BodyError::Unreadable { limit, source }),
        Err(_) => Err(BodyError::Slow { limit: limits.body }),
    }
}

/// Serves until `stop` is ready, and then until the requests that run are answered.
///
/// A client that shuts its writing side after its request is answered all the same. Whether it
/// still listens shows when something is written to it.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(limits.head).half_close(true);
    let connections = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Too many open files, say: those that are open get time to close.
                    eprintln!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = server.serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        // A connection that breaks concerns its client only.
        tokio::spawn(async move { drop(connection.await) });
    }
    drop(listener);
    connections.shutdown().await;
}
