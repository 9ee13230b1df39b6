//! Bodies of requests, within limits.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use crate::protocol::Refused;

/// Reads a body of at most `limit` bytes, which must come within `patience`.
pub(crate) async fn read(body: Body, limit: usize, patience: Duration) -> Result<Bytes, Refused> {
    let too_long = || {
        let message = format!("the body has more than {limit} bytes");
        Refused::invalid(None, message).status(413)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_long());
    }
    let reading = async {
        let mut chunks = body.into_data_stream();
        let mut whole = BytesMut::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| {
                Refused::invalid(None, "the body broke off").code("incomplete_body")
            })?;
            if whole.len().saturating_add(chunk.len()) > limit {
                return Err(too_long());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    };
    match tokio::time::timeout(patience, reading).await {
        Ok(read) => read,
        Err(_) => {
            let message = format!("the body did not come within {} seconds", patience.as_secs());
            Err(Refused::invalid(None, message).status(408))
        }
    }
}
