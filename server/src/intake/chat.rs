//! Chat completions into requests.

use understory::request::Request;
use understory::text::{ChatMessage, ChatOptions};

use super::messages::{length, messages};
use super::structure::Structure;
use super::{Caller, Context, Plan, number, sampling};
use crate::emit::{ChatEmit, ChatShape};
use crate::protocol::{self, ChatRequest, Refused, SamplingFields, read};
use crate::reasoning::{AnswerParser, ReasoningFormat, ReasoningParser};
use crate::tools::{
    CallIds, Delta, HarmonyParser, Parser, Tool, ToolChoice, ToolFormat, Tools, tool_grammar,
};

/// Reads a body of `/v1/chat/completions`.
pub(crate) fn chat(context: &Context, body: &[u8], caller: &Caller) -> Result<Plan, Refused> {
    let chat: ChatRequest = read(body)?;
    let fields: SamplingFields = read(body)?;
    let shape = |prepared: &Prepared| ChatShape {
        n: prepared.request.sampling.n,
        stream: fields.stream.unwrap_or_default(),
        logprobs: prepared.request.sampling.logprobs.is_some(),
        token_ids: fields.return_token_ids.unwrap_or_default(),
        usage: fields.includes_usage(),
        continuous_usage: fields.has_continuous_usage(),
        tool_choice: prepared.speech.tools.choice.clone(),
        stop_token_ids: prepared.request.sampling.stop_token_ids.clone(),
    };
    let prepared = prepare(context, chat, &fields, caller)?;
    let shape = shape(&prepared);
    let stream = shape.stream;
    let head = context.head("chatcmpl", caller, fields.model.as_deref());
    let Prepared { request, speech } = prepared;
    let emit = ChatEmit::new(head, shape, context.tokenizer.clone(), |index| speech.parser(index));
    let rid = fields.rid(caller);
    Ok(Plan { requests: vec![request], rids: vec![rid], emit: Box::new(emit), stream })
}

/// A chat that was checked: what the engine takes, and how the answer is taken apart.
pub(crate) struct Prepared {
    pub(crate) request: Request,
    pub(crate) speech: Speech,
}

/// How answers are taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Speech {
    tools: Tools,
    format: ToolFormat,
    reasoning: Option<ReasoningFormat>,
    /// Whether thoughts are told apart where the format of calls has a place for them.
    separates: bool,
    seed: u64,
}

impl Speech {
    /// The parser of a sample.
    pub(crate) fn parser(&self, sample: u32) -> Box<dyn Parser> {
        let ids = CallIds::new(self.seed.wrapping_add(u64::from(sample) << 32));
        if self.format == ToolFormat::Harmony && !self.tools.must_call() {
            let offered = self.tools.offered.iter().map(|tool| tool.name.clone());
            let names: Vec<_> = match self.tools.choice {
                ToolChoice::Auto => offered.collect(),
                _ => Vec::new(),
            };
            return Box::new(HarmonyParser::new(names, ids, self.separates));
        }
        let tools = self.tools.parser(self.format, ids);
        let parser = AnswerParser::new(self.reasoning.map(ReasoningParser::new), tools);
        match self.tools.must_call() {
            true => Box::new(CallsAlone(parser)),
            false => Box::new(parser),
        }
    }
}

/// An answer whose grammar allows calls alone: what is left of a call that was cut is not content.
#[derive(Debug)]
struct CallsAlone(AnswerParser);

impl Parser for CallsAlone {
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        self.0.push(text, deltas);
        deltas.retain(|delta| !matches!(delta, Delta::Content(_)));
    }

    fn finish(&mut self, deltas: &mut Vec<Delta>) {
        self.0.finish(deltas);
        deltas.retain(|delta| !matches!(delta, Delta::Content(_)));
    }
}

