//! One sample on its way to a client.

use std::time::Duration;

use serde_json::Value;
use understory::Token;
use understory::request::{FinishReason, Finished, StopMatch, TokenLogprobs, Usage};

/// Counts of a sample, and the tokens that no chunk has carried yet.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) queue_time: Duration,
    /// Tokens so far.
    pub(crate) tokens: u32,
    /// Tokens since the last chunk.
    pub(crate) pending: Vec<SampledToken>,
    pub(crate) finished: Option<Finished>,
}

#[derive(Debug)]
pub(crate) struct SampledToken {
    pub(crate) token: Token,
    pub(crate) logprobs: Option<Box<TokenLogprobs>>,
}

impl Sample {
    pub(crate) fn admit(&mut self, prompt_tokens: u32, cached_tokens: u32, queue_time: Duration) {
        self.prompt_tokens = prompt_tokens;
        self.cached_tokens = cached_tokens;
        self.queue_time = queue_time;
    }

    /// True for the first token.
    pub(crate) fn take(&mut self, token: Token, logprobs: Option<Box<TokenLogprobs>>) -> bool {
        self.tokens += 1;
        self.pending.push(SampledToken { token, logprobs });
        self.tokens == 1
    }

    pub(crate) fn take_pending(&mut self) -> Vec<SampledToken> {
        std::mem::take(&mut self.pending)
    }

    /// As [`take_pending`](Self::take_pending), without the stop token, which has no text.
    pub(crate) fn take_spoken(&mut self) -> Vec<SampledToken> {
        let mut pending = self.take_pending();
        let matched = self.finished.as_ref().and_then(|finished| finished.matched.as_ref());
        if let (Some(StopMatch::Token(stop)), Some(last)) = (matched, pending.last())
            && last.token == *stop
        {
            pending.pop();
        }
        pending
    }

    pub(crate) fn finish(&mut self, finished: Finished) {
        self.prompt_tokens = finished.usage.prompt_tokens;
        self.cached_tokens = finished.usage.cached_tokens;
        self.tokens = finished.usage.completion_tokens;
        self.finished = Some(finished);
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        self.finished.as_ref().map(|finished| finished.usage)
    }

    /// Why the sample ended; a sample that has not is given up.
    pub(crate) fn reason(&self) -> FinishReason {
        self.finished.as_ref().map_or(FinishReason::Abort, |finished| finished.reason)
    }

    /// What the sample ended at, as SGLang tells it: a stop string or a token.
    pub(crate) fn matched(&self) -> Value {
        match self.stop() {
            Some(StopMatch::Text(text)) => Value::from(&**text),
            Some(StopMatch::Token(token)) => Value::from(*token),
            _ => Value::Null,
        }
    }

    /// As vLLM tells it: `null` for a token that is not among the request's own stop tokens.
    pub(crate) fn stop_reason(&self, own: &[Token]) -> Value {
        match self.stop() {
            Some(StopMatch::Token(token)) if !own.contains(token) => Value::Null,
            _ => self.matched(),
        }
    }

    fn stop(&self) -> Option<&StopMatch> {
        self.finished.as_ref().and_then(|finished| finished.matched.as_ref())
    }
}

/// Prompt and cached tokens count once for all samples of a prompt, generated ones for each.
pub(crate) fn total(
    samples: &[Sample],
    per_prompt: usize,
    reasoning: u32,
) -> crate::protocol::Usage {
    let per_prompt = per_prompt.max(1);
    let mut prompt = 0_u32;
    let mut cached = 0_u32;
    for group in samples.chunks(per_prompt) {
        prompt = prompt.saturating_add(group.first().map_or(0, |sample| sample.prompt_tokens));
        cached = cached.saturating_add(group.first().map_or(0, |sample| sample.cached_tokens));
    }
    let completion = samples.iter().fold(0_u32, |sum, sample| sum.saturating_add(sample.tokens));
    crate::protocol::Usage::new(prompt, cached, completion, reasoning)
}
