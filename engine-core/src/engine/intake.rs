//! From a request to what the scheduler takes. Runs on the caller's thread and changes nothing
//! but the number of places in the queue, so whatever is wrong is told before anything happens.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use radix_cache::{Retention, Token};

use super::clock::Clock;
use super::command::{Constraint, QueuePlace, Submission};
use super::sample_text::{SampleText, Shown};
use crate::backend::SlotSampling;
use crate::error::SubmitError;
use crate::fence::{Fenced, fence};
use crate::request::{Prompt, Reader, Request, SamplingParams, TokenConstraint, Usage, stream};
use crate::schedule::{Arrival, PromptWant, Refusal, RequestId, SchedulerConfig, SequenceId};
use crate::text::{ChatMessage, ChatOptions, ChatTemplate, StopStrings, Tokenizer};

/// What requests are checked against.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) config: SchedulerConfig,
    pub(super) vocab_size: u32,
    /// Vectors can be had.
    pub(super) embeds: bool,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) chat_template: Option<ChatTemplate>,
    /// End an answer unless the request ignores them.
    pub(super) end_tokens: Vec<Token>,
    /// What the model's files recommend.
    pub(super) recommended: SamplingParams,
    pub(super) clock: Clock,
}

impl Intake {
    /// Finds what is wrong with a request and quickly found.
    pub(super) fn check(&self, request: &Request) -> Result<(), SubmitError> {
        if request.pooling.is_some() && !self.embeds {
            return Err(SubmitError::NoEmbeddings);
        }
        Ok(request.sampling.validate(self.vocab_size)?)
    }

    /// The samples of a request that was [checked](Self::check), each with its place in the queue,
    /// and where their reader reads.
    pub(super) fn admit(
        &self,
        id: RequestId,
        request: Request,
        places: Vec<QueuePlace>,
    ) -> Result<(Vec<Submission>, Reader), SubmitError> {
        let prompt = self.tokens(&request, true)?;
        // What continues a text has its spaces; the answer in a conversation is a text of its own.
        let continued = match request.prompt {
            Prompt::Messages(_) => Vec::new(),
            Prompt::Text(_) | Prompt::Tokens(_) => prompt.clone(),
        };
        // A prompt that leaves no room is refused for that, not for a limit of zero.
        let left = self.config.context_length.saturating_sub(prompt.len()).max(1);
        let max_tokens = max_tokens(&request, left);
        self.config.check(prompt.len(), max_tokens, want(&request))?;
        let (mut samples, reader) = self.samples(id, request, prompt, max_tokens, places)?;
        samples.iter_mut().for_each(|sample| sample.text.continue_after(&continued));
        Ok((samples, reader))
    }

    /// As [`admit`](Self::admit), for branches of a sample whose tokens only the scheduler knows:
    /// it checks their length when it forks.
    pub(super) fn admit_branch(
        &self,
        id: RequestId,
        request: Request,
        places: Vec<QueuePlace>,
    ) -> Result<(Vec<Submission>, Reader), SubmitError> {
        let suffix = self.tokens(&request, false)?;
        let context_length = self.config.context_length;
        if suffix.len() >= context_length {
            let prompt_len = suffix.len();
            return Err(Refusal::PromptTooLong { prompt_len, context_length }.into());
        }
        let max_tokens = max_tokens(&request, context_length - suffix.len());
        self.samples(id, request, suffix, max_tokens, places)
    }

    fn samples(
        &self,
        id: RequestId,
        request: Request,
        prompt: Vec<Token>,
        max_tokens: usize,
        places: Vec<QueuePlace>,
    ) -> Result<(Vec<Submission>, Reader), SubmitError> {
        let (retention, want) = (self.retention(&request), want(&request));
        let Request { sampling, namespace, constraint, priority, speculation, .. } = request;
        let constraints = duplicates(constraint, sampling.n as usize)?;
        let stop_strings = self.stop_strings(&sampling)?;
        let stop_tokens = self.stop_tokens(&sampling);
        let slot_sampling = slot_sampling(&sampling, prompt.len(), &stop_tokens);
        let stop = sampling.stop.iter().map(|text| Arc::from(text.as_str())).collect();
        let skip_special = sampling.skip_special_tokens;
        // The samples have the same prompt, so one speaks for all.
        let want = |index| if index == 0 { want } else { PromptWant::Nothing };

        let arrival_time = Instant::now();
        let usage = Usage {
            prompt_tokens: prompt.len() as u32,
            cached_tokens: 0,
            completion_tokens: 0,
            arrival: arrival_time,
            admitted: None,
            first_token: None,
            finish: arrival_time,
        };
        let (feeds, reader) = stream(sampling.n);
        let parts = feeds.into_iter().zip(places).zip(constraints).zip(0..);
        let samples = parts.map(|(((feed, place), constraint), index)| {
            let tokenizer = self.tokenizer.as_ref();
            let text = SampleText {
                number: index,
                feed,
                queue_place: Some(place),
                detokenizer: tokenizer.map(|tokenizer| tokenizer.detokenizer(skip_special)),
                stop_strings: stop_strings.as_ref().map(StopStrings::matcher),
                stop: Arc::clone(&stop),
                stop_tokens: Arc::clone(&stop_tokens),
                min_tokens: sampling.min_tokens,
                usage,
                last_token: None,
                shown: Shown::default(),
            };
            let mut slot_sampling = slot_sampling.clone();
            slot_sampling.sample_index = index;
            let arrival = Arrival {
                id: SequenceId { request: id, index },
                prompt: prompt.clone(),
                sampling: Arc::new(slot_sampling),
                max_tokens: u32::try_from(max_tokens).unwrap_or(u32::MAX),
                stop_tokens: Arc::clone(&stop_tokens),
                namespace,
                retention,
                constrained: constraint.is_some(),
                speculation,
                priority,
                want: want(index),
            };
            Submission { arrival, constraint, text }
        });
        Ok((samples.collect(), reader))
    }

