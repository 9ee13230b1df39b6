//! The text thread: keeps turning tokens into text, and the wake-ups of readers, off the scheduler
//! thread.

use std::time::Instant;

use hashbrown::HashMap;

use super::command::{Command, TextMessage};
use super::sample_text::{SampleText, Taken};
use super::shared::{Ending, Shared};
use crate::error::{EngineDead, GenerationError};
use crate::request::{FinishReason, GenerationEvent, StopMatch};
use crate::schedule::{self, SequenceId};

type Samples = HashMap<SequenceId, Box<SampleText>>;

/// Runs until it is told to close, or the engine has died.
pub(super) fn run(shared: &Shared) {
    let mut samples = HashMap::new();
    let mut messages = shared.texts.buffer();
    let mut is_open = true;
    while is_open {
        shared.texts.wait(&mut messages);
        // Woken without a message: closed.
        is_open = !messages.is_empty();
        for message in messages.drain(..) {
            match message {
                TextMessage::Close => is_open = false,
                message => handle(message, &mut samples, shared),
            }
        }
    }
    // None are left unless the engine died.
    let dead = shared.dead.get().cloned();
    let dead = dead.unwrap_or_else(|| EngineDead::new("it ended with work left"));
    samples.drain().for_each(|(_, sample)| sample.feed.die(dead.clone()));
}

/// Messages about samples that have ended here already, at a stop string, are dropped.
fn handle(message: TextMessage, samples: &mut Samples, shared: &Shared) {
    match message {
        TextMessage::Open(id, sample) => {
            samples.insert(id, sample);
        }
        TextMessage::Forked { id, prompt_tokens, last_token } => {
            if let Some(sample) = samples.get_mut(&id) {
                sample.continue_from(prompt_tokens, last_token);
            }
        }
        TextMessage::Admitted { id, cached_tokens, at } => {
            let Some(sample) = samples.get_mut(&id) else { return };
            let taken = sample.admit(cached_tokens, at);
            act(id, taken, at, samples, shared);
        }
        TextMessage::Prompt { id, position, logprobs } => tell(id, samples, shared, |sample| {
            GenerationEvent::Prompt { sample, position, logprobs }
        }),
        TextMessage::Embedding { id, vector } => {
            tell(id, samples, shared, |sample| GenerationEvent::Embedding { sample, vector });
        }
        TextMessage::Token { id, token, logprobs, at } => {
            let Some(sample) = samples.get_mut(&id) else { return };
            let taken = sample.take(token, logprobs, at);
            act(id, taken, at, samples, shared);
        }
        TextMessage::Finished { id, reason, at } => {
            if let Some(sample) = samples.remove(&id) {
                finish(sample, reason, at, shared);
            }
        }
        TextMessage::Broken { id, problem } => {
            let Some(sample) = samples.remove(&id) else { return };
            let error = GenerationError::Constraint { sample: sample.number, problem };
            fail(sample, Ending::Failed, error, shared);
        }
        TextMessage::Refused { id, refusal } => {
            let Some(sample) = samples.remove(&id) else { return };
            let error = GenerationError::Refused { sample: sample.number, refusal };
            fail(sample, Ending::Refused, error, shared);
        }
        TextMessage::Close => {}
    }
}

fn tell(
    id: SequenceId,
    samples: &mut Samples,
    shared: &Shared,
    event: impl FnOnce(u32) -> GenerationEvent,
) {
    let Some(sample) = samples.get(&id) else { return };
    let taken = sample.tell(event(sample.number));
    act(id, taken, Instant::now(), samples, shared);
}

/// Ends the sample early, where the text or the reader asks for that.
fn act(id: SequenceId, taken: Taken, at: Instant, samples: &mut Samples, shared: &Shared) {
    let (reason, told, matched, ending) = match taken {
        Taken::Goes => return,
        Taken::Stopped(matched) => {
            (schedule::FinishReason::Stop, FinishReason::Stop, Some(matched), Ending::Stop)
        }
        // The reader was told.
        Taken::Broken => (schedule::FinishReason::Abort, FinishReason::Abort, None, Ending::Failed),
    };
    let Some(sample) = samples.remove(&id) else { return };
    // If the scheduler thread is gone there is nothing to stop any more.
    let _ = shared.commands.post(Command::End { id, reason });
    shared.endings.count(ending);
    sample.finish(told, matched, at);
}

fn finish(sample: Box<SampleText>, reason: schedule::FinishReason, at: Instant, shared: &Shared) {
    let (told, ending) = match reason {
        schedule::FinishReason::Stop => (FinishReason::Stop, Ending::Stop),
        schedule::FinishReason::Length => (FinishReason::Length, Ending::Length),
        schedule::FinishReason::Abort => (FinishReason::Abort, Ending::Abort),
        schedule::FinishReason::Error(reason) => {
            let error = GenerationError::Failed { sample: sample.number, reason };
            return fail(sample, Ending::Failed, error, shared);
        }
    };
    shared.endings.count(ending);
    let last = sample.last_token.filter(|_| told == FinishReason::Stop);
    sample.finish(told, last.map(StopMatch::Token), at);
}

fn fail(sample: Box<SampleText>, ending: Ending, error: GenerationError, shared: &Shared) {
    shared.endings.count(ending);
    sample.fail(error);
}
