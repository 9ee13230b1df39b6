//! Completions: `POST /v1/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Matched, Prompts, Usage};

/// The fields that only a completion has; the others are [`SamplingFields`](super::SamplingFields).
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct CompletionRequest {
    pub(crate) prompt: Prompts,
    #[serde(default)]
    pub(crate) echo: Option<bool>,
    #[serde(default)]
    pub(crate) logprobs: Option<u8>,
    #[serde(default)]
    pub(crate) suffix: Option<String>,
    #[serde(default)]
    pub(crate) best_of: Option<u32>,
    #[serde(default)]
    pub(crate) add_special_tokens: Option<bool>,
}

/// An answer, or a part of one that is streamed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Completion<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) system_fingerprint: &'a str,
    pub(crate) choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct CompletionChoice {
    pub(crate) index: u32,
    pub(crate) text: String,
    pub(crate) logprobs: Option<CompletionLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    #[serde(flatten)]
    pub(crate) matched: Option<Matched>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
}

/// Four lists of equal length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CompletionLogprobs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<Option<f32>>,
    /// Token texts to log probabilities.
    pub(crate) top_logprobs: Vec<Option<Map<String, Value>>>,
    /// In characters from the prompt's start.
    pub(crate) text_offset: Vec<usize>,
}
