//! Completions into requests.

use understory::request::Request;

use super::structure::Structure;
use super::{Caller, Context, Plan, sampling};
use crate::emit::{CompletionEmit, CompletionShape, EchoedPrompt};
use crate::protocol::{CompletionRequest, PromptInput, Refused, SamplingFields, read};

/// Tokens of an answer where nothing is said: OpenAI's default.
const DEFAULT_TOKENS: u32 = 16;

/// Reads a body of `/v1/completions`.
pub(crate) fn completion(context: &Context, body: &[u8], caller: &Caller) -> Result<Plan, Refused> {
    let completion: CompletionRequest = read(body)?;
    let fields: SamplingFields = read(body)?;
    context.check_model(fields.model.as_deref())?;
    sampling::check_supported(&fields)?;
    let mut params = sampling::openai(&fields, context.engine.recommended_sampling())?;
    params.max_tokens = Some(fields.max_tokens.unwrap_or(DEFAULT_TOKENS));
    params.logprobs = completion.logprobs;
    check(&completion, params.n)?;
    let echo = completion.echo.unwrap_or_default();
    if echo && (params.logprobs.is_some() || params.max_tokens == Some(0)) {
        params.prompt_logprobs = Some(params.logprobs.unwrap_or_default());
    }
    context.check_params(&params)?;
    let structure = Structure::openai(&fields)?;
    let shape = CompletionShape {
        n: params.n,
        stream: fields.stream.unwrap_or_default(),
        echo,
        logprobs: params.logprobs.is_some(),
        token_ids: fields.return_token_ids.unwrap_or_default(),
        usage: fields.includes_usage(),
        continuous_usage: fields.has_continuous_usage(),
        stop_token_ids: params.stop_token_ids.clone(),
    };

    let add_special_tokens = completion.add_special_tokens.unwrap_or(true);
    let inputs = completion.prompt.into_list();
    context.check_prompts("prompt", inputs.len())?;
    let namespace = context.namespace(caller, "cache_salt", fields.cache_salt.as_deref())?;
    let mut requests = Vec::with_capacity(inputs.len());
    let mut prompts = Vec::with_capacity(inputs.len());
    for prompt in inputs {
        let tokens = context.tokens("prompt", &prompt, add_special_tokens)?;
        let mut request = Request::new(tokens.clone())
            .sampling(params.clone())
            .priority(fields.priority.unwrap_or_default())
            .namespace(namespace);
        if let Some(structure) = &structure {
            request = request.constraint(structure.constraint(context, shape.logprobs)?);
        }
        requests.push(request);
        let text = match prompt {
            PromptInput::Text(text) => text,
            PromptInput::Tokens(tokens) => context.tokenizer.decode(&tokens, false),
        };
        prompts.push(EchoedPrompt { text, tokens });
    }
    let rid = fields.rid(caller);
    let rids = requests.iter().map(|_| rid.clone()).collect();
    let stream = shape.stream;
    let head = context.head("cmpl", caller, fields.model.as_deref());
    let emit = CompletionEmit::new(head, shape, context.tokenizer.clone(), prompts);
    Ok(Plan { requests, rids, emit: Box::new(emit), stream })
}

fn check(completion: &CompletionRequest, n: u32) -> Result<(), Refused> {
    let wrong = |param: &str, message: &str| {
        Err(Refused::invalid(Some(param), format!("{param} {message}")))
    };
    if completion.suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Refused::invalid(Some("suffix"), "suffix is not supported").code("unsupported"));
    }
    if completion.best_of.is_some_and(|best_of| best_of != n) {
        return wrong("best_of", "must equal n");
    }
    if completion.logprobs.is_some_and(|logprobs| logprobs > 20) {
        return wrong("logprobs", "must be from 0 to 20");
    }
    Ok(())
}
