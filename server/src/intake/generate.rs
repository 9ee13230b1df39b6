//! SGLang's native requests.

use understory::request::Request;

use super::structure::Structure;
use super::{Caller, Context, Plan, sampling};
use crate::emit::{GenerateEmit, GenerateShape, NativePrompt};
use crate::protocol::{GenerateRequest, OneOrMany, PromptInput, Prompts, Refused, read};

/// Reads a body of `/generate`.
pub(crate) fn generate(context: &Context, body: &[u8], caller: &Caller) -> Result<Plan, Refused> {
    let mut generate: GenerateRequest = read(body)?;
    check(&generate)?;
    let stream = generate.stream.unwrap_or_default();
    let (param, prompts, is_list) = prompts(&mut generate)?;
    context.check_prompts(param, prompts.len())?;
    let params = generate.sampling_params.take();
    let sampling_params = match params.unwrap_or_else(|| OneOrMany::One(Default::default())) {
        OneOrMany::One(one) => vec![one; prompts.len()],
        OneOrMany::Many(many) if many.len() == prompts.len() => many,
        OneOrMany::Many(many) => {
            let message = format!("{} sampling_params for {} prompts", many.len(), prompts.len());
            return Err(Refused::invalid(Some("sampling_params"), message));
        }
    };
    let rids = rids(generate.rid.take(), prompts.len(), caller)?;
    let namespace = match &generate.extra_key {
        Some(key) => context.namespace(caller, "extra_key", Some(key))?,
        None => context.namespace(caller, "cache_salt", generate.cache_salt.as_deref())?,
    };
    let logprobs = generate.return_logprob.unwrap_or_default();
    let top = generate.top_logprobs_num.unwrap_or_default();
    let from = generate.logprob_start_len.filter(|_| logprobs);
    let logprobs_from = from.and_then(|from| usize::try_from(from).ok());

    let mut requests = Vec::with_capacity(prompts.len());
    let mut shown = Vec::with_capacity(prompts.len());
    let mut n = None;
    for ((prompt, fields), rid) in prompts.iter().zip(&sampling_params).zip(&rids) {
        let mut params = sampling::native(fields, context.engine.recommended_sampling())?;
        if *n.get_or_insert(params.n) != params.n {
            return Err(Refused::invalid(
                Some("sampling_params"),
                "n must be equal for all prompts",
            ));
        }
        params.logprobs = logprobs.then_some(top);
        params.prompt_logprobs = logprobs_from.map(|_| top);
        // SGLang runs the prompt alone for 0 tokens.
        if params.max_tokens == Some(0) {
            params.prompt_logprobs.get_or_insert(0);
        }
        context.check_params(&params)?;
        let tokens = context.tokens(param, prompt, true)?;
        let mut request = Request::new(tokens.clone())
            .sampling(params)
            .priority(generate.priority.unwrap_or_default())
            .namespace(namespace);
        if let Some(structure) = Structure::native(fields)? {
            request = request.constraint(structure.constraint(context, logprobs)?);
        }
        requests.push(request);
        shown.push(NativePrompt { rid: rid.clone(), tokens });
    }
    let n = n.unwrap_or(1);
    let shape = GenerateShape {
        n,
        stream,
        is_batch: is_list || n > 1,
        logprobs,
        top_logprobs: top > 0,
        text_in_logprobs: generate.return_text_in_logprobs.unwrap_or_default(),
        logprobs_from,
        incremental: context.incremental,
    };
    let emit = GenerateEmit::new(shape, context.tokenizer.clone(), shown);
    Ok(Plan { requests, rids, emit: Box::new(emit), stream })
}

fn check(generate: &GenerateRequest) -> Result<(), Refused> {
    let unsupported = [
        ("lora_path", &generate.lora_path),
        ("image_data", &generate.image_data),
        ("audio_data", &generate.audio_data),
        ("video_data", &generate.video_data),
        ("input_embeds", &generate.input_embeds),
        ("bootstrap_host", &generate.bootstrap_host),
        ("bootstrap_room", &generate.bootstrap_room),
        ("token_ids_logprob", &generate.token_ids_logprob),
    ];
    match unsupported.into_iter().find(|(_, value)| value.is_some()) {
        Some((param, _)) => {
            Err(Refused::invalid(Some(param), format!("{param} is not supported"))
                .code("unsupported"))
        }
        None if generate.top_logprobs_num.is_some_and(|top| top > 20) => {
            Err(Refused::invalid(Some("top_logprobs_num"), "must be from 0 to 20"))
        }
        None => Ok(()),
    }
}

/// The prompts, the parameter that they stand in, and whether that is a list.
fn prompts(
    generate: &mut GenerateRequest,
) -> Result<(&'static str, Vec<PromptInput>, bool), Refused> {
    let (param, prompts) = match (generate.text.take(), generate.input_ids.take()) {
        (Some(OneOrMany::One(text)), None) => ("text", Prompts::Text(text)),
        (Some(OneOrMany::Many(texts)), None) => ("text", Prompts::Texts(texts)),
        (None, Some(prompts @ (Prompts::Tokens(_) | Prompts::TokenLists(_)))) => {
            ("input_ids", prompts)
        }
        (None, Some(_)) => {
            let message = "input_ids must be a list of token ids or a list of such lists";
            return Err(Refused::invalid(Some("input_ids"), message));
        }
        _ => return Err(Refused::invalid(Some("text"), "exactly one of text and input_ids")),
    };
    let is_list = prompts.is_batch();
    let prompts = prompts.into_list();
    Ok((param, prompts, is_list))
}

fn rids(
    rid: Option<OneOrMany<String>>,
    prompts: usize,
    caller: &Caller,
) -> Result<Vec<String>, Refused> {
    let base = match rid {
        Some(OneOrMany::Many(rids)) if rids.len() == prompts => return Ok(rids),
        Some(OneOrMany::Many(rids)) => {
            let message = format!("{} rids for {prompts} prompts", rids.len());
            return Err(Refused::invalid(Some("rid"), message));
        }
        Some(OneOrMany::One(rid)) => rid,
        None => caller.rid.clone(),
    };
    if prompts == 1 {
        return Ok(vec![base]);
    }
    Ok((0..prompts).map(|index| format!("{base}_{index}")).collect())
}
