//! Responses into requests: the same chat, written otherwise.

use serde_json::{Map, Value, json};

use super::chat::{Prepared, prepare};
use super::{Caller, Context, Plan};
use crate::emit::{ResponseEmit, ResponseShape};
use crate::protocol::{
    ChatRequest, FlatTool, JsonSchemaFormat, Message, Refused, ResponseFormat, ResponseRequest,
    SamplingFields, Tool, ToolChoice, ToolFunction, read,
};

/// Reads a body of `/v1/responses`.
pub(crate) fn response(context: &Context, body: &[u8], caller: &Caller) -> Result<Plan, Refused> {
    let request: ResponseRequest = read(body)?;
    check(&request)?;
    let mut messages = Vec::new();
    messages.extend(request.instructions.clone().map(|text| message("system", text)));
    input(request.input.as_ref(), &mut messages)?;
    let tools = request.tools.clone().unwrap_or_default();
    let echoed: Vec<Value> = tools.iter().map(echo).collect();
    let chat = ChatRequest {
        max_completion_tokens: request.max_output_tokens,
        tools: Some(tools.into_iter().enumerate().map(nested).collect::<Result<_, _>>()?),
        tool_choice: request.tool_choice.clone(),
        parallel_tool_calls: request.parallel_tool_calls,
        ..ChatRequest::new(messages)
    };
    let format = request.text.and_then(|text| text.format);
    let echoed_format =
        format.as_ref().map_or_else(|| json!({"type": "text"}), |format| json!(format));
    // One answer only, with the extensions that chats have.
    let fields = SamplingFields {
        n: None,
        response_format: format.map(|format| ResponseFormat {
            kind: format.kind,
            json_schema: Some(JsonSchemaFormat { schema: format.schema }),
        }),
        ..read(body)?
    };
    let Prepared { request: prepared, speech } = prepare(context, chat, &fields, caller)?;
    let stream = request.stream.unwrap_or_default();
    let head = context.head("resp", caller, request.model.as_deref());
    let sampling = &prepared.sampling;
    let settings = json!({
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata.unwrap_or_else(|| json!({})),
        "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": null,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "tool_choice": echo_choice(request.tool_choice),
        "tools": echoed,
        "text": {"format": echoed_format},
        "truncation": "disabled",
    });
    let shape = ResponseShape { stream, settings };
    let emit = ResponseEmit::new(head, shape, speech.parser(0));
    Ok(Plan {
        requests: vec![prepared],
        rids: vec![caller.rid.clone()],
        emit: Box::new(emit),
        stream,
    })
}

fn check(request: &ResponseRequest) -> Result<(), Refused> {
    let unsupported = [
        ("previous_response_id", request.previous_response_id.is_some()),
        ("conversation", request.conversation.is_some()),
        ("background", request.background == Some(true)),
    ];
    match unsupported.into_iter().find(|(_, is_there)| *is_there) {
        None => Ok(()),
        Some((param, _)) => {
            let message = format!("{param} is not supported: responses are not stored");
            Err(Refused::invalid(Some(param), message).code("unsupported"))
        }
    }
}

fn message(role: &str, content: impl Into<Value>) -> Message {
    Message {
        role: role.to_owned(),
        fields: Map::from_iter([("content".to_owned(), content.into())]),
    }
}

fn input(input: Option<&Value>, messages: &mut Vec<Message>) -> Result<(), Refused> {
    match input {
        Some(Value::String(text)) => messages.push(message("user", text.clone())),
        Some(Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                add(index, item, messages)?;
            }
        }
        _ => {
            return Err(Refused::invalid(Some("input"), "input must be a text or a list of items"));
        }
    }
    Ok(())
}

fn add(index: usize, item: &Value, messages: &mut Vec<Message>) -> Result<(), Refused> {
    let text = |name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
    let wrong = |message: &str| {
        let param = format!("input[{index}]");
        Err(Refused::invalid(Some(&param), format!("{param}: {message}")))
    };
    match (text("type").as_deref(), text("role")) {
        (None | Some("message"), Some(role)) => {
            messages.push(message(&role, item.get("content").cloned().unwrap_or_default()));
        }
        (Some("function_call"), _) => {
            let (Some(id), Some(name)) = (text("call_id"), text("name")) else {
                return wrong("a function_call has a call_id and a name");
            };
            let function =
                json!({"name": name, "arguments": text("arguments").unwrap_or_default()});
            let call = json!({"id": id, "type": "function", "function": function});
            // Calls of one turn are one message.
            let calls = messages.last_mut().filter(|last| last.role == "assistant");
            match calls.and_then(|last| last.fields.get_mut("tool_calls")?.as_array_mut()) {
                Some(calls) => calls.push(call),
                None => {
                    let mut called = message("assistant", Value::Null);
                    called.fields.insert("tool_calls".to_owned(), json!([call]));
                    messages.push(called);
                }
            }
        }
        (Some("function_call_output"), _) => {
            let output = item.get("output").cloned().unwrap_or_default();
            let mut result = message("tool", output);
            result
                .fields
                .insert("tool_call_id".to_owned(), text("call_id").unwrap_or_default().into());
            messages.push(result);
        }
        // What a model thought is not told to it again.
        (Some("reasoning"), _) => {}
        _ => return wrong("only messages, function calls and their outputs are supported"),
    }
    Ok(())
}

fn nested((place, tool): (usize, FlatTool)) -> Result<Tool, Refused> {
    let FlatTool { kind, name, description, parameters, strict } = tool;
    match name {
        Some(name) => {
            Ok(Tool { kind, function: ToolFunction { name, description, parameters, strict } })
        }
        None => {
            let param = format!("tools[{place}]");
            Err(Refused::invalid(Some(&param), format!("{param}: only functions are supported")))
        }
    }
}

fn echo(tool: &FlatTool) -> Value {
    json!({
        "type": tool.kind,
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict.unwrap_or_default(),
    })
}

fn echo_choice(choice: Option<ToolChoice>) -> Value {
    match choice {
        None | Some(ToolChoice::Auto) => "auto".into(),
        Some(ToolChoice::None) => "none".into(),
        Some(ToolChoice::Required) => "required".into(),
        Some(ToolChoice::Named(name)) => json!({"type": "function", "name": name}),
    }
}
