//! Anthropic's messages: `POST /v1/messages`.

use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MessageRequest {
    #[serde(default)]
    pub(crate) model: Option<String>,
    pub(crate) messages: Vec<AnthropicMessage>,
    /// Anthropic's interface needs it; counting tokens does not.
    #[serde(default)]
    pub(crate) max_tokens: Option<u32>,
    #[serde(default)]
    pub(crate) system: Option<Value>,
    #[serde(default)]
    pub(crate) stop_sequences: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    #[serde(default)]
    pub(crate) tools: Option<Vec<AnthropicTool>>,
    #[serde(default)]
    pub(crate) tool_choice: Option<AnthropicChoice>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AnthropicMessage {
    pub(crate) role: String,
    pub(crate) content: Value,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AnthropicTool {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: Option<String>,
    #[serde(default)]
    pub(crate) input_schema: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AnthropicChoice {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) disable_parallel_tool_use: Option<bool>,
}
