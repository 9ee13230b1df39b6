//! Completions, streamed and whole.

use std::mem;

use understory::request::{GenerationEvent, TokenLogprobs};
use understory::text::Tokenizer;

use super::sample::{Sample, SampledToken, total};
use super::{Emit, Frames, Head};
use crate::protocol::{Completion, CompletionChoice, CompletionLogprobs, Matched, Usage};

/// What a client asked to see.
#[derive(Clone, Debug)]
pub(crate) struct CompletionShape {
    /// Samples a prompt.
    pub(crate) n: u32,
    pub(crate) stream: bool,
    pub(crate) echo: bool,
    pub(crate) logprobs: bool,
    pub(crate) token_ids: bool,
    pub(crate) usage: bool,
    pub(crate) continuous_usage: bool,
    /// The request's own.
    pub(crate) stop_token_ids: Vec<u32>,
}

/// A prompt, as far as answers show it.
#[derive(Clone, Debug)]
pub(crate) struct EchoedPrompt {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
}

/// Chunks or the answer of a completion with one or more prompts.
pub(crate) struct CompletionEmit {
    head: Head,
    shape: CompletionShape,
    tokenizer: Tokenizer,
    prompts: Vec<EchoedPrompt>,
    /// By prompt, what is known about its tokens.
    prompt_logprobs: Vec<Vec<TokenLogprobs>>,
    /// `n` for each prompt.
    samples: Vec<Sample>,
    choices: Vec<Choice>,
}

#[derive(Debug, Default)]
struct Choice {
    has_begun: bool,
    /// Text that waits for the prompt's log probabilities.
    held: String,
    /// Where the next token's text begins, in characters from the prompt's start.
    offset: usize,
    text: String,
    logprobs: CompletionLogprobs,
    token_ids: Vec<u32>,
}

impl CompletionEmit {
    pub(crate) fn new(
        head: Head,
        shape: CompletionShape,
        tokenizer: Tokenizer,
        prompts: Vec<EchoedPrompt>,
    ) -> Self {
        let n = shape.n as usize;
        let samples = (0..prompts.len() * n).map(|_| Sample::default()).collect();
        let choice = |prompt: &EchoedPrompt| {
            let offset = prompt.text.chars().count();
            (0..n).map(move |_| Choice { offset, ..Choice::default() })
        };
        let choices = prompts.iter().flat_map(choice).collect();
        let prompt_logprobs = prompts.iter().map(|_| Vec::new()).collect();
        Self { head, shape, tokenizer, prompts, prompt_logprobs, samples, choices }
    }

    fn usage(&self) -> Usage {
        total(&self.samples, self.shape.n as usize, 0)
    }

    fn usage_so_far(&self) -> Option<Option<Usage>> {
        self.shape.usage.then(|| self.shape.continuous_usage.then(|| self.usage()))
    }

    /// Whether all that is to be known of the prompt's tokens is known: it may come behind the first token.
    fn is_scored(&self, number: usize) -> bool {
        let tokens = self.prompts.get(number).map_or(0, |prompt| prompt.tokens.len());
        let known = self.prompt_logprobs.get(number).map_or(0, Vec::len);
        !(self.shape.echo && self.shape.logprobs) || known + 1 >= tokens
    }

    /// The prompt as the first part of an answer, and what was held back for it.
    fn begin(&mut self, index: usize, frames: &mut Frames) {
        let number = index / (self.shape.n as usize).max(1);
        let has_ended = self.samples.get(index).is_some_and(|sample| sample.finished.is_some());
        let is_ready = has_ended || self.is_scored(number);
        let Some(choice) =
            self.choices.get_mut(index).filter(|choice| is_ready && !choice.has_begun)
        else {
            return;
        };
        choice.has_begun = true;
        let held = mem::take(&mut choice.held);
        if self.shape.echo {
            self.tell_prompt(index, number, frames);
        }
        if !held.is_empty()
            && let Some(sample) = self.samples.get_mut(index)
        {
            let tokens = sample.take_pending();
            self.say(index, held, &tokens, frames);
        }
    }

