//! Connections: how many, how long clients may take, and how serving ends.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::Connection;
use super::peer::Peer;
use super::state::Server;
use crate::config::{Limits, Tls};

impl Server {
    /// Serves until `stop` is ready, and then until the requests that run are answered; health is bad meanwhile, and
    /// nobody can connect. A client that shuts its writing side after its request is answered all the same.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Option<Tls>,
        stop: impl Future<Output = ()>,
    ) {
        let limits = self.limits();
        let connections = accept(&listener, self.router(), tls, limits, stop).await;
        self.start_draining();
        drop(listener);
        let drained = connections.shutdown();
        match limits.drain {
            None => drained.await,
            Some(patience) => {
                let mut drained = pin!(drained);
                if tokio::time::timeout(patience, &mut drained).await.is_err() {
                    let aborted = self.give_up();
                    tracing::warn!(aborted, "requests still ran after {} s", patience.as_secs());
                    // What was aborted is told to its clients, if they listen.
                    let _ = tokio::time::timeout(limits.write_patience, drained).await;
                }
            }
        }
    }
}

/// Answers 503 to everything until `ready` is: for the time in which a model is loaded.
pub async fn refuse_until(
    listener: &TcpListener,
    tls: Option<Tls>,
    limits: Limits,
    ready: impl Future<Output = ()>,
) {
    let starting = || async { (StatusCode::SERVICE_UNAVAILABLE, "the model is being loaded\n") };
    let router = Router::new().fallback(starting);
    let connections = accept(listener, router, tls, limits, ready).await;
    // Who sends half a request has time until the limits end it, and holds nobody up.
    tokio::spawn(connections.shutdown());
}

/// Accepts connections until `stop` is ready. What is returned waits for those that are open.
async fn accept(
    listener: &TcpListener,
    router: Router,
    tls: Option<Tls>,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> GracefulShutdown {
    let mut stop = pin!(stop);
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_patience)
        .max_buf_size(limits.head_bytes.max(8192))
        // Where the system tells a client that only finished writing from one that has left.
        .half_close(cfg!(any(target_os = "linux", target_os = "android")));
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = async {
            // Never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Too many open files, say: those that are open get time to close.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = prepare(&socket) {
            // The client is gone already.
            tracing::debug!(%error, "a connection can't be set up");
            continue;
        }
        let socket = Arc::new(socket);
        let peer = Peer::new(Arc::clone(&socket), tls.is_some());
        let routes = TowerToHyperService::new(router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            routes.call(request)
        });
        let connection = Connection::new(socket, limits.write_patience);
        match tls.clone() {
            None => {
                let connection = server.serve_connection(TokioIo::new(connection), service);
                spawn(place, connections.watch(connection));
            }
            #[cfg(feature = "tls")]
            Some(tls) => {
                let (server, watcher) = (server.clone(), connections.watcher());
                tokio::spawn(async move {
                    let _place = place;
                    let shaken = tls.acceptor().accept(connection);
                    match tokio::time::timeout(limits.head_patience, shaken).await {
                        Ok(Ok(stream)) => {
                            let connection = server.serve_connection(TokioIo::new(stream), service);
                            drop(watcher.watch(connection).await);
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
                        Err(_) => tracing::debug!("no TLS in time"),
                    }
                });
            }
            #[cfg(not(feature = "tls"))]
            Some(tls) => match tls {},
        }
    }
    connections
}

/// A connection that breaks concerns its client only.
fn spawn<E: std::fmt::Display>(
    place: Option<OwnedSemaphorePermit>,
    connection: impl Future<Output = Result<(), E>> + Send + 'static,
) {
    tokio::spawn(async move {
        let _place = place;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended");
        }
    });
}

/// Small writes go out at once, and clients that vanish without a word are found out.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    const SILENCE: Duration = Duration::from_secs(60);
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 6);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}
