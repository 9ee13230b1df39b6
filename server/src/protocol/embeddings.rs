//! Embeddings: `POST /v1/embeddings`.

use serde::{Deserialize, Serialize};

use super::Prompts;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct EmbeddingRequest {
    pub(crate) input: Prompts,
    #[serde(default)]
    pub(crate) model: Option<String>,
    #[serde(default)]
    pub(crate) encoding_format: Option<EncodingFormat>,
    #[serde(default)]
    pub(crate) dimensions: Option<usize>,
    #[serde(default)]
    pub(crate) cache_salt: Option<String>,
    #[serde(default)]
    pub(crate) priority: Option<i32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Embeddings<'a> {
    pub(crate) object: &'static str,
    pub(crate) data: Vec<EmbeddingData>,
    pub(crate) model: &'a str,
    pub(crate) usage: EmbeddingUsage,
}

#[derive(Debug, Serialize)]
pub(crate) struct EmbeddingData {
    pub(crate) object: &'static str,
    pub(crate) index: usize,
    pub(crate) embedding: Vector,
}

/// Numbers, or their bytes in base 64: 32 bits each, the lowest byte first.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct EmbeddingUsage {
    pub(crate) prompt_tokens: u32,
    pub(crate) total_tokens: u32,
}
