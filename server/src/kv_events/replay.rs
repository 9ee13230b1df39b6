//! Answers those who have missed batches.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use zeromq::{RouterSocket, SocketRecv, SocketSend, ZmqMessage};

use super::log::{Batch, Since};
use super::publisher::Shared;

/// Answers one request after another. A request is malformed if its last frame is no number.
pub(super) async fn answer_replays(mut socket: RouterSocket, shared: Arc<Shared>) {
    loop {
        let request = match socket.recv().await {
            Ok(request) => request.into_vec(),
            Err(error) => {
                tracing::debug!(%error, "a request for cache events was not received");
                // The next peer may ask all the same.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (Some(peer), Some(last)) = (request.first(), request.last()) else { continue };
        let Ok(start) = <[u8; 8]>::try_from(&last[..]) else {
            tracing::debug!("a request for cache events has no number");
            continue;
        };
        for batch in batches(&shared, u64::from_be_bytes(start)).await {
            let number = Bytes::copy_from_slice(&batch.number.to_be_bytes());
            let frames = [Bytes::new(), shared.topic.clone(), number, batch.payload];
            if !send(&mut socket, peer, frames).await {
                break;
            }
        }
        let end = Bytes::copy_from_slice(&(-1_i64).to_be_bytes());
        send(&mut socket, peer, [Bytes::new(), Bytes::new(), end, Bytes::new()]).await;
    }
}

/// The batches from a number on, or in their place the whole tree.
async fn batches(shared: &Arc<Shared>, start: u64) -> Vec<Batch> {
    let since = shared.log.lock().unwrap_or_else(PoisonError::into_inner).since(start);
    match since {
        Since::Kept(batches) => batches,
        // Taken after the last batch was numbered: it tells of all that this one told, and perhaps
        // of changes that are published later and change nothing when they are told again.
        Since::Gone { last } => {
            let shared = Arc::clone(shared);
            let payload = tokio::task::spawn_blocking(move || shared.snapshot()).await;
            let payload = payload.ok().flatten();
            payload.map(|payload| Batch { number: last, payload }).into_iter().collect()
        }
    }
}

/// Whether the peer is still there.
async fn send(socket: &mut RouterSocket, peer: &Bytes, frames: [Bytes; 4]) -> bool {
    let frames: Vec<Bytes> = [peer.clone()].into_iter().chain(frames).collect();
    match ZmqMessage::try_from(frames) {
        Ok(message) => socket.send(message).await.is_ok(),
        Err(_) => false,
    }
}
