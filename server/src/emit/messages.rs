//! Anthropic's messages, streamed and whole: blocks of thoughts, text and calls, one after another.

use std::mem;

use serde_json::{Value, json};
use understory::request::{FinishReason, GenerationEvent};

use super::sample::Sample;
use super::{Emit, Frames, Head};
use crate::protocol::Refused;
use crate::tools::{Delta, Parser};

/// What a client asked to see.
#[derive(Clone, Debug)]
pub(crate) struct MessageShape {
    pub(crate) stream: bool,
}

/// Events or the answer of one message.
pub(crate) struct MessageEmit {
    head: Head,
    shape: MessageShape,
    speech: Box<dyn Parser>,
    sample: Sample,
    has_begun: bool,
    blocks: Vec<Block>,
    is_open: bool,
}

#[derive(Debug)]
enum Block {
    Thinking(String),
    Text(String),
    Tool { id: String, name: String, json: String },
}

impl MessageEmit {
    pub(crate) fn new(head: Head, shape: MessageShape, speech: Box<dyn Parser>) -> Self {
        let (sample, blocks) = (Sample::default(), Vec::new());
        Self { head, shape, speech, sample, has_begun: false, blocks, is_open: false }
    }

    fn send(&self, name: &str, mut event: Value, frames: &mut Frames) {
        if self.shape.stream {
            event["type"] = name.into();
            frames.named(name, &event);
        }
    }

    fn begin(&mut self, frames: &mut Frames) {
        if !mem::replace(&mut self.has_begun, true) {
            let message = self.message(json!([]), Value::Null, Value::Null);
            self.send("message_start", json!({"message": message}), frames);
        }
    }

    fn message(&self, content: Value, stop_reason: Value, stop_sequence: Value) -> Value {
        json!({
            "id": self.head.id,
            "type": "message",
            "role": "assistant",
            "model": self.head.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": self.usage(),
        })
    }

    /// Cached tokens are counted apart.
    fn usage(&self) -> Value {
        json!({
            "input_tokens": self.sample.prompt_tokens.saturating_sub(self.sample.cached_tokens),
            "cache_read_input_tokens": self.sample.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": self.sample.tokens,
        })
    }

    fn say(&mut self, said: Delta, frames: &mut Frames) {
        match said {
            Delta::Reasoning(text) => {
                if !(self.is_open && matches!(self.blocks.last(), Some(Block::Thinking(_)))) {
                    let shown = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.open(Block::Thinking(String::new()), shown, frames);
                }
                if let Some(Block::Thinking(all)) = self.blocks.last_mut() {
                    all.push_str(&text);
                }
                self.delta(json!({"type": "thinking_delta", "thinking": text}), frames);
            }
            Delta::Content(text) => {
                if !(self.is_open && matches!(self.blocks.last(), Some(Block::Text(_)))) {
                    self.open(
                        Block::Text(String::new()),
                        json!({"type": "text", "text": ""}),
                        frames,
                    );
                }
                if let Some(Block::Text(all)) = self.blocks.last_mut() {
                    all.push_str(&text);
                }
                self.delta(json!({"type": "text_delta", "text": text}), frames);
            }
            Delta::Call { id, name, .. } => {
                let shown = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.open(Block::Tool { id, name, json: String::new() }, shown, frames);
            }
            Delta::Arguments { text, .. } => {
                if let Some(Block::Tool { json, .. }) = self.blocks.last_mut() {
                    json.push_str(&text);
                }
                self.delta(json!({"type": "input_json_delta", "partial_json": text}), frames);
            }
        }
    }

    fn open(&mut self, block: Block, shown: Value, frames: &mut Frames) {
        self.close(frames);
        self.blocks.push(block);
        self.is_open = true;
        let event = json!({"index": self.index(), "content_block": shown});
        self.send("content_block_start", event, frames);
    }

    fn delta(&self, delta: Value, frames: &mut Frames) {
        self.send("content_block_delta", json!({"index": self.index(), "delta": delta}), frames);
    }

    fn close(&mut self, frames: &mut Frames) {
        if mem::replace(&mut self.is_open, false) {
            self.send("content_block_stop", json!({"index": self.index()}), frames);
        }
    }

    fn index(&self) -> usize {
        self.blocks.len().saturating_sub(1)
    }

    fn stop(&self) -> (Value, Value) {
        let has_calls = self.blocks.iter().any(|block| matches!(block, Block::Tool { .. }));
        match (self.sample.reason(), self.sample.matched()) {
            (FinishReason::Length, _) => (json!("max_tokens"), Value::Null),
            (_, stop @ Value::String(_)) => (json!("stop_sequence"), stop),
            _ if has_calls => (json!("tool_use"), Value::Null),
            _ => (json!("end_turn"), Value::Null),
        }
    }
}

impl Emit for MessageEmit {
    fn event(&mut self, _prompt: usize, event: GenerationEvent, frames: &mut Frames) {
        match event {
            GenerationEvent::Admitted { prompt_tokens, cached_tokens, queue_time, .. } => {
                self.sample.admit(prompt_tokens, cached_tokens, queue_time);
            }
            GenerationEvent::Token { .. } => {
                self.sample.tokens += 1;
                self.begin(frames);
            }
            GenerationEvent::Text { text, .. } => {
                let mut said = Vec::new();
                self.speech.push(&text, &mut said);
                said.into_iter().for_each(|said| self.say(said, frames));
            }
            GenerationEvent::Finished(finished) => {
                self.sample.finish(finished);
                self.begin(frames);
                let mut said = Vec::new();
                self.speech.finish(&mut said);
                said.into_iter().for_each(|said| self.say(said, frames));
                self.close(frames);
            }
            _ => {}
        }
    }

    fn error(&mut self, refused: &Refused, frames: &mut Frames) {
        frames.named("error", &anthropic_error(refused));
    }

    fn end(&mut self, frames: &mut Frames) {
        if let Some(refused) = self.failed() {
            return self.error(&refused, frames);
        }
        let (reason, sequence) = self.stop();
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        self.send("message_delta", json!({"delta": delta, "usage": self.usage()}), frames);
        self.send("message_stop", json!({}), frames);
    }

    fn failed(&self) -> Option<Refused> {
        let is_whole = matches!(self.sample.reason(), FinishReason::Stop | FinishReason::Length);
        (!is_whole).then(|| Refused::server(503, "the request was given up"))
    }

    fn whole(&mut self) -> String {
        let (reason, sequence) = self.stop();
        let content = self.blocks.iter().map(Block::whole).collect();
        self.message(content, reason, sequence).to_string()
    }
}

impl Block {
    fn whole(&self) -> Value {
        match self {
            Self::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Self::Text(text) => json!({"type": "text", "text": text}),
            Self::Tool { id, name, json } => {
                // Of a call that was cut there is no more than its text.
                let input = serde_json::from_str(json).unwrap_or_else(|_| json!({"partial": json}));
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }
}

/// An error as Anthropic's clients read it.
pub(crate) fn anthropic_error(refused: &Refused) -> Value {
    let kind = match refused.status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": refused.message}})
}
