//! Anthropic's messages into requests: the same chat, written otherwise.

use serde_json::{Map, Value, json};
use understory::text::ChatOptions;

use super::chat::{Prepared, described, prepare};
use super::messages::{length, messages};
use super::{Caller, Context, Plan};
use crate::emit::{MessageEmit, MessageShape};
use crate::protocol::{
    AnthropicChoice, AnthropicTool, ChatRequest, Message, MessageRequest, OneOrMany, Refused,
    SamplingFields, Tool, ToolChoice, ToolFunction, read,
};

/// Reads a body of `/v1/messages`.
pub(crate) fn message(context: &Context, body: &[u8], caller: &Caller) -> Result<Plan, Refused> {
    let request: MessageRequest = read(body)?;
    if request.max_tokens.is_none() {
        return Err(Refused::invalid(Some("max_tokens"), "max_tokens: Field required"));
    }
    let chat = chat(&request)?;
    // One answer only, with the extensions that chats have.
    let fields = SamplingFields {
        n: None,
        stop: request.stop_sequences.map(OneOrMany::Many),
        ..read(body)?
    };
    let Prepared { request: prepared, speech } = prepare(context, chat, &fields, caller)?;
    let stream = request.stream.unwrap_or_default();
    let head = context.head("msg", caller, request.model.as_deref());
    let emit = MessageEmit::new(head, MessageShape { stream }, speech.parser(0));
    Ok(Plan {
        requests: vec![prepared],
        rids: vec![caller.rid.clone()],
        emit: Box::new(emit),
        stream,
    })
}

/// Reads a body of `/v1/messages/count_tokens`, and answers it.
pub(crate) fn count(context: &Context, body: &[u8], _caller: &Caller) -> Result<Value, Refused> {
    let request: MessageRequest = read(body)?;
    context.check_model(request.model.as_deref())?;
    let chat = chat(&request)?;
    let sent = messages(chat.messages)?;
    let tools = chat.tools.filter(|tools| !tools.is_empty());
    let tools = tools.map(|tools| tools.iter().filter_map(described).collect::<Vec<_>>());
    let options = ChatOptions::default().tools(tools);
    context.check_length("messages", length(&sent, &options))?;
    let tokens = context.render(&sent, &options)?;
    Ok(json!({"input_tokens": tokens.len()}))
}

fn chat(request: &MessageRequest) -> Result<ChatRequest, Refused> {
    let mut all = Vec::new();
    if let Some(system) = &request.system {
        all.push(plain("system", text("system", system)?));
    }
    for (index, message) in request.messages.iter().enumerate() {
        add(index, &message.role, &message.content, &mut all)?;
    }
    let choice = request.tool_choice.as_ref();
    let parallel = choice.and_then(|choice| choice.disable_parallel_tool_use);
    Ok(ChatRequest {
        max_completion_tokens: request.max_tokens,
        tools: request.tools.as_ref().map(|tools| tools.iter().map(nested).collect()),
        tool_choice: choice.map(chosen).transpose()?,
        parallel_tool_calls: parallel.map(|disabled| !disabled),
        ..ChatRequest::new(all)
    })
}

fn plain(role: &str, content: impl Into<Value>) -> Message {
    Message {
        role: role.to_owned(),
        fields: Map::from_iter([("content".to_owned(), content.into())]),
    }
}

/// A text, or a list of blocks of text.
fn text(param: &str, value: &Value) -> Result<String, Refused> {
    let wrong = || {
        let message = format!("{param}: only text is supported");
        Refused::invalid(Some(param), message).code("unsupported")
    };
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Array(blocks) => {
            let text = |block: &Value| match block.get("type")?.as_str()? {
                "text" => Some(block.get("text")?.as_str()?.to_owned()),
                _ => None,
            };
            let texts: Option<Vec<String>> = blocks.iter().map(text).collect();
            Ok(texts.ok_or_else(wrong)?.join("\n"))
        }
        _ => Err(wrong()),
    }
}

/// A message may become several: results of tools are messages of their own.
fn add(index: usize, role: &str, content: &Value, all: &mut Vec<Message>) -> Result<(), Refused> {
    let Value::Array(blocks) = content else {
        all.push(plain(role, content.clone()));
        return Ok(());
    };
    let mut texts: Vec<&str> = Vec::new();
    let mut calls = Vec::new();
    for (place, block) in blocks.iter().enumerate() {
        let field = |name: &str| block.get(name).and_then(Value::as_str);
        match field("type") {
            Some("text") => texts.extend(field("text")),
            // What a model thought is not told to it again.
            Some("thinking" | "redacted_thinking") => {}
            Some("tool_use") => {
                let input = block.get("input").cloned().unwrap_or_else(|| json!({}));
                let function = json!({"name": field("name"), "arguments": input.to_string()});
                calls.push(json!({"id": field("id"), "type": "function", "function": function}));
            }
            Some("tool_result") => {
                let param = format!("messages[{index}].content[{place}].content");
                let result = text(&param, block.get("content").unwrap_or(&Value::Null))?;
                let mut message = plain("tool", result);
                let id = field("tool_use_id").unwrap_or_default();
                message.fields.insert("tool_call_id".to_owned(), id.into());
                all.push(message);
            }
            _ => {
                let param = format!("messages[{index}].content[{place}]");
                let message = format!("{param}: only text and tools are supported");
                return Err(Refused::invalid(Some(&param), message).code("unsupported"));
            }
        }
    }
    if !calls.is_empty() {
        let mut message = plain(role, texts.join("\n"));
        message.fields.insert("tool_calls".to_owned(), calls.into());
        all.push(message);
    } else if !texts.is_empty() {
        all.push(plain(role, texts.join("\n")));
    }
    Ok(())
}

fn nested(tool: &AnthropicTool) -> Tool {
    let AnthropicTool { name, description, input_schema } = tool.clone();
    let function = ToolFunction { name, description, parameters: input_schema, strict: None };
    Tool { kind: "function".to_owned(), function }
}

fn chosen(choice: &AnthropicChoice) -> Result<ToolChoice, Refused> {
    match (&*choice.kind, &choice.name) {
        ("auto", _) => Ok(ToolChoice::Auto),
        ("any", _) => Ok(ToolChoice::Required),
        ("none", _) => Ok(ToolChoice::None),
        ("tool", Some(name)) => Ok(ToolChoice::Named(name.clone())),
        _ => {
            let message = "tool_choice must be of type auto, any, none, or tool with a name";
            Err(Refused::invalid(Some("tool_choice"), message))
        }
    }
}
