//! Bodies of requests, within limits.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, HttpBody};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::Limits;
use crate::protocol::Refused;

/// Bytes that every body may have without a share of the budget.
const FREE: usize = 16 << 10;

/// Bytes of a permit.
const UNIT: usize = 1 << 10;

/// Memory for the bodies that are being read or wait to be tokenized: eight of the longest.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    /// Bodies of the longest kind that fit.
    const BODIES: usize = 8;

    pub(crate) fn new(limits: &Limits) -> Self {
        let units = permits(limits.body_bytes).saturating_mul(Self::BODIES);
        Self(Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))))
    }

    /// Memory for so many bytes. Waiting bodies are served in turn and hold no share meanwhile, so no two wait for
    /// each other.
    async fn share(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(permits(bytes)).unwrap_or(u32::MAX);
        // Never closed.
        Arc::clone(&self.0).acquire_many_owned(permits).await.ok()
    }
}

fn permits(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).min(u32::MAX as usize)
}

/// A body that was read, and its share of the budget.
#[derive(Debug)]
pub(crate) struct Read {
    bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl Deref for Read {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a body within the limits. Memory for a long one is taken before it is read.
pub(crate) async fn read(body: Body, limits: Limits, budget: &Budget) -> Result<Read, Refused> {
    let (limit, patience) = (limits.body_bytes, limits.body_patience);
    let hint = body.size_hint();
    if hint.lower() > limit as u64 {
        return Err(too_long(limit));
    }
    let declared = hint.upper().and_then(|upper| usize::try_from(upper).ok());
    let longest = declared.unwrap_or(limit).min(limit);
    let mut reader = Reader { chunks: body.into_data_stream(), whole: BytesMut::new(), limit };
    let begin = Instant::now();
    if in_time(patience, patience, reader.read_beyond(FREE)).await? {
        return Ok(Read { bytes: reader.whole.freeze(), _share: None });
    }
    let rest = patience.saturating_sub(begin.elapsed());
    let mut share = match timeout(patience, budget.share(longest)).await {
        Ok(share) => share,
        Err(_) => return Err(Refused::server(503, "there is no memory left for long bodies")),
    };
    in_time(rest, patience, reader.read_beyond(usize::MAX)).await?;
    if let Some(share) = &mut share {
        // The body may be shorter than it could have been.
        let surplus = share.num_permits().saturating_sub(permits(reader.whole.len()));
        drop(share.split(surplus));
    }
    Ok(Read { bytes: reader.whole.freeze(), _share: share })
}

async fn in_time<T>(
    rest: Duration,
    patience: Duration,
    reading: impl Future<Output = Result<T, Refused>>,
) -> Result<T, Refused> {
    match timeout(rest, reading).await {
        Ok(read) => read,
        Err(_) => {
            let message = format!("the body did not come within {} seconds", patience.as_secs());
            Err(Refused::invalid(None, message).status(408))
        }
    }
}

fn too_long(limit: usize) -> Refused {
    Refused::invalid(None, format!("the body has more than {limit} bytes")).status(413)
}

struct Reader {
    chunks: BodyDataStream,
    whole: BytesMut,
    limit: usize,
}

impl Reader {
    /// Reads until there are more than so many bytes. Whether the body ended before.
    async fn read_beyond(&mut self, bytes: usize) -> Result<bool, Refused> {
        while self.whole.len() <= bytes {
            let Some(chunk) = self.chunks.next().await else { return Ok(true) };
            let chunk = chunk.map_err(|_| {
                Refused::invalid(None, "the body broke off").code("incomplete_body")
            })?;
            if self.whole.len().saturating_add(chunk.len()) > self.limit {
                return Err(too_long(self.limit));
            }
            self.whole.extend_from_slice(&chunk);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            body_bytes: 64 << 10,
            body_patience: Duration::from_millis(300),
            ..Limits::default()
        }
    }

    fn slow() -> Body {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(vec![b' '; FREE + 1])]);
        Body::from_stream(first.chain(futures_util::stream::pending()))
    }

    #[tokio::test]
    async fn long_bodies_share_a_budget_and_short_ones_need_none() {
        let (limits, budget) = (limits(), Budget::new(&limits()));
        let hoarders: Vec<_> = (0..Budget::BODIES)
            .map(|_| {
                let budget = budget.clone();
                let longer = Limits { body_patience: Duration::from_secs(60), ..limits };
                tokio::spawn(async move { read(slow(), longer, &budget).await.map(drop) })
            })
            .collect();
        while budget.0.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = read(Body::from(vec![b' '; FREE + 1]), limits, &budget).await.unwrap_err();
        assert_eq!(refused.status, 503);
        assert_eq!(read(Body::from("short"), limits, &budget).await.unwrap().len(), 5);

        hoarders.iter().for_each(tokio::task::JoinHandle::abort);
        let long = read(Body::from(vec![b' '; FREE + 1]), limits, &budget).await.unwrap();
        let all = permits(limits.body_bytes) * Budget::BODIES;
        assert_eq!(budget.0.available_permits(), all - permits(FREE + 1), "as long as it is kept");
        drop(long);
        assert_eq!(budget.0.available_permits(), all);
    }

    #[tokio::test]
    async fn a_body_that_stops_coming_gives_its_share_back() {
        let (limits, budget) = (limits(), Budget::new(&limits()));
        assert_eq!(read(slow(), limits, &budget).await.unwrap_err().status, 408);
        let all = permits(limits.body_bytes) * Budget::BODIES;
        assert_eq!(budget.0.available_permits(), all);
    }
}
