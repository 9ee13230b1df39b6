//! From a request to what the scheduler takes. Runs on the caller's thread and changes nothing
//! but the number of places in the queue, so whatever is wrong is told before anything happens.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use radix_cache::{Retention, Token};

use super::clock::Clock;
use super::command::{Queue, Submission};
use super::text::TextStream;
use crate::backend::SlotSampling;
use crate::error::SubmitError;
use crate::request::{Prompt, Reader, Request, SamplingParams, Usage, stream};
use crate::schedule::{Arrival, Refusal, RequestId, SchedulerConfig, SequenceId};
use crate::text::{ChatMessage, ChatOptions, ChatTemplate, StopStrings, Tokenizer};

/// What requests are checked against.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) config: SchedulerConfig,
    pub(super) vocab_size: u32,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) chat_template: Option<ChatTemplate>,
    /// End an answer unless the request ignores them.
    pub(super) end_tokens: Vec<Token>,
    /// What the model's files recommend.
    pub(super) recommended: SamplingParams,
    pub(super) clock: Clock,
}

impl Intake {
    /// A request's samples, with places in the queue, and where their reader reads.
    pub(super) fn admit(
        &self,
        id: RequestId,
        request: Request,
        queue: &Queue,
    ) -> Result<(Vec<Submission>, Reader), SubmitError> {
        let sampling = &request.sampling;
        sampling.validate(self.vocab_size)?;
        let prompt = self.tokens(&request.prompt, true)?;
        // What continues a text has its spaces; the answer in a conversation is a text of its own.
        let continued = match request.prompt {
            Prompt::Messages(_) => Vec::new(),
            Prompt::Text(_) | Prompt::Tokens(_) => prompt.clone(),
        };
        // A prompt that leaves no room is refused for that, not for a limit of zero.
        let left = self.config.context_length.saturating_sub(prompt.len()).max(1);
        let max_tokens = sampling.max_tokens.map_or(left, |max| left.min(max as usize));
        self.config.check(prompt.len(), max_tokens)?;
        let (mut samples, reader) = self.samples(id, request, prompt, max_tokens as u32, queue)?;
        samples.iter_mut().for_each(|sample| sample.stream.continue_after(&continued));
        Ok((samples, reader))
    }

    /// As [`admit`](Self::admit), for branches of a sample whose tokens only the scheduler knows:
    /// it checks their length when it forks.
    pub(super) fn admit_branch(
        &self,
        id: RequestId,
        request: Request,
        queue: &Queue,
    ) -> Result<(Vec<Submission>, Reader), SubmitError> {
        request.sampling.validate(self.vocab_size)?;
        let suffix = self.tokens(&request.prompt, false)?;
        let context_length = self.config.context_length;
        if suffix.len() >= context_length {
            let prompt_len = suffix.len();
            return Err(Refusal::PromptTooLong { prompt_len, context_length }.into());
        }
        let left = context_length - suffix.len();
        let max_tokens = request.sampling.max_tokens.map_or(left, |max| left.min(max as usize));
        self.samples(id, request, suffix, max_tokens as u32, queue)
    }

    fn samples(
        &self,
        id: RequestId,
        request: Request,
        prompt: Vec<Token>,
        max_tokens: u32,
        queue: &Queue,
    ) -> Result<(Vec<Submission>, Reader), SubmitError> {
        let retention = self.retention(&request);
        let Request { sampling, namespace, constraint, .. } = request;
        let stop_strings = self.stop_strings(&sampling)?;
        let stop_tokens = self.stop_tokens(&sampling);
        let slot_sampling = slot_sampling(&sampling, prompt.len(), &stop_tokens);
        let full = || SubmitError::QueueFull { limit: queue.limit() };
        let places = queue.enter(sampling.n as usize).ok_or_else(full)?;

        let arrival_time = Instant::now();
        let usage = Usage {
            prompt_tokens: prompt.len() as u32,
            cached_tokens: 0,
            completion_tokens: 0,
            arrival: arrival_time,
            first_token: None,
            finish: arrival_time,
        };
        let (feeds, reader) = stream(sampling.n);
        let samples = feeds.into_iter().zip(places).zip(0..).map(|((feed, place), index)| {
            let stream = TextStream {
                sample: index,
                feed,
                queue_place: Some(place),
                detokenizer: self.tokenizer.as_ref().map(|tokenizer| tokenizer.detokenizer(true)),
                stop_strings: stop_strings.as_ref().map(StopStrings::matcher),
                stop_tokens: Arc::clone(&stop_tokens),
                min_tokens: sampling.min_tokens,
                usage,
            };
            let mut slot_sampling = slot_sampling.clone();
            slot_sampling.sample_index = index;
            let arrival = Arrival {
                id: SequenceId { request: id, index },
                prompt: prompt.clone(),
                sampling: Arc::new(slot_sampling),
                max_tokens,
                stop_tokens: Arc::clone(&stop_tokens),
                namespace,
                retention,
                constrained: constraint.is_some(),
            };
            let constraint = constraint.as_ref().map(|constraint| constraint.duplicate());
            Submission { arrival, constraint, stream }
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

    fn tokens(&self, prompt: &Prompt, begins_text: bool) -> Result<Vec<Token>, SubmitError> {
        match prompt {
            Prompt::Tokens(tokens) => {
                let vocab_size = self.vocab_size;
                match tokens.iter().position(|&token| token >= vocab_size) {
                    None => Ok(tokens.clone()),
                    Some(index) => {
                        let token = tokens[index];
                        Err(SubmitError::UnknownToken { index, token, vocab_size })
                    }
                }
            }
            Prompt::Text(text) => Ok(self.tokenizer("a text prompt")?.encode(text, begins_text)?),
            Prompt::Messages(messages) => self.render(messages),
        }
    }

    fn render(&self, messages: &[ChatMessage]) -> Result<Vec<Token>, SubmitError> {
        if messages.is_empty() {
            return Err(SubmitError::NoMessages);
        }
        let what = "a prompt of messages";
        let template = self.chat_template.as_ref();
        let template = template.ok_or(SubmitError::NoText { what, needed: "chat template" })?;
        let text = template.render(messages, &ChatOptions::default())?;
        // The template writes special tokens out itself.
        Ok(self.tokenizer(what)?.encode(&text, false)?)
    }

    fn tokenizer(&self, what: &'static str) -> Result<&Tokenizer, SubmitError> {
        self.tokenizer.as_ref().ok_or(SubmitError::NoText { what, needed: "tokenizer" })
    }

    fn stop_strings(&self, sampling: &SamplingParams) -> Result<Option<StopStrings>, SubmitError> {
        if sampling.stop.is_empty() {
            return Ok(None);
        }
        self.tokenizer("a stop string")?;
        Ok(Some(StopStrings::new(&sampling.stop, false)?))
    }

    fn stop_tokens(&self, sampling: &SamplingParams) -> Arc<[Token]> {
        let own = if sampling.ignore_eos { &[] } else { &self.end_tokens[..] };
        own.iter().chain(&sampling.stop_token_ids).copied().collect()
    }
}

fn slot_sampling(
    sampling: &SamplingParams,
    prompt_len: usize,
    stop_tokens: &Arc<[Token]>,
) -> SlotSampling {
    let has_minimum = sampling.min_tokens > 0;
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
        suppress_before: if has_minimum { prompt_len as u32 + sampling.min_tokens } else { 0 },
        ..SlotSampling::greedy()
    }
}

/// The standard library seeds its hash maps from the system's randomness; a hash of nothing is as
/// random as that.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
