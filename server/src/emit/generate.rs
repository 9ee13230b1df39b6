//! SGLang's native answers: every event of a stream has the whole text so far, unless increments are asked for.

use understory::request::{FinishReason, GenerationEvent, TokenLogprobs};
use understory::text::Tokenizer;

use super::sample::{Sample, SampledToken};
use super::{Emit, Frames, scores};
use crate::protocol::{CachedTokens, Generated, MetaInfo, NativeFinish, NativeLogprobs, Triple};

/// What a client asked to see.
#[derive(Clone, Debug)]
pub(crate) struct GenerateShape {
    /// Samples a prompt.
    pub(crate) n: u32,
    pub(crate) stream: bool,
    /// The answer is a list, and the events of a stream are numbered.
    pub(crate) is_batch: bool,
    pub(crate) logprobs: bool,
    pub(crate) top_logprobs: bool,
    pub(crate) text_in_logprobs: bool,
    /// Prompt tokens from here on have log probabilities.
    pub(crate) logprobs_from: Option<usize>,
    /// An event has what is new.
    pub(crate) incremental: bool,
}

/// A prompt: its id and tokens.
#[derive(Clone, Debug)]
pub(crate) struct NativePrompt {
    pub(crate) rid: String,
    pub(crate) tokens: Vec<u32>,
}

/// Events or the answer of a request with one or more prompts.
pub(crate) struct GenerateEmit {
    shape: GenerateShape,
    tokenizer: Tokenizer,
    prompts: Vec<NativePrompt>,
    prompt_logprobs: Vec<Vec<TokenLogprobs>>,
    inputs: Vec<Scores>,
    samples: Vec<Sample>,
    said: Vec<Said>,
}

#[derive(Debug, Default)]
struct Scores {
    tokens: Vec<Triple>,
    top: Vec<Option<Vec<Triple>>>,
}

/// What a sample has said that an event is to show.
#[derive(Debug, Default)]
struct Said {
    text: String,
    ids: Vec<u32>,
    scores: Scores,
}

impl GenerateEmit {
    pub(crate) fn new(
        shape: GenerateShape,
        tokenizer: Tokenizer,
        prompts: Vec<NativePrompt>,
    ) -> Self {
        let samples = prompts.len() * shape.n as usize;
        Self {
            prompt_logprobs: prompts.iter().map(|_| Vec::new()).collect(),
            inputs: prompts.iter().map(|_| Scores::default()).collect(),
            samples: (0..samples).map(|_| Sample::default()).collect(),
            said: (0..samples).map(|_| Said::default()).collect(),
            shape,
            tokenizer,
            prompts,
        }
    }

    fn prompt_of(&self, index: usize) -> usize {
        index / (self.shape.n as usize).max(1)
    }

    /// More text, made of `tokens`.
    fn add(&mut self, index: usize, text: &str, tokens: Vec<SampledToken>) {
        let Some(said) = self.said.get_mut(index) else { return };
        said.text.push_str(text);
        for SampledToken { token, logprobs } in tokens {
            said.ids.push(token);
            if self.shape.logprobs {
                let with_text = self.shape.text_in_logprobs;
                said.scores.add(scores::triples(
                    &self.tokenizer,
                    with_text,
                    token,
                    logprobs.as_deref(),
                ));
            }
        }
    }

    /// Whether the prompt's scores are complete, or none are wanted. They may come behind the first token.
    fn is_scored(&self, number: usize) -> bool {
        let tokens = self.prompts.get(number).map_or(0, |prompt| prompt.tokens.len());
        let known = self.prompt_logprobs.get(number).map_or(0, Vec::len);
        self.shape.logprobs_from.is_none() || known + 1 >= tokens
    }