/// Checks a chat whose fields have been read.
pub(crate) fn prepare(
    context: &Context,
    chat: ChatRequest,
    fields: &SamplingFields,
    caller: &Caller,
) -> Result<Prepared, Refused> {
    context.check_model(fields.model.as_deref())?;
    sampling::check_supported(fields)?;
    let mut params = sampling::openai(fields, context.engine.recommended_sampling())?;
    params.max_tokens = chat.max_completion_tokens.or(fields.max_tokens);
    params.logprobs = logprobs(&chat)?;
    context.check_params(&params)?;
    let tools = tools(&chat)?;
    // An answer that must be a call is one whatever its content would have to look like.
    let structure = match tool_grammar(&tools) {
        Some(spec) => Some(Structure { param: "tools", spec }),
        None => Structure::openai(fields)?,
    };
    if chat.continue_final_message == Some(true) {
        let message = "continue_final_message is not supported";
        return Err(Refused::invalid(Some("continue_final_message"), message).code("unsupported"));
    }

    let messages = messages(chat.messages)?;
    let offered = chat.tools.filter(|_| tools.choice != ToolChoice::None);
    let described = offered.map(|tools| tools.iter().filter_map(described).collect::<Vec<_>>());
    let options = ChatOptions::default()
        .add_generation_prompt(chat.add_generation_prompt.unwrap_or(true))
        .tools(described)
        .documents(chat.documents)
        .variables(chat.chat_template_kwargs.unwrap_or_default());
    context.check_length("messages", length(&messages, &options))?;
    let separate = chat.separate_reasoning != Some(false);
    let reasoning = context.reasoning_parser.filter(|_| separate && structure.is_none());
    let reasoning = match reasoning {
        Some(format) => of_prompt(context, format, &messages, &options)?,
        None => None,
    };
    let format = context.tool_call_parser;
    let looks_for_marks = tools.choice == ToolChoice::Auto && format.needs_special_tokens();
    if looks_for_marks || (format == ToolFormat::Harmony && !tools.must_call()) {
        params.skip_special_tokens = false;
    }
    let namespace = context.namespace(caller, "cache_salt", fields.cache_salt.as_deref())?;
    let wants_logprobs = params.logprobs.is_some();
    let mut request = Request::new(messages)
        .chat(options)
        .sampling(params)
        .priority(fields.priority.unwrap_or_default())
        .namespace(namespace);
    if let Some(structure) = structure {
        request = request.constraint(structure.constraint(context, wants_logprobs)?);
    }
    let speech =
        Speech { tools, format, reasoning, separates: separate, seed: number(&caller.rid) };
    Ok(Prepared { request, speech })
}

/// What the end of the rendered prompt says about thoughts.
fn of_prompt(
    context: &Context,
    format: ReasoningFormat,
    messages: &[ChatMessage],
    options: &ChatOptions,
) -> Result<Option<ReasoningFormat>, Refused> {
    /// Enough for the marks, whatever they are made of.
    const TAIL: usize = 24;
    let tokens = context.render(messages, options)?;
    let tail = tokens.get(tokens.len().saturating_sub(TAIL)..).unwrap_or_default();
    Ok(format.of_prompt(&context.tokenizer.decode(tail, false)))
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

fn tools(chat: &ChatRequest) -> Result<Tools, Refused> {
    let offered = chat.tools.as_deref().unwrap_or_default();
    if let Some(place) = offered.iter().position(|tool| tool.kind != "function") {
        let param = format!("tools[{place}].type");
        return Err(Refused::invalid(
            Some(&param),
            "only tools of type \"function\" are supported",
        ));
    }
    let wrong = |message: String| Err(Refused::invalid(Some("tool_choice"), message));
    let is_empty = offered.is_empty();
    let choice = match &chat.tool_choice {
        Some(protocol::ToolChoice::None) => ToolChoice::None,
        None | Some(protocol::ToolChoice::Auto) if is_empty => ToolChoice::None,
        None | Some(protocol::ToolChoice::Auto) => ToolChoice::Auto,
        Some(_) if is_empty => return wrong("tool_choice needs tools".to_owned()),
        Some(protocol::ToolChoice::Required) => ToolChoice::Required,
        Some(protocol::ToolChoice::Named(name)) => {
            if !offered.iter().any(|tool| tool.function.name == *name) {
                return wrong(format!("there is no tool {name:?}"));
            }
            ToolChoice::Named(name.clone())
        }
    };
    let offered = offered.iter().map(|tool| Tool {
        name: tool.function.name.clone(),
        parameters: tool.function.parameters.clone().unwrap_or_default(),
    });
    let parallel = chat.parallel_tool_calls.unwrap_or(true);
    Ok(Tools { offered: offered.collect(), choice, parallel })
}

/// The tool as templates take it.
pub(super) fn described(tool: &protocol::Tool) -> Option<serde_json::Value> {
    serde_json::to_value(tool).ok()
}
