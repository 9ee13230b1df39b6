//! From the engine's events to what clients get: state machines without engine, clock or HTTP.
//!
//! Streams are server-sent events, written by hand: a chunk for each piece of text, which is a token's; no comments,
//! `event:` or `id:` lines where clients read lines of `data:` alone.

mod base64;
mod chat;
mod completions;
mod frames;
mod generate;
mod messages;
mod responses;
mod sample;
mod scores;

use understory::request::GenerationEvent;

pub(crate) use base64::base64;
pub(crate) use chat::{ChatEmit, ChatShape};
pub(crate) use completions::{CompletionEmit, CompletionShape, EchoedPrompt};
pub(crate) use frames::Frames;
pub(crate) use generate::{GenerateEmit, GenerateShape, NativePrompt};
pub(crate) use messages::{MessageEmit, MessageShape, anthropic_error};
pub(crate) use responses::{ResponseEmit, ResponseShape};

use crate::protocol::Refused;

/// Turns the events of one HTTP request, which may have several prompts, into an answer.
pub(crate) trait Emit: Send {
    /// Something happened to a sample of prompt number `prompt`. Chunks go to `frames` if the answer is streamed.
    fn event(&mut self, prompt: usize, event: GenerationEvent, frames: &mut Frames);

    /// A prompt's stream ended with an error, and so does the answer.
    fn error(&mut self, refused: &Refused, frames: &mut Frames) {
        frames.data(&refused.event());
        frames.done();
    }

    /// All samples have ended: what closes a stream.
    fn end(&mut self, frames: &mut Frames);

    /// After all samples have ended: why there is no whole answer, in protocols that have no word for an aborted one.
    fn failed(&self) -> Option<Refused> {
        None
    }

    /// The whole answer, if it is not streamed, after all samples have ended.
    fn whole(&mut self) -> String;
}

/// What all chunks of an answer begin with.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    /// In seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

#[cfg(test)]
mod tests;
