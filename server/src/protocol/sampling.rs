//! How tokens are sampled: the fields that chat and completions share, and SGLang's.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::OneOrMany;

/// What chat and completions have in common, with the extensions of SGLang and vLLM.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SamplingFields {
    pub(crate) model: Option<String>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) n: Option<u32>,
    pub(crate) stop: Option<OneOrMany<String>>,
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) min_tokens: Option<u32>,
    pub(crate) seed: Option<Seed>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) skip_special_tokens: Option<bool>,
    pub(crate) include_stop_str_in_output: Option<bool>,
    pub(crate) no_stop_trim: Option<bool>,
    pub(crate) response_format: Option<ResponseFormat>,
    pub(crate) regex: Option<String>,
    pub(crate) ebnf: Option<String>,
    pub(crate) structured_outputs: Option<StructuredOutputs>,
    pub(crate) cache_salt: Option<String>,
    pub(crate) priority: Option<i32>,
    pub(crate) rid: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) return_token_ids: Option<bool>,
    pub(crate) audio: Option<Value>,
    pub(crate) lora_path: Option<Value>,
    pub(crate) bootstrap_room: Option<Value>,
    pub(crate) kv_transfer_params: Option<Value>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: Option<bool>,
    pub(crate) continuous_usage_stats: Option<bool>,
}

/// A seed: any whole number of 64 bits. Negative ones are read as their bits.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "serde_json::Number")]
pub(crate) struct Seed(pub(crate) u64);

impl TryFrom<serde_json::Number> for Seed {
    type Error = &'static str;

    fn try_from(number: serde_json::Number) -> Result<Self, Self::Error> {
        let bits = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
        bits.map(Self).ok_or("a seed must be a whole number of 64 bits")
    }
}

/// OpenAI's way to ask for structured output.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ResponseFormat {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) json_schema: Option<JsonSchemaFormat>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct JsonSchemaFormat {
    pub(crate) schema: Option<Value>,
}

/// vLLM's way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StructuredOutputs {
    pub(crate) json: Option<Value>,
    pub(crate) json_object: Option<bool>,
    pub(crate) regex: Option<String>,
    pub(crate) choice: Option<Vec<String>>,
    pub(crate) grammar: Option<String>,
}

/// SGLang's sampling parameters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NativeSampling {
    pub(crate) max_new_tokens: Option<u32>,
    pub(crate) min_new_tokens: Option<u32>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) stop: Option<OneOrMany<String>>,
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) n: Option<u32>,
    pub(crate) seed: Option<Seed>,
    pub(crate) sampling_seed: Option<Seed>,
    pub(crate) json_schema: Option<String>,
    pub(crate) regex: Option<String>,
    pub(crate) ebnf: Option<String>,
    pub(crate) skip_special_tokens: Option<bool>,
    pub(crate) no_stop_trim: Option<bool>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
}
