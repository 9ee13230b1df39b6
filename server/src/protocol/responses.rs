//! OpenAI's responses: `POST /v1/responses`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ToolChoice;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ResponseRequest {
    pub(crate) model: Option<String>,
    pub(crate) input: Option<Value>,
    pub(crate) instructions: Option<String>,
    pub(crate) max_output_tokens: Option<u32>,
    pub(crate) stream: Option<bool>,
    pub(crate) tools: Option<Vec<FlatTool>>,
    pub(crate) tool_choice: Option<ToolChoice>,
    pub(crate) parallel_tool_calls: Option<bool>,
    pub(crate) text: Option<TextOptions>,
    pub(crate) previous_response_id: Option<String>,
    pub(crate) conversation: Option<Value>,
    pub(crate) background: Option<bool>,
    pub(crate) metadata: Option<Value>,
    pub(crate) prompt_cache_key: Option<String>,
}

/// A tool, without the level that chats have.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct FlatTool {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) description: Option<String>,
    #[serde(default)]
    pub(crate) parameters: Option<Value>,
    #[serde(default)]
    pub(crate) strict: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TextOptions {
    pub(crate) format: Option<TextFormat>,
}

/// Answers repeat it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct TextFormat {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schema: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<bool>,
}
