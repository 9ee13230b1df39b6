//! What clients send and get, as serde types: no engine and no HTTP in here.
//!
//! Fields that have no meaning here are ignored, as routers and clients add their own. A field that is `null` counts as
//! absent. A field of the wrong kind is an error that names the field.

mod chat;
mod completions;
mod embeddings;
mod error;
mod generate;
mod messages;
mod one_or_many;
mod prompts;
mod responses;
mod sampling;
mod usage;

use serde::de::DeserializeOwned;

pub(crate) use chat::*;
pub(crate) use completions::*;
pub(crate) use embeddings::*;
pub(crate) use error::Refused;
pub(crate) use generate::*;
pub(crate) use messages::*;
pub(crate) use one_or_many::OneOrMany;
pub(crate) use prompts::{PromptInput, Prompts};
pub(crate) use responses::*;
pub(crate) use sampling::*;
pub(crate) use usage::Usage;

/// Reads the body of a request.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    // A list would be taken for the fields in their order.
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(Refused::invalid(None, "the body is no JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner().to_string();
        match path.as_str() {
            "." => Refused::invalid(None, format!("the body is no request: {reason}")),
            _ => Refused::invalid(Some(&path), format!("{path}: {reason}")),
        }
    })?;
    json.end().map_err(|error| Refused::invalid(None, format!("the body is not JSON: {error}")))?;
    Ok(value)
}