    fn retention(&self, request: &Request) -> Retention {
        let retention = Retention::default().priority(request.cache_priority);
        match request.keep_cached_for {
            None => retention,
            Some(duration) => retention.until(self.clock.tick_after(duration)),
        }
    }

    fn tokens(&self, request: &Request, begins_text: bool) -> Result<Vec<Token>, SubmitError> {
        let tokens = match &request.prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) => self.tokenizer("a text prompt")?.encode(text, begins_text)?,
            Prompt::Messages(messages) => self.render(messages, &request.chat)?,
        };
        // A tokenizer may know tokens that its model has no embedding for.
        let vocab_size = self.vocab_size;
        match tokens.iter().enumerate().find(|&(_, &token)| token >= vocab_size) {
            None => Ok(tokens),
            Some((index, &token)) => Err(SubmitError::UnknownToken { index, token, vocab_size }),
        }
    }

    fn render(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<Vec<Token>, SubmitError> {
        if messages.is_empty() {
            return Err(SubmitError::NoMessages);
        }
        let what = "a prompt of messages";
        let template = self.chat_template.as_ref();
        let template = template.ok_or(SubmitError::NoText { what, needed: "chat template" })?;
        let tokenizer = self.tokenizer(what)?;
        let parts = template.render_parts(messages, options, tokenizer)?;
        // The template writes special tokens out itself.
        Ok(tokenizer.encode_parts(&parts)?)
    }

    fn tokenizer(&self, what: &'static str) -> Result<&Tokenizer, SubmitError> {
        self.tokenizer.as_ref().ok_or(SubmitError::NoText { what, needed: "tokenizer" })
    }

    fn stop_strings(&self, sampling: &SamplingParams) -> Result<Option<StopStrings>, SubmitError> {
        if sampling.stop.is_empty() {
            return Ok(None);
        }
        self.tokenizer("a stop string")?;
        Ok(Some(StopStrings::new(&sampling.stop, sampling.include_stop)?))
    }

    fn stop_tokens(&self, sampling: &SamplingParams) -> Arc<[Token]> {
        let own = if sampling.ignore_eos { &[] } else { &self.end_tokens[..] };
        own.iter().chain(&sampling.stop_token_ids).copied().collect()
    }
}

/// Most tokens to generate, where the context leaves room for so many.
fn max_tokens(request: &Request, room: usize) -> usize {
    match (request.pooling, request.sampling.max_tokens) {
        (Some(_), _) => 0,
        (None, None) => room,
        (None, Some(max)) => room.min(usize::try_from(max).unwrap_or(room)),
    }
}

fn want(request: &Request) -> PromptWant {
    match (request.pooling, request.sampling.prompt_logprobs) {
        (Some(pooling), _) => PromptWant::Vector(pooling),
        (None, Some(top)) => PromptWant::Scores { from: 1, top },
        (None, None) => PromptWant::Nothing,
    }
}

/// A constraint for each sample.
fn duplicates(
    constraint: Option<Box<dyn TokenConstraint>>,
    samples: usize,
) -> Result<Vec<Option<Constraint>>, SubmitError> {
    let Some(constraint) = constraint else {
        return Ok((0..samples).map(|_| None).collect());
    };
    let mut original = Fenced::new(constraint);
    let mut all = Vec::with_capacity(samples);
    while let Some(constraint) = original.get_mut()
        && all.len() + 1 < samples
    {
        let copy = fence(|| constraint.duplicate())
            .map_err(|reason| SubmitError::Constraint { problem: format!("panicked: {reason}") })?;
        all.push(Some(Fenced::new(copy)));
    }
    all.push(Some(original));
    Ok(all)
}

/// What counts positions counts them from the end of a prompt of `prompt_len` tokens.
fn slot_sampling(
    sampling: &SamplingParams,
    prompt_len: usize,
    stop_tokens: &Arc<[Token]>,
) -> SlotSampling {
    let has_minimum = sampling.min_tokens > 0;
    // A minimum beyond the context holds until the context ends.
    let prompt_len = u32::try_from(prompt_len).unwrap_or(u32::MAX);
    let minimum_end = prompt_len.saturating_add(sampling.min_tokens);
    // No probability at all still leaves the likeliest token.
    let is_greedy = sampling.top_p == 0.0;
    SlotSampling {
        temperature: if is_greedy { 0.0 } else { sampling.temperature },
        top_k: sampling.top_k,
        top_p: if is_greedy { 1.0 } else { sampling.top_p },
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        logit_bias: sampling.logit_bias.as_slice().into(),
        seed: sampling.seed.unwrap_or_else(random_seed),
        logprobs: sampling.logprobs,
        suppress: if has_minimum { Arc::clone(stop_tokens) } else { Arc::from([]) },
        suppress_before: if has_minimum { minimum_end } else { 0 },
        ..SlotSampling::greedy()
    }
}

/// The standard library seeds its hash maps from the system's randomness; a hash of nothing is as
/// random as that.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
