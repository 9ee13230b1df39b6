//! Whether a client is still there while its answer is computed.
//!
//! A client that has left and one that has only finished writing look alike: both have sent a FIN. The first answers
//! whatever it is sent with a reset. So a client that has finished writing is sent an interim response (102, which
//! HTTP/1.1 clients must skip) before its answer begins; later, each piece of the answer does the same. Clients that
//! keep their writing side open never see one.

use std::sync::Arc;

use axum::http::Version;
use tokio::io::Interest;
use tokio::net::TcpStream;

const PROBE: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

/// The client's end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    socket: Arc<TcpStream>,
    /// Bytes of ours can't be put between those of TLS.
    is_encrypted: bool,
}

impl Peer {
    pub(crate) fn new(socket: Arc<TcpStream>, is_encrypted: bool) -> Self {
        Self { socket, is_encrypted }
    }

    /// Ready when the client has left, before anything of its answer was written. Never ready for a client that only
    /// finished writing, nor where the system can't tell.
    pub(crate) async fn left(&self, version: Version) {
        self.finished_writing().await;
        if self.is_encrypted {
            // Half-closed connections are not a thing of TLS clients.
            return;
        }
        if version >= Version::HTTP_11 {
            // What can't be written now is not needed: the socket's buffer is full of what the client has not read.
            let _ = self.socket.try_write(PROBE);
        }
        // The reset.
        if self.socket.ready(Interest::ERROR).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    async fn finished_writing(&self) {
        // Beside urgent data, which HTTP has none of, this waits for the end of the client's data alone, whether or
        // not all of the data has been read.
        if self.socket.ready(Interest::PRIORITY).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    async fn finished_writing(&self) {
        std::future::pending::<()>().await;
    }
}

/// As [`Peer::left`], where there is a connection.
pub(crate) async fn left(peer: Option<&Peer>, version: Version) {
    match peer {
        Some(peer) => peer.left(version).await,
        None => std::future::pending().await,
    }
}
