//! Texts and conversations into tokens, for those who count them.

use serde::Deserialize;
use serde_json::{Value, json};
use understory::text::ChatOptions;

use super::messages::{length, messages};
use super::{Caller, Context};
use crate::protocol::{Message, OneOrMany, PromptInput, Refused, Tool, read};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<OneOrMany<String>>,
    text: Option<OneOrMany<String>>,
    messages: Option<Vec<Message>>,
    tools: Option<Vec<Tool>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
}

/// Reads a body of `/tokenize`, and answers it.
pub(crate) fn tokenize(context: &Context, body: &[u8], _caller: &Caller) -> Result<Value, Refused> {
    let request: TokenizeRequest = read(body)?;
    context.check_model(request.model.as_deref())?;
    let max_model_len = context.engine.limits().context_length;
    let prompt = match (request.prompt.or(request.text), request.messages) {
        (Some(prompt), None) => prompt,
        (None, Some(sent)) => {
            let sent = messages(sent)?;
            let tools = request.tools.filter(|tools| !tools.is_empty());
            let tools = tools
                .map(|tools| tools.iter().filter_map(super::chat::described).collect::<Vec<_>>());
            let options = ChatOptions::default()
                .add_generation_prompt(request.add_generation_prompt.unwrap_or(true))
                .tools(tools);
            context.check_length("messages", length(&sent, &options))?;
            let tokens = context.render(&sent, &options)?;
            return Ok(json!({
                "tokens": tokens, "count": tokens.len(), "max_model_len": max_model_len,
            }));
        }
        _ => return Err(Refused::invalid(Some("prompt"), "exactly one of prompt and messages")),
    };
    let add_special_tokens = request.add_special_tokens.unwrap_or(true);
    let encode =
        |text: String| context.tokens("prompt", &PromptInput::Text(text), add_special_tokens);
    Ok(match prompt {
        OneOrMany::One(text) => {
            let tokens = encode(text)?;
            json!({"tokens": tokens, "count": tokens.len(), "max_model_len": max_model_len})
        }
        OneOrMany::Many(texts) => {
            context.check_prompts("prompt", texts.len())?;
            let all = texts.into_iter().map(encode).collect::<Result<Vec<_>, _>>()?;
            let counts: Vec<_> = all.iter().map(Vec::len).collect();
            json!({"tokens": all, "count": counts, "max_model_len": max_model_len})
        }
    })
}
