//! Chat completions, streamed and whole.

use std::borrow::Cow;
use std::mem;

use serde_json::Value;
use understory::request::{FinishReason, GenerationEvent};
use understory::text::Tokenizer;

use super::sample::{Sample, SampledToken, total};
use super::{Emit, Frames, Head, scores};
use crate::protocol::{
    AssistantMessage, CalledFunction, ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs,
    ChunkChoice, ChunkDelta, Finish, FunctionDelta, Matched, Times, ToolCall, ToolCallDelta, Usage,
};
use crate::tools::{Delta, Parser, ToolChoice};

/// What a client asked to see.
#[derive(Clone, Debug)]
pub(crate) struct ChatShape {
    pub(crate) n: u32,
    pub(crate) stream: bool,
    pub(crate) logprobs: bool,
    pub(crate) token_ids: bool,
    /// The last chunk is the usage.
    pub(crate) usage: bool,
    /// Every chunk has the usage so far.
    pub(crate) continuous_usage: bool,
    pub(crate) tool_choice: ToolChoice,
    /// The request's own.
    pub(crate) stop_token_ids: Vec<u32>,
}

/// Chunks or the answer of one chat.
pub(crate) struct ChatEmit {
    head: Head,
    shape: ChatShape,
    tokenizer: Tokenizer,
    samples: Vec<Sample>,
    voices: Vec<Voice>,
}

/// What one sample has said, beside its counts.
#[derive(Debug)]
struct Voice {
    speech: Box<dyn Parser>,
    has_begun: bool,
    has_calls: bool,
    reasoning_tokens: u32,
    /// The whole message, if the answer is not streamed.
    message: AssistantMessage,
    logprobs: ChatLogprobs,
    token_ids: Vec<u32>,
}

impl ChatEmit {
    pub(crate) fn new(
        head: Head,
        shape: ChatShape,
        tokenizer: Tokenizer,
        mut speech: impl FnMut(u32) -> Box<dyn Parser>,
    ) -> Self {
        let samples = (0..shape.n).map(|_| Sample::default()).collect();
        let voices = (0..shape.n).map(|index| Voice::new(speech(index))).collect();
        Self { head, shape, tokenizer, samples, voices }
    }

    fn usage(&self) -> Usage {
        let reasoning = self.voices.iter().map(|voice| voice.reasoning_tokens).sum();
        total(&self.samples, self.samples.len(), reasoning)
    }

    fn chunk(
        &self,
        choices: Vec<ChunkChoice<'_>>,
        usage: Option<Option<Usage>>,
        frames: &mut Frames,
    ) {
        let Head { id, created, model, fingerprint } = &self.head;
        frames.json(&ChatChunk {
            id,
            object: "chat.completion.chunk",
            created: *created,
            model,
            system_fingerprint: fingerprint,
            metrics: usage.flatten().filter(|_| choices.is_empty()).and_then(|_| self.times()),
            choices,
            usage,
        });
    }

    /// A chunk with something of a sample.
    fn delta(
        &self,
        index: u32,
        delta: ChunkDelta<'_>,
        tokens: &[SampledToken],
        frames: &mut Frames,
    ) {
        let logprobs = self.shape.logprobs.then(|| scores::chat(&self.tokenizer, tokens));
        let token_ids = self.shape.token_ids.then(|| ids(tokens));
        let choice =
            ChunkChoice { index, delta, logprobs, finish_reason: None, matched: None, token_ids };
        self.chunk(vec![choice], self.usage_so_far(), frames);
    }

    fn usage_so_far(&self) -> Option<Option<Usage>> {
        self.shape.usage.then(|| self.shape.continuous_usage.then(|| self.usage()))
    }

    fn times(&self) -> Option<Times> {
        let milliseconds = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        let usage = self.samples.first()?.usage()?;
        Some(Times {
            queue_time_ms: milliseconds(usage.queue_time()?),
            time_to_first_token_ms: milliseconds(usage.time_to_first_token()?),
        })
    }

