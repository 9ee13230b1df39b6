//! Answers those who have missed batches.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use zeromq::{RouterSocket, SocketRecv, SocketSend, ZmqMessage};

use super::log::{Batch, Since};
use super::publisher::Shared;

/// Answers one request after another. A request is malformed if its last frame is no number. A peer that does not read
/// its answer is not answered for a while, so that others are.
pub(super) async fn answer_replays(mut socket: RouterSocket, shared: Arc<Shared>) {
    /// For all batches of an answer; what the socket has room for takes no time.
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_secs(60);
    let mut stalled: HashMap<Bytes, Instant> = HashMap::new();
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
        stalled.retain(|_, since| since.elapsed() < PAUSE);
        if stalled.contains_key(peer) {
            continue;
        }
        let Ok(start) = <[u8; 8]>::try_from(&last[..]) else {
            tracing::debug!("a request for cache events has no number");
            continue;
        };
        let batches = batches(&shared, u64::from_be_bytes(start)).await;
        let answered = answer(&mut socket, peer, &shared.topic, batches);
        if tokio::time::timeout(PATIENCE, answered).await.is_err() {
            tracing::warn!("a peer that asked for cache events does not read them");
            stalled.insert(peer.clone(), Instant::now());
        }
    }
}

/// Sends batches and the mark of their end, as long as the peer is there.
async fn answer(socket: &mut RouterSocket, peer: &Bytes, topic: &Bytes, batches: Vec<Batch>) {
    for batch in batches {
        let number = Bytes::copy_from_slice(&batch.number.to_be_bytes());
        let frames = [Bytes::new(), topic.clone(), number, batch.payload];
        if !send(socket, peer, frames).await {
            return;
        }
    }
    let end = Bytes::copy_from_slice(&(-1_i64).to_be_bytes());
    send(socket, peer, [Bytes::new(), Bytes::new(), end, Bytes::new()]).await;
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
