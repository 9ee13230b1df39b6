//! Fields of a request into sampling parameters.

use std::collections::BTreeMap;

use understory::Token;
use understory::request::SamplingParams;

use crate::protocol::{NativeSampling, OneOrMany, Refused, SamplingFields};

/// OpenAI's fields, over the defaults that the model recommends.
pub(crate) fn openai(
    fields: &SamplingFields,
    defaults: SamplingParams,
) -> Result<SamplingParams, Refused> {
    let mut sampling = defaults;
    set(&mut sampling.temperature, fields.temperature);
    set(&mut sampling.top_p, fields.top_p);
    set(&mut sampling.top_k, top_k(fields.top_k)?);
    set(&mut sampling.min_p, fields.min_p);
    set(&mut sampling.frequency_penalty, fields.frequency_penalty);
    set(&mut sampling.presence_penalty, fields.presence_penalty);
    set(&mut sampling.repetition_penalty, fields.repetition_penalty);
    set(&mut sampling.logit_bias, logit_bias(fields.logit_bias.as_ref())?);
    set(&mut sampling.min_tokens, fields.min_tokens);
    set(&mut sampling.n, fields.n);
    set(&mut sampling.stop, fields.stop.clone().map(OneOrMany::into_vec));
    set(&mut sampling.stop_token_ids, fields.stop_token_ids.clone());
    set(&mut sampling.ignore_eos, fields.ignore_eos);
    set(&mut sampling.skip_special_tokens, fields.skip_special_tokens);
    let include_stop = fields.include_stop_str_in_output.or(fields.no_stop_trim);
    set(&mut sampling.include_stop, include_stop);
    sampling.seed = fields.seed.map(|seed| seed.0);
    sampling.max_tokens = fields.max_tokens;
    Ok(sampling)
}

/// SGLang's fields.
pub(crate) fn native(
    fields: &NativeSampling,
    defaults: SamplingParams,
) -> Result<SamplingParams, Refused> {
    /// What SGLang generates where nothing is said.
    const DEFAULT_TOKENS: u32 = 128;
    let mut sampling = defaults;
    set(&mut sampling.temperature, fields.temperature);
    set(&mut sampling.top_p, fields.top_p);
    set(&mut sampling.top_k, top_k(fields.top_k)?);
    set(&mut sampling.min_p, fields.min_p);
    set(&mut sampling.frequency_penalty, fields.frequency_penalty);
    set(&mut sampling.presence_penalty, fields.presence_penalty);
    set(&mut sampling.repetition_penalty, fields.repetition_penalty);
    set(&mut sampling.logit_bias, logit_bias(fields.logit_bias.as_ref())?);
    set(&mut sampling.min_tokens, fields.min_new_tokens);
    set(&mut sampling.n, fields.n);
    set(&mut sampling.stop, fields.stop.clone().map(OneOrMany::into_vec));
    set(&mut sampling.stop_token_ids, fields.stop_token_ids.clone());
    set(&mut sampling.ignore_eos, fields.ignore_eos);
    set(&mut sampling.skip_special_tokens, fields.skip_special_tokens);
    set(&mut sampling.include_stop, fields.no_stop_trim);
    sampling.seed = fields.sampling_seed.or(fields.seed).map(|seed| seed.0);
    sampling.max_tokens = Some(fields.max_new_tokens.unwrap_or(DEFAULT_TOKENS));
    Ok(sampling)
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// -1 and 0 keep all tokens.
fn top_k(top_k: Option<i64>) -> Result<Option<u32>, Refused> {
    let wrong =
        || Refused::invalid(Some("top_k"), "top_k must be -1, 0 or a positive number of 32 bits");
    match top_k {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(top_k) => u32::try_from(top_k).map(Some).map_err(|_| wrong()),
    }
}

fn logit_bias(bias: Option<&BTreeMap<String, f32>>) -> Result<Option<Vec<(Token, f32)>>, Refused> {
    let Some(bias) = bias else { return Ok(None) };
    let entry = |(token, bias): (&String, &f32)| {
        let message = || format!("logit_bias: {token:?} is no token id");
        let token = token.parse().map_err(|_| Refused::invalid(Some("logit_bias"), message()))?;
        Ok((token, *bias))
    };
    bias.iter().map(entry).collect::<Result<_, _>>().map(Some)
}

/// Refuses what is asked for in vain: answers that are spoken, adapters, and prefill and decode on different servers.
pub(crate) fn check_supported(fields: &SamplingFields) -> Result<(), Refused> {
    let fields = [
        ("audio", &fields.audio),
        ("lora_path", &fields.lora_path),
        ("bootstrap_room", &fields.bootstrap_room),
        ("kv_transfer_params", &fields.kv_transfer_params),
    ];
    match fields.into_iter().find(|(_, value)| value.is_some()) {
        None => Ok(()),
        Some((param, _)) => {
            let message = format!("{param} is not supported");
            Err(Refused::invalid(Some(param), message).code("unsupported"))
        }
    }
}

impl SamplingFields {
    /// The request's id: its own, or else the caller's.
    pub(crate) fn rid(&self, caller: &super::Caller) -> String {
        self.rid.clone().or_else(|| self.request_id.clone()).unwrap_or_else(|| caller.rid.clone())
    }

    pub(crate) fn includes_usage(&self) -> bool {
        let options = self.stream_options.unwrap_or_default();
        self.stream == Some(true)
            && (options.include_usage == Some(true) || self.has_continuous_usage())
    }

    pub(crate) fn has_continuous_usage(&self) -> bool {
        self.stream_options.unwrap_or_default().continuous_usage_stats == Some(true)
    }
}