    fn tell_prompt(&mut self, index: usize, number: usize, frames: &mut Frames) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        let Some(prompt) = self.prompts.get(number) else { return };
        let known = self.prompt_logprobs.get(number).map_or(&[][..], |known| &**known);
        let mut logprobs = CompletionLogprobs::default();
        if self.shape.logprobs {
            let mut offset = 0;
            for (place, &token) in prompt.tokens.iter().enumerate() {
                // Nothing precedes the first token.
                let scores = place.checked_sub(1).and_then(|place| known.get(place));
                offset = logprobs.add(&self.tokenizer, token, scores, offset);
            }
        }
        let text = prompt.text.clone();
        if self.shape.stream {
            let ids = prompt.tokens.clone();
            self.chunk(index, text, logprobs, Vec::new(), Some(ids), frames);
        } else {
            (choice.text, choice.logprobs) = (text, logprobs);
        }
    }

    /// More text, made of `tokens`.
    fn say(&mut self, index: usize, text: String, tokens: &[SampledToken], frames: &mut Frames) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        let mut logprobs = CompletionLogprobs::default();
        let target = if self.shape.stream { &mut logprobs } else { &mut choice.logprobs };
        if self.shape.logprobs {
            for SampledToken { token, logprobs } in tokens {
                let scores = logprobs.as_deref();
                choice.offset = target.add(&self.tokenizer, *token, scores, choice.offset);
            }
        }
        let ids = tokens.iter().map(|sampled| sampled.token);
        if self.shape.stream {
            self.chunk(index, text, logprobs, ids.collect(), None, frames);
        } else {
            choice.text.push_str(&text);
            choice.token_ids.extend(ids);
        }
    }

    fn chunk(
        &self,
        index: usize,
        text: String,
        logprobs: CompletionLogprobs,
        ids: Vec<u32>,
        prompt_ids: Option<Vec<u32>>,
        frames: &mut Frames,
    ) {
        let is_end = self.samples.get(index).is_some_and(|sample| sample.finished.is_some());
        // The prompt's chunk of an answer that has ended is not its last.
        let ends = is_end && prompt_ids.is_none();
        let choice = self.choice(index, text, logprobs, ids, prompt_ids, ends);
        self.send(vec![choice], self.usage_so_far(), frames);
    }

    fn choice(
        &self,
        index: usize,
        text: String,
        logprobs: CompletionLogprobs,
        ids: Vec<u32>,
        prompt_ids: Option<Vec<u32>>,
        ends: bool,
    ) -> CompletionChoice {
        let sample = self.samples.get(index).filter(|_| ends);
        CompletionChoice {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            text,
            logprobs: self.shape.logprobs.then_some(logprobs),
            finish_reason: sample.map(|sample| sample.reason().as_str()),
            matched: sample.map(|sample| Matched {
                stop_reason: sample.stop_reason(&self.shape.stop_token_ids),
                matched_stop: sample.matched(),
            }),
            token_ids: self.shape.token_ids.then_some(ids),
            prompt_token_ids: prompt_ids.filter(|_| self.shape.token_ids),
        }
    }

    fn send(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<Option<Usage>>,
        frames: &mut Frames,
    ) {
        frames.json(&self.body(choices, usage));
    }

    fn body(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> Completion<'_> {
        let Head { id, created, model, fingerprint } = &self.head;
        Completion {
            id,
            object: "text_completion",
            created: *created,
            model,
            system_fingerprint: fingerprint,
            choices,
            usage,
        }
    }
}

impl Emit for CompletionEmit {
    fn event(&mut self, prompt: usize, event: GenerationEvent, frames: &mut Frames) {
        let index = prompt * self.shape.n as usize + event.sample() as usize;
        let Some(sample) = self.samples.get_mut(index) else { return };
        match event {
            GenerationEvent::Admitted { prompt_tokens, cached_tokens, queue_time, .. } => {
                sample.admit(prompt_tokens, cached_tokens, queue_time);
            }
            GenerationEvent::Prompt { mut logprobs, .. } => {
                if let Some(known) = self.prompt_logprobs.get_mut(prompt) {
                    known.append(&mut logprobs);
                }
                let first = prompt * self.shape.n as usize;
                for index in first..first + self.shape.n as usize {
                    if self.samples.get(index).is_some_and(|sample| sample.tokens > 0) {
                        self.begin(index, frames);
                    }
                }
            }
            GenerationEvent::Token { token, logprobs, .. } => {
                if sample.take(token, logprobs) {
                    self.begin(index, frames);
                }
            }
            GenerationEvent::Text { text, .. } => {
                let Some(choice) = self.choices.get_mut(index) else { return };
                if choice.has_begun {
                    let tokens = sample.take_pending();
                    self.say(index, text, &tokens, frames);
                } else {
                    choice.held.push_str(&text);
                }
            }
            GenerationEvent::Finished(finished) => {
                sample.finish(finished);
                let tokens = sample.take_pending();
                self.begin(index, frames);
                self.say(index, String::new(), &tokens, frames);
            }
            _ => {}
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.shape.usage {
            self.send(Vec::new(), Some(Some(self.usage())), frames);
        }
        frames.done();
    }

    fn whole(&mut self) -> String {
        let usage = self.usage();
        let n = (self.shape.n as usize).max(1);
        let choices = mem::take(&mut self.choices);
        let choices = choices.into_iter().enumerate().map(|(index, choice)| {
            let Choice { text, logprobs, token_ids, .. } = choice;
            let prompt_ids = self.prompts.get(index / n).map(|prompt| prompt.tokens.clone());
            self.choice(index, text, logprobs, token_ids, prompt_ids, true)
        });
        let body = self.body(choices.collect(), Some(Some(usage)));
        serde_json::to_string(&body).unwrap_or_default()
    }
}