    /// A sample said something, made of `tokens`.
    fn say(
        &mut self,
        index: u32,
        said: Vec<Delta>,
        tokens: Vec<SampledToken>,
        frames: &mut Frames,
    ) {
        let Some(voice) = self.voices.get_mut(index as usize) else { return };
        if said.iter().any(|said| matches!(said, Delta::Reasoning(_))) {
            voice.reasoning_tokens += tokens.len() as u32;
        }
        voice.has_calls |= said.iter().any(|said| matches!(said, Delta::Call { .. }));
        if self.shape.stream {
            // The tokens go with the first of what they say.
            let mut tokens = tokens;
            for said in said {
                let tokens = mem::take(&mut tokens);
                self.delta(index, delta_of(said), &tokens, frames);
            }
            if !tokens.is_empty() && (self.shape.logprobs || self.shape.token_ids) {
                self.delta(index, ChunkDelta::default(), &tokens, frames);
            }
            return;
        }
        said.into_iter().for_each(|said| voice.add(said));
        if self.shape.token_ids {
            voice.token_ids.extend(ids(&tokens));
        }
        if self.shape.logprobs {
            voice.logprobs.content.append(&mut scores::chat(&self.tokenizer, &tokens).content);
        }
    }

    fn begin(&mut self, index: u32, frames: &mut Frames) {
        let Some(voice) = self.voices.get_mut(index as usize) else { return };
        if !mem::replace(&mut voice.has_begun, true) && self.shape.stream {
            let delta = ChunkDelta {
                role: Some("assistant"),
                content: Some(Cow::Borrowed("")),
                ..ChunkDelta::default()
            };
            let choice = ChunkChoice {
                index,
                delta,
                logprobs: None,
                finish_reason: None,
                matched: None,
                token_ids: None,
            };
            self.chunk(vec![choice], self.usage_so_far(), frames);
        }
    }

    fn finish(&mut self, index: u32, frames: &mut Frames) {
        let (Some(sample), Some(voice)) =
            (self.samples.get_mut(index as usize), self.voices.get_mut(index as usize))
        else {
            return;
        };
        let tokens = sample.take_spoken();
        let mut said = Vec::new();
        voice.speech.finish(&mut said);
        self.begin(index, frames);
        self.say(index, said, tokens, frames);
        if !self.shape.stream {
            return;
        }
        let Finish { finish_reason, stop_reason, matched_stop } = self.finish_of(index);
        let choice = ChunkChoice {
            index,
            delta: ChunkDelta::default(),
            logprobs: None,
            finish_reason: Some(finish_reason),
            matched: Some(Matched { stop_reason, matched_stop }),
            token_ids: None,
        };
        self.chunk(vec![choice], self.usage_so_far(), frames);
    }

    /// Cut calls are `length`, a call that the client named itself is `stop`: as OpenAI's own.
    fn finish_of(&self, index: u32) -> Finish {
        let sample = self.samples.get(index as usize);
        let reason = sample.map_or(FinishReason::Abort, Sample::reason);
        let has_calls = self.voices.get(index as usize).is_some_and(|voice| voice.has_calls);
        let is_named = matches!(self.shape.tool_choice, ToolChoice::Named(_));
        let finish_reason = match reason {
            FinishReason::Stop if has_calls && !is_named => "tool_calls",
            reason => reason.as_str(),
        };
        let own = &self.shape.stop_token_ids;
        Finish {
            finish_reason,
            stop_reason: sample.map_or(Value::Null, |sample| sample.stop_reason(own)),
            matched_stop: sample.map_or(Value::Null, Sample::matched),
        }
    }
}

