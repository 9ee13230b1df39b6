//! What a step gives back: tokens, or one of three kinds of trouble.

use radix_cache::Token;

use crate::Span;

/// Results of a step. Kept and reused, so that a step in steady state allocates nothing.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StepResult {
    /// One or more for each requested output, in the order of
    /// [`Batch::outputs`](crate::Batch::outputs). More than one where a step verified a draft.
    pub sampled: Vec<Sampled>,
    /// Likeliest tokens with their log probabilities, most likely first; [`Sampled::top`] points
    /// here.
    pub top: Vec<(Token, f32)>,
}

impl StepResult {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.sampled.clear();
        self.top.clear();
    }
}

/// One token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The output that it answers, as an index into [`Batch::outputs`](crate::Batch::outputs).
    pub output: u32,
    /// The token: sampled, or the one that was to be scored.
    pub token: Token,
    /// Its log probability under the model, before temperature and filters. NaN unless log
    /// probabilities were asked for.
    pub logprob: f32,
    /// The likeliest tokens at this position, in [`StepResult::top`].
    pub top: Span,
}

/// A row that failed alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFailure {
    /// The row, as an index into [`Batch::rows`](crate::Batch::rows).
    pub row: u32,
    /// What happened, for the request's error.
    pub reason: String,
}

/// The device's trouble, by what must be done about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// Single rows failed (logits that are not finite, say). Their sequences end with an error;
    /// launched steps drop their rows; everybody else goes on.
    #[error("{} row(s) of a step failed", .0.len())]
    Rows(Vec<RowFailure>),
    /// The step failed and the KV memory is gone with it (a donated buffer died). Every
    /// sequence of the step ends with an error, the prefix tree is cleared, and other
    /// sequences are computed again. The executor can be used.
    #[error("the step failed and the KV memory was lost: {reason}")]
    KvLost {
        /// What the device said.
        reason: String,
    },
    /// The device is lost or did not answer in time. The executor can't be used again.
    #[error("the device is dead: {reason}")]
    Dead {
        /// What the device said, or which deadline passed.
        reason: String,
    },
    /// A transfer did not happen, or only in part: what it was to write holds anything, what it
    /// was to read is as it was. Steps are not affected.
    #[error("a transfer between tiers failed: {reason}")]
    TransferFailed {
        /// What the device said.
        reason: String,
    },
    /// The executor doesn't do this; nothing happened.
    #[error("this executor doesn't support {what}")]
    Unsupported {
        /// What was asked.
        what: &'static str,
    },
}
