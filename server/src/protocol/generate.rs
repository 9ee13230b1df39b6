//! SGLang's native `POST /generate`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{NativeSampling, OneOrMany, Prompts};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GenerateRequest {
    pub(crate) text: Option<OneOrMany<String>>,
    pub(crate) input_ids: Option<Prompts>,
    pub(crate) sampling_params: Option<OneOrMany<NativeSampling>>,
    pub(crate) rid: Option<OneOrMany<String>>,
    pub(crate) return_logprob: Option<bool>,
    pub(crate) logprob_start_len: Option<i64>,
    pub(crate) top_logprobs_num: Option<u8>,
    pub(crate) return_text_in_logprobs: Option<bool>,
    pub(crate) stream: Option<bool>,
    pub(crate) extra_key: Option<String>,
    pub(crate) cache_salt: Option<String>,
    pub(crate) priority: Option<i32>,
    pub(crate) lora_path: Option<Value>,
    pub(crate) image_data: Option<Value>,
    pub(crate) audio_data: Option<Value>,
    pub(crate) video_data: Option<Value>,
    pub(crate) input_embeds: Option<Value>,
    pub(crate) bootstrap_host: Option<Value>,
    pub(crate) bootstrap_room: Option<Value>,
    pub(crate) token_ids_logprob: Option<Value>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Generated<'a> {
    pub(crate) text: &'a str,
    pub(crate) output_ids: &'a [u32],
    pub(crate) meta_info: MetaInfo<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<u32>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetaInfo<'a> {
    pub(crate) id: &'a str,
    pub(crate) finish_reason: Option<NativeFinish>,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) cached_tokens_details: CachedTokens,
    pub(crate) weight_version: &'static str,
    pub(crate) e2e_latency: f64,
    pub(crate) num_retractions: u32,
    #[serde(flatten)]
    pub(crate) logprobs: Option<NativeLogprobs<'a>>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CachedTokens {
    pub(crate) device: u32,
    pub(crate) host: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum NativeFinish {
    Stop { matched: Value },
    Length { length: u32 },
    Abort { message: String, status_code: u16 },
}

/// A log probability, the token, and its text where asked for.
pub(crate) type Triple = (Option<f32>, u32, Option<String>);

#[derive(Clone, Debug, Serialize)]
pub(crate) struct NativeLogprobs<'a> {
    pub(crate) input_token_logprobs: &'a [Triple],
    pub(crate) output_token_logprobs: &'a [Triple],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input_top_logprobs: Option<&'a [Option<Vec<Triple>>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_top_logprobs: Option<&'a [Option<Vec<Triple>>]>,
}
