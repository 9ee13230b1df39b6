//! Vectors of texts.

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use understory::error::GenerateError;

use super::answer::{caller, gone, json_of};
use super::body;
use super::peer::{Peer, left};
use super::state::Server;
use crate::emit::base64;
use crate::intake::{self, EmbeddingPlan};
use crate::protocol::{EmbeddingData, EmbeddingUsage, Embeddings, EncodingFormat, Refused, Vector};

pub(super) async fn embeddings(State(server): State<Server>, request: Request<Body>) -> Response {
    let version = request.version();
    let peer = request.extensions().get::<Peer>().cloned();
    tokio::select! {
        answered = answer(&server, request) => answered.unwrap_or_else(IntoResponse::into_response),
        () = left(peer.as_ref(), version) => gone(),
    }
}

async fn answer(server: &Server, request: Request<Body>) -> Result<Response, Refused> {
    let caller = caller(&request);
    let bytes = body::read(request.into_body(), server.limits(), server.bodies()).await?;
    let own = server.clone();
    let work = move || intake::embeddings(own.context(), &bytes, &caller);
    let EmbeddingPlan { requests, format, model } = server.off_runtime(work).await??;
    // Dropping these futures gives the requests up.
    let vectors = requests.into_iter().map(|request| server.engine().embed_async(request));
    let vectors = try_join_all(vectors).await.map_err(|error| match &error {
        GenerateError::Submit(error) => intake::refused(error, "input"),
        GenerateError::Generation(error) => intake::ended(error),
        _ => Refused::server(500, error.to_string()),
    })?;
    let tokens =
        vectors.iter().fold(0_u32, |sum, vector| sum.saturating_add(vector.usage.prompt_tokens));
    let data = vectors.into_iter().enumerate().map(|(index, embedding)| EmbeddingData {
        object: "embedding",
        index,
        embedding: match format {
            EncodingFormat::Float => Vector::Floats(embedding.vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> =
                    embedding.vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Vector::Base64(base64(&bytes))
            }
        },
    });
    let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(json_of(&Embeddings { object: "list", data: data.collect(), model: &model, usage }))
}
