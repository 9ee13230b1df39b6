//! OpenAI's responses, streamed and whole: items of reasoning, text and calls, one after another.

use std::mem;

use serde_json::{Value, json};
use understory::request::{FinishReason, GenerationEvent};

use super::sample::Sample;
use super::{Emit, Frames, Head};
use crate::protocol::Refused;
use crate::tools::{Delta, Parser};

/// What a client asked to see.
#[derive(Clone, Debug)]
pub(crate) struct ResponseShape {
    pub(crate) stream: bool,
    /// The fields of a response that repeat the request.
    pub(crate) settings: Value,
}

/// Events or the answer of one response.
pub(crate) struct ResponseEmit {
    head: Head,
    shape: ResponseShape,
    speech: Box<dyn Parser>,
    sample: Sample,
    has_begun: bool,
    sequence: u64,
    reasoning_tokens: u32,
    items: Vec<Item>,
    is_open: bool,
}

#[derive(Debug)]
enum Item {
    Reasoning(String),
    Message(String),
    Call { id: String, name: String, arguments: String },
}

impl ResponseEmit {
    pub(crate) fn new(head: Head, shape: ResponseShape, speech: Box<dyn Parser>) -> Self {
        Self {
            head,
            shape,
            speech,
            sample: Sample::default(),
            has_begun: false,
            sequence: 0,
            reasoning_tokens: 0,
            items: Vec::new(),
            is_open: false,
        }
    }

    fn send(&mut self, name: &str, mut event: Value, frames: &mut Frames) {
        if self.shape.stream {
            event["type"] = name.into();
            event["sequence_number"] = self.sequence.into();
            self.sequence += 1;
            frames.named(name, &event);
        }
    }

    fn begin(&mut self, frames: &mut Frames) {
        if !mem::replace(&mut self.has_begun, true) {
            for name in ["response.created", "response.in_progress"] {
                let response = self.response("in_progress", Value::Null);
                self.send(name, json!({"response": response}), frames);
            }
        }
    }

    fn response(&self, status: &str, error: Value) -> Value {
        let is_over = status != "in_progress";
        let is_cut = status == "incomplete";
        let items = self.items.iter().enumerate();
        let output: Vec<Value> = items.map(|(index, item)| self.shown(index, item, true)).collect();
        let mut response = self.shape.settings.clone();
        response["id"] = self.head.id.as_str().into();
        response["object"] = "response".into();
        response["created_at"] = self.head.created.into();
        response["model"] = self.head.model.as_str().into();
        response["status"] = status.into();
        response["error"] = error;
        let details = if is_cut { json!({"reason": "max_output_tokens"}) } else { Value::Null };
        response["incomplete_details"] = details;
        response["output"] = output.into();
        response["usage"] = if is_over { self.usage() } else { Value::Null };
        response
    }

    fn usage(&self) -> Value {
        let (input, output) = (self.sample.prompt_tokens, self.sample.tokens);
        json!({
            "input_tokens": input,
            "input_tokens_details": {"cached_tokens": self.sample.cached_tokens},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": input.saturating_add(output),
        })
    }

    fn item_id(&self, index: usize) -> String {
        let rid = self.head.id.trim_start_matches("resp-");
        format!("item_{index}_{rid}")
    }

    fn shown(&self, index: usize, item: &Item, is_done: bool) -> Value {
        let id = self.item_id(index);
        let status = if is_done { "completed" } else { "in_progress" };
        match item {
            Item::Reasoning(text) => {
                let content = json!([{"type": "reasoning_text", "text": text}]);
                json!({"type": "reasoning", "id": id, "summary": [], "content": content, "status": status})
            }
            Item::Message(text) => {
                let content = if is_done { json!([part(text)]) } else { json!([]) };
                json!({"type": "message", "id": id, "role": "assistant", "content": content, "status": status})
            }
            Item::Call { id: call, name, arguments } => json!({
                "type": "function_call", "id": id, "call_id": call, "name": name, "arguments": arguments,
                "status": status,
            }),
        }
    }

