//! The text thread: tokens into text, stop strings, and the readers' buffers. It keeps that work,
//! and the wake-ups of readers, off the scheduler thread.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use hashbrown::HashMap;
use radix_cache::Token;

use super::command::{Command, QueuePlace, TextMessage};
use super::mailbox::Mailbox;
use crate::error::{EngineDead, GenerationError};
use crate::request::{Feed, FinishReason, Finished, GenerationEvent, TokenLogprobs, Usage};
use crate::schedule::{self, SequenceId};
use crate::text::{IncrementalDetokenizer, StopMatcher};

/// One sample's way from tokens to its reader.
#[derive(Debug)]
pub(super) struct TextStream {
    pub(super) sample: u32,
    pub(super) feed: Feed,
    /// Given back when the sample first runs, or ends without.
    pub(super) queue_place: Option<QueuePlace>,
    /// `None` in an engine without tokenizer: tokens only.
    pub(super) detokenizer: Option<IncrementalDetokenizer>,
    pub(super) stop_strings: Option<StopMatcher>,
    /// End the sample without being part of its text.
    pub(super) stop_tokens: Arc<[Token]>,
    /// A stop string that is complete before this many tokens doesn't count.
    pub(super) min_tokens: u32,
    pub(super) usage: Usage,
}

/// Runs until it is told to close, or the engine has died.
pub(super) fn run(
    inbox: &Mailbox<TextMessage>,
    commands: &Mailbox<Command>,
    dead: &OnceLock<EngineDead>,
) {
    let mut streams = HashMap::new();
    let mut messages = inbox.buffer();
    let mut is_open = true;
    while is_open {
        inbox.wait(&mut messages);
        // Woken without a message: closed.
        is_open = !messages.is_empty();
        for message in messages.drain(..) {
            match message {
                TextMessage::Close => is_open = false,
                message => handle(message, &mut streams, commands),
            }
        }
    }
    // None are left unless the engine died.
    let dead = dead.get().cloned().unwrap_or_else(|| EngineDead::new("it ended with work left"));
    streams.drain().for_each(|(_, stream)| stream.feed.die(dead.clone()));
}

type Streams = HashMap<SequenceId, Box<TextStream>>;

/// Messages about samples that have ended here already, at a stop string, are dropped.
fn handle(message: TextMessage, streams: &mut Streams, commands: &Mailbox<Command>) {
    match message {
        TextMessage::Open(id, stream) => {
            streams.insert(id, stream);
        }
        TextMessage::Forked { id, prompt_tokens, last_token } => {
            if let Some(stream) = streams.get_mut(&id) {
                stream.continue_from(prompt_tokens, last_token);
            }
        }
        TextMessage::Admitted { id, cached_tokens } => {
            if let Some(stream) = streams.get_mut(&id) {
                stream.queue_place = None;
                stream.usage.cached_tokens = cached_tokens;
            }
        }
        TextMessage::Token { id, token, logprobs, at } => {
            let Some(stream) = streams.get_mut(&id) else { return };
            let has_stopped = stream.take(token, logprobs, at);
            if has_stopped && let Some(stream) = streams.remove(&id) {
                // If the scheduler thread is gone there is nothing to stop any more.
                let _ = commands.post(Command::Stop(id));
                stream.finish(FinishReason::Stop, at);
            }
        }
        TextMessage::Finished { id, reason, at } => {
            let Some(stream) = streams.remove(&id) else { return };
            match reason {
                schedule::FinishReason::Stop => stream.finish(FinishReason::Stop, at),
                schedule::FinishReason::Length => stream.finish(FinishReason::Length, at),
                schedule::FinishReason::Abort => stream.finish(FinishReason::Abort, at),
                schedule::FinishReason::Error(reason) => {
                    let sample = stream.sample;
                    stream.feed.end(Err(GenerationError::Failed { sample, reason }));
                }
            }
        }
        TextMessage::Refused { id, refusal } => {
            let Some(stream) = streams.remove(&id) else { return };
            let sample = stream.sample;
            stream.feed.end(Err(GenerationError::Refused { sample, refusal }));
        }
        TextMessage::Close => {}
    }
}

impl TextStream {
    fn continue_from(&mut self, prompt_tokens: u32, last_token: Option<Token>) {
        self.usage.prompt_tokens = prompt_tokens;
        self.continue_after(last_token.as_slice());
    }

    /// The sample's text continues that of the tokens, rather than being one of its own.
    pub(super) fn continue_after(&mut self, tokens: &[Token]) {
        if let Some(detokenizer) = &mut self.detokenizer {
            detokenizer.continue_after(tokens);
        }
    }

    /// Takes a token. True if its text completes a stop string.
    fn take(&mut self, token: Token, logprobs: Option<Box<TokenLogprobs>>, at: Instant) -> bool {
        let sample = self.sample;
        self.usage.first_token.get_or_insert(at);
        self.usage.completion_tokens += 1;
        self.feed.push(GenerationEvent::Token { sample, token, logprobs, at });
        let Some(detokenizer) = &mut self.detokenizer else { return false };
        if self.stop_tokens.contains(&token) {
            return false;
        }
        let text = detokenizer.push(token);
        let text = match &mut self.stop_strings {
            Some(matcher) if self.usage.completion_tokens < self.min_tokens => {
                matcher.push_early(text)
            }
            Some(matcher) => {
                let scan = matcher.push(text);
                push_text(&self.feed, sample, scan.text);
                return scan.stopped.is_some();
            }
            None => text,
        };
        push_text(&self.feed, sample, text);
        false
    }

    fn finish(mut self: Box<Self>, reason: FinishReason, at: Instant) {
        let sample = self.sample;
        let tail = self.detokenizer.as_mut().map_or("", IncrementalDetokenizer::finish);
        match self.stop_strings.take() {
            None => push_text(&self.feed, sample, tail),
            Some(mut matcher) => {
                push_text(&self.feed, sample, matcher.push(tail).text);
                push_text(&self.feed, sample, &matcher.finish());
            }
        }
        let usage = Usage { finish: at, ..self.usage };
        // Before the reader hears of the end, so that it may submit at once.
        drop(self.queue_place.take());
        self.feed.end(Ok(GenerationEvent::Finished(Finished { sample, reason, usage })));
    }
}

fn push_text(feed: &Feed, sample: u32, text: &str) {
    if !text.is_empty() {
        feed.push(GenerationEvent::Text { sample, text: text.to_owned() });
    }
}