    /// Takes down the prompt's scores.
    fn score_prompt(&mut self, number: usize) {
        let Some(from) = self.shape.logprobs_from.filter(|_| self.shape.logprobs) else { return };
        let (Some(prompt), Some(input)) = (self.prompts.get(number), self.inputs.get_mut(number))
        else {
            return;
        };
        let known = self.prompt_logprobs.get(number).map_or(&[][..], |known| &**known);
        if !input.tokens.is_empty() {
            return;
        }
        for (place, &token) in prompt.tokens.iter().enumerate().skip(from) {
            // The first one of the range has none, as in SGLang.
            let scores =
                place.checked_sub(1).filter(|_| place > from).and_then(|place| known.get(place));
            input.add(scores::triples(&self.tokenizer, self.shape.text_in_logprobs, token, scores));
        }
    }

    fn shown(&self, index: usize) -> Option<Generated<'_>> {
        let number = self.prompt_of(index);
        let (sample, said) = (self.samples.get(index)?, self.said.get(index)?);
        let (prompt, input) = (self.prompts.get(number)?, self.inputs.get(number)?);
        let logprobs = self.shape.logprobs.then_some(NativeLogprobs {
            input_token_logprobs: &input.tokens,
            output_token_logprobs: &said.scores.tokens,
            input_top_logprobs: self.shape.top_logprobs.then_some(&*input.top),
            output_top_logprobs: self.shape.top_logprobs.then_some(&*said.scores.top),
        });
        let meta_info = MetaInfo {
            id: &prompt.rid,
            finish_reason: sample.finished.as_ref().map(|_| finish(sample)),
            prompt_tokens: sample.prompt_tokens,
            completion_tokens: sample.tokens,
            cached_tokens: sample.cached_tokens,
            cached_tokens_details: CachedTokens { device: sample.cached_tokens, host: 0 },
            weight_version: "default",
            e2e_latency: sample.usage().map_or(0.0, |usage| usage.total_time().as_secs_f64()),
            num_retractions: 0,
            logprobs,
        };
        let index = (self.shape.is_batch && self.shape.stream)
            .then(|| u32::try_from(index).unwrap_or(u32::MAX));
        Some(Generated { text: &said.text, output_ids: &said.ids, meta_info, index })
    }

    fn send(&mut self, index: usize, frames: &mut Frames) {
        let has_ended = self.samples.get(index).is_some_and(|sample| sample.finished.is_some());
        if !self.shape.stream || !(has_ended || self.is_scored(self.prompt_of(index))) {
            return;
        }
        if let Some(shown) = self.shown(index) {
            frames.json(&shown);
        }
        if self.shape.incremental
            && let Some(said) = self.said.get_mut(index)
        {
            *said = Said::default();
        }
    }
}

impl Emit for GenerateEmit {
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
                if self.is_scored(prompt) {
                    self.score_prompt(prompt);
                }
            }
            GenerationEvent::Token { token, logprobs, .. } => {
                sample.take(token, logprobs);
            }
            GenerationEvent::Text { text, .. } => {
                let tokens = sample.take_pending();
                self.add(index, &text, tokens);
                self.send(index, frames);
            }
            GenerationEvent::Finished(finished) => {
                sample.finish(finished);
                let tokens = sample.take_pending();
                self.score_prompt(prompt);
                self.add(index, "", tokens);
                self.send(index, frames);
            }
            _ => {}
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        frames.done();
    }

    fn whole(&mut self) -> String {
        let answers: Vec<_> =
            (0..self.samples.len()).filter_map(|index| self.shown(index)).collect();
        let text = match &answers[..] {
            [answer] if !self.shape.is_batch => serde_json::to_string(answer),
            answers => serde_json::to_string(answers),
        };
        text.unwrap_or_default()
    }
}

impl Scores {
    fn add(&mut self, (own, top): (Triple, Option<Vec<Triple>>)) {
        self.tokens.push(own);
        self.top.push(top);
    }
}

fn finish(sample: &Sample) -> NativeFinish {
    match sample.reason() {
        FinishReason::Stop => NativeFinish::Stop { matched: sample.matched() },
        FinishReason::Length => NativeFinish::Length { length: sample.tokens },
        _ => {
            NativeFinish::Abort { message: "the request was given up".to_owned(), status_code: 503 }
        }
    }
}
