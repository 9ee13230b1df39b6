//! Chat completions into requests.

use understory::request::Request;
use understory::text::ChatOptions;

use super::messages::{length, messages};
use super::structure::Structure;
use super::{Caller, Context, Plan, sampling};
use crate::emit::{ChatEmit, ChatShape, Speech};
use crate::protocol::{ChatRequest, Refused, SamplingFields, Tool, ToolChoice, read};

/// Reads a body of `/v1/chat/completions`.
pub(crate) fn chat(context: &Context, body: &[u8], caller: &Caller) -> Result<Plan, Refused> {
    plan(context, read(body)?, &read(body)?, caller)
}

/// A chat whose fields have been read.
pub(crate) fn plan(
    context: &Context,
    chat: ChatRequest,
    fields: &SamplingFields,
    caller: &Caller,
) -> Result<Plan, Refused> {
    context.check_model(fields.model.as_deref())?;
    sampling::check_disaggregation(fields)?;
    let mut params = sampling::openai(fields, context.engine.recommended_sampling())?;
    params.max_tokens = chat.max_completion_tokens.or(fields.max_tokens);
    params.logprobs = logprobs(&chat)?;
    context.check_params(&params)?;
    let tool_choice = tool_choice(&chat)?;
    let structure = Structure::openai(fields)?;

    let messages = messages(chat.messages)?;
    context.check_length("messages", length(&messages))?;
    if chat.continue_final_message == Some(true) {
        let message = "continue_final_message is not supported";
        return Err(Refused::invalid(Some("continue_final_message"), message).code("unsupported"));
    }
    let tools = chat.tools.filter(|tools| !tools.is_empty() && tool_choice != ToolChoice::None);
    let tools = tools.map(|tools| tools.iter().filter_map(described).collect::<Vec<_>>());
    let options = ChatOptions::default()
        .add_generation_prompt(chat.add_generation_prompt.unwrap_or(true))
        .tools(tools)
        .documents(chat.documents)
        .variables(chat.chat_template_kwargs.unwrap_or_default());
    let shape = ChatShape {
        n: params.n,
        stream: fields.stream.unwrap_or_default(),
        logprobs: params.logprobs.is_some(),
        token_ids: fields.return_token_ids.unwrap_or_default(),
        usage: fields.includes_usage(),
        continuous_usage: fields.has_continuous_usage(),
        tool_choice,
        stop_token_ids: params.stop_token_ids.clone(),
    };
    let mut request = Request::new(messages)
        .chat(options)
        .sampling(params)
        .priority(fields.priority.unwrap_or_default())
        .namespace(caller.namespace(fields.cache_salt.as_deref()));
    if let Some(structure) = structure {
        request = request.constraint(structure.constraint(context, shape.logprobs)?);
    }
    let stream = shape.stream;
    let head = context.head("chatcmpl", caller, fields.model.as_deref());
    let emit = ChatEmit::new(head, shape, context.tokenizer.clone(), Speech::plain);
    let rid = fields.rid(caller);
    Ok(Plan { requests: vec![request], rids: vec![rid], emit: Box::new(emit), stream })
}

fn logprobs(chat: &ChatRequest) -> Result<Option<u8>, Refused> {
    let wrong = |message: &str| Err(Refused::invalid(Some("top_logprobs"), message));
    match (chat.logprobs.unwrap_or_default(), chat.top_logprobs) {
        (_, Some(21..)) => wrong("top_logprobs must be from 0 to 20"),
        (false, Some(1..)) => wrong("top_logprobs needs logprobs to be true"),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or_default())),
    }
}

fn tool_choice(chat: &ChatRequest) -> Result<ToolChoice, Refused> {
    let tools = chat.tools.as_deref().unwrap_or_default();
    if let Some(place) = tools.iter().position(|tool| tool.kind != "function") {
        let param = format!("tools[{place}].type");
        return Err(Refused::invalid(
            Some(&param),
            "only tools of type \"function\" are supported",
        ));
    }
    let wrong = |message: String| Err(Refused::invalid(Some("tool_choice"), message));
    match &chat.tool_choice {
        None if tools.is_empty() => Ok(ToolChoice::None),
        None => Ok(ToolChoice::Auto),
        Some(ToolChoice::None) => Ok(ToolChoice::None),
        Some(ToolChoice::Auto) if tools.is_empty() => Ok(ToolChoice::None),
        Some(choice) if tools.is_empty() => wrong(format!("{choice:?} needs tools")),
        Some(ToolChoice::Named(name)) if !tools.iter().any(|tool| tool.function.name == *name) => {
            wrong(format!("there is no tool {name:?}"))
        }
        Some(choice) => Ok(choice.clone()),
    }
}

/// The tool as templates take it.
pub(super) fn described(tool: &Tool) -> Option<serde_json::Value> {
    serde_json::to_value(tool).ok()
}
