//! Embedding requests.

use understory::request::EmbedRequest;

use super::{Caller, Context};
use crate::protocol::{EmbeddingRequest, EncodingFormat, Refused, read};

/// Texts whose vectors are wanted.
pub(crate) struct EmbeddingPlan {
    pub(crate) requests: Vec<EmbedRequest>,
    pub(crate) format: EncodingFormat,
    pub(crate) model: String,
}

/// Reads a body of `/v1/embeddings`.
pub(crate) fn embeddings(
    context: &Context,
    body: &[u8],
    caller: &Caller,
) -> Result<EmbeddingPlan, Refused> {
    let request: EmbeddingRequest = read(body)?;
    context.check_model(request.model.as_deref())?;
    if request.dimensions.is_some() {
        let message = "the model's vectors have one size only";
        return Err(Refused::invalid(Some("dimensions"), message).code("unsupported"));
    }
    let inputs = request.input.into_list();
    context.check_prompts("input", inputs.len())?;
    let namespace = context.namespace(caller, "cache_salt", request.cache_salt.as_deref())?;
    let requests = inputs.iter().map(|input| {
        let tokens = context.tokens("input", input, true)?;
        let mut embed = EmbedRequest::new(tokens).namespace(namespace);
        embed.priority = request.priority.unwrap_or_default();
        Ok(embed)
    });
    Ok(EmbeddingPlan {
        requests: requests.collect::<Result<_, Refused>>()?,
        format: request.encoding_format.unwrap_or_default(),
        model: context.own_name(request.model.as_deref()).to_owned(),
    })
}