    fn say(&mut self, said: Delta, frames: &mut Frames) {
        match said {
            Delta::Reasoning(text) => {
                if !(self.is_open && matches!(self.items.last(), Some(Item::Reasoning(_)))) {
                    self.open(Item::Reasoning(String::new()), frames);
                }
                if let Some(Item::Reasoning(all)) = self.items.last_mut() {
                    all.push_str(&text);
                }
                self.part_event("response.reasoning_text.delta", json!({"delta": text}), frames);
            }
            Delta::Content(text) => {
                if !(self.is_open && matches!(self.items.last(), Some(Item::Message(_)))) {
                    self.open(Item::Message(String::new()), frames);
                    let event = json!({"part": part("")});
                    self.part_event("response.content_part.added", event, frames);
                }
                if let Some(Item::Message(all)) = self.items.last_mut() {
                    all.push_str(&text);
                }
                let event = json!({"delta": text, "logprobs": []});
                self.part_event("response.output_text.delta", event, frames);
            }
            Delta::Call { id, name, .. } => {
                self.open(Item::Call { id, name, arguments: String::new() }, frames);
            }
            Delta::Arguments { text, .. } => {
                if let Some(Item::Call { arguments, .. }) = self.items.last_mut() {
                    arguments.push_str(&text);
                }
                let event = json!({"delta": text});
                self.item_event("response.function_call_arguments.delta", event, frames);
            }
        }
    }

    fn open(&mut self, item: Item, frames: &mut Frames) {
        self.close(frames);
        let index = self.items.len();
        let shown = self.shown(index, &item, false);
        self.items.push(item);
        self.is_open = true;
        self.send(
            "response.output_item.added",
            json!({"output_index": index, "item": shown}),
            frames,
        );
    }

    fn close(&mut self, frames: &mut Frames) {
        if !mem::replace(&mut self.is_open, false) {
            return;
        }
        let index = self.index();
        let Some(item) = self.items.last() else { return };
        let shown = self.shown(index, item, true);
        match item {
            Item::Reasoning(text) => {
                let event = json!({"text": text});
                self.part_event("response.reasoning_text.done", event, frames);
            }
            Item::Message(text) => {
                let (done, part) =
                    (json!({"text": text, "logprobs": []}), json!({"part": part(text)}));
                self.part_event("response.output_text.done", done, frames);
                self.part_event("response.content_part.done", part, frames);
            }
            Item::Call { name, arguments, .. } => {
                let event = json!({"name": name, "arguments": arguments});
                self.item_event("response.function_call_arguments.done", event, frames);
            }
        }
        self.send(
            "response.output_item.done",
            json!({"output_index": index, "item": shown}),
            frames,
        );
    }

    fn item_event(&mut self, name: &str, mut event: Value, frames: &mut Frames) {
        let index = self.index();
        event["item_id"] = self.item_id(index).into();
        event["output_index"] = index.into();
        self.send(name, event, frames);
    }

    fn part_event(&mut self, name: &str, mut event: Value, frames: &mut Frames) {
        event["content_index"] = 0.into();
        self.item_event(name, event, frames);
    }

    fn index(&self) -> usize {
        self.items.len().saturating_sub(1)
    }

    /// The status, and the error of one that is none of OpenAI's good ones.
    fn outcome(&self) -> (&'static str, Value) {
        match self.sample.reason() {
            FinishReason::Stop => ("completed", Value::Null),
            FinishReason::Length => ("incomplete", Value::Null),
            _ => ("failed", failure("the request was given up")),
        }
    }
}

impl Emit for ResponseEmit {
    fn event(&mut self, _prompt: usize, event: GenerationEvent, frames: &mut Frames) {
        match event {
            GenerationEvent::Admitted { prompt_tokens, cached_tokens, queue_time, .. } => {
                self.sample.admit(prompt_tokens, cached_tokens, queue_time);
            }
            GenerationEvent::Token { .. } => {
                self.sample.tokens += 1;
                self.begin(frames);
            }
            GenerationEvent::Text { text, tokens, .. } => {
                let mut said = Vec::new();
                self.speech.push(&text, &mut said);
                if said.iter().any(|said| matches!(said, Delta::Reasoning(_))) {
                    self.reasoning_tokens += tokens.len() as u32;
                }
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
        self.begin(frames);
        let response = self.response("failed", failure(&refused.message));
        self.send("response.failed", json!({"response": response}), frames);
    }

    /// Exactly one event ends a stream.
    fn end(&mut self, frames: &mut Frames) {
        let (status, error) = self.outcome();
        let name = match status {
            "completed" => "response.completed",
            "incomplete" => "response.incomplete",
            _ => "response.failed",
        };
        let response = self.response(status, error);
        self.send(name, json!({"response": response}), frames);
    }

    fn whole(&mut self) -> String {
        let (status, error) = self.outcome();
        self.response(status, error).to_string()
    }
}

fn failure(message: &str) -> Value {
    json!({"code": "server_error", "message": message})
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}