impl Emit for ChatEmit {
    fn event(&mut self, _prompt: usize, event: GenerationEvent, frames: &mut Frames) {
        let index = event.sample();
        let Some(sample) = self.samples.get_mut(index as usize) else { return };
        match event {
            GenerationEvent::Admitted { prompt_tokens, cached_tokens, queue_time, .. } => {
                sample.admit(prompt_tokens, cached_tokens, queue_time);
            }
            GenerationEvent::Token { token, logprobs, .. } => {
                if sample.take(token, logprobs) {
                    self.begin(index, frames);
                }
            }
            GenerationEvent::Text { text, .. } => {
                let Some(voice) = self.voices.get_mut(index as usize) else { return };
                let mut said = Vec::new();
                voice.speech.push(&text, &mut said);
                // Held back by a parser: the tokens wait for the text.
                if !said.is_empty() {
                    let tokens = sample.take_pending();
                    self.say(index, said, tokens, frames);
                }
            }
            GenerationEvent::Finished(finished) => {
                sample.finish(finished);
                self.finish(index, frames);
            }
            _ => {}
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.shape.usage {
            self.chunk(Vec::new(), Some(Some(self.usage())), frames);
        }
        frames.done();
    }

    fn whole(&mut self) -> String {
        let usage = self.usage();
        let finishes: Vec<Finish> = (0..self.shape.n).map(|index| self.finish_of(index)).collect();
        let voices = mem::take(&mut self.voices).into_iter().zip(finishes).zip(0..);
        let choices = voices.map(|((voice, finish), index)| ChatChoice {
            index,
            message: voice.whole(),
            logprobs: self.shape.logprobs.then_some(voice.logprobs),
            finish,
            token_ids: self.shape.token_ids.then_some(voice.token_ids),
        });
        let Head { id, created, model, fingerprint } = &self.head;
        let answer = ChatCompletion {
            id,
            object: "chat.completion",
            created: *created,
            model,
            system_fingerprint: fingerprint,
            choices: choices.collect(),
            usage,
        };
        serde_json::to_string(&answer).unwrap_or_default()
    }
}

impl Voice {
    fn new(speech: Box<dyn Parser>) -> Self {
        Self {
            speech,
            has_begun: false,
            has_calls: false,
            reasoning_tokens: 0,
            message: AssistantMessage::default(),
            logprobs: ChatLogprobs::default(),
            token_ids: Vec::new(),
        }
    }

    fn add(&mut self, said: Delta) {
        match said {
            Delta::Content(text) => self.message.content.get_or_insert_default().push_str(&text),
            Delta::Reasoning(text) => {
                self.message.reasoning_content.get_or_insert_default().push_str(&text);
            }
            Delta::Call { id, name, .. } => self.message.tool_calls.push(ToolCall {
                id,
                kind: "function",
                function: CalledFunction { name, arguments: String::new() },
            }),
            Delta::Arguments { index, text: json } => {
                if let Some(call) = self.message.tool_calls.get_mut(index as usize) {
                    call.function.arguments.push_str(&json);
                }
            }
        }
    }

    fn whole(&self) -> AssistantMessage {
        let mut message = self.message.clone();
        message.role = "assistant";
        // Nothing said is an empty text, unless tools were called.
        if message.content.is_none() && message.tool_calls.is_empty() {
            message.content = Some(String::new());
        }
        message
    }
}

fn delta_of(said: Delta) -> ChunkDelta<'static> {
    match said {
        Delta::Content(text) => ChunkDelta { content: Some(text.into()), ..ChunkDelta::default() },
        Delta::Reasoning(text) => {
            ChunkDelta { reasoning_content: Some(text.into()), ..ChunkDelta::default() }
        }
        Delta::Call { index, id, name } => call(ToolCallDelta {
            index,
            id: Some(id),
            kind: Some("function"),
            function: FunctionDelta { name: Some(name), arguments: String::new() },
        }),
        Delta::Arguments { index, text: json } => call(ToolCallDelta {
            index,
            id: None,
            kind: None,
            function: FunctionDelta { name: None, arguments: json },
        }),
    }
}

fn call(call: ToolCallDelta) -> ChunkDelta<'static> {
    ChunkDelta { tool_calls: vec![call], ..ChunkDelta::default() }
}

fn ids(tokens: &[SampledToken]) -> Vec<u32> {
    tokens.iter().map(|sampled| sampled.token).collect()
}
