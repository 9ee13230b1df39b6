//! What a step gives back: tokens, or one of three kinds of trouble.

use radix_cache::Token;

use crate::{BatchError, Span};

/// Results of a step. Kept and reused, so that a step in steady state allocates nothing.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StepResult {
    /// At most one for each requested output, in the order of
    /// [`Batch::outputs`](crate::Batch::outputs). Outputs of rows that failed are missing.
    pub outputs: Vec<OutputResult>,
    /// Tokens of all outputs; [`OutputResult::tokens`] points here.
    pub tokens: Vec<Sampled>,
    /// Likeliest tokens with their log probabilities, most likely first; [`Sampled::top`] points
    /// here.
    pub top: Vec<(Token, f32)>,
    /// Vectors of all outputs; [`OutputResult::vector`] points here.
    pub vectors: Vec<f32>,
}

impl StepResult {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.outputs.clear();
        self.tokens.clear();
        self.top.clear();
        self.vectors.clear();
    }

    /// Appends an output's tokens.
    pub fn push_tokens(&mut self, output: u32, tokens: impl IntoIterator<Item = Sampled>) {
        let start = self.tokens.len() as u32;
        self.tokens.extend(tokens);
        let tokens = Span { start, len: self.tokens.len() as u32 - start };
        self.outputs.push(OutputResult { output, tokens, vector: Span::default() });
    }

    /// Appends an output's vector, or several vectors one after another.
    pub fn push_vector(&mut self, output: u32, values: impl IntoIterator<Item = f32>) {
        let start = self.vectors.len() as u32;
        self.vectors.extend(values);
        let vector = Span { start, len: self.vectors.len() as u32 - start };
        self.outputs.push(OutputResult { output, tokens: Span::default(), vector });
    }

    /// Appends another result's answers, to outputs that come after those answered here.
    pub fn append(&mut self, other: &Self) {
        let (tokens, top) = (self.tokens.len() as u32, self.top.len() as u32);
        let vectors = self.vectors.len() as u32;
        let moved = |span: Span, by: u32| Span { start: span.start + by, ..span };
        self.outputs.extend(other.outputs.iter().map(|result| OutputResult {
            tokens: moved(result.tokens, tokens),
            vector: moved(result.vector, vectors),
            ..*result
        }));
        let moved_top = |sampled: &Sampled| Sampled { top: moved(sampled.top, top), ..*sampled };
        self.tokens.extend(other.tokens.iter().map(moved_top));
        self.top.extend_from_slice(&other.top);
        self.vectors.extend_from_slice(&other.vectors);
    }

    /// The answer to an output; `None` if its row failed.
    pub fn output(&self, output: u32) -> Option<&OutputResult> {
        let place = self.outputs.binary_search_by_key(&output, |result| result.output).ok()?;
        self.outputs.get(place)
    }

    /// The tokens of an answer.
    pub fn tokens_of(&self, result: &OutputResult) -> &[Sampled] {
        self.tokens.get(result.tokens.range()).unwrap_or_default()
    }

    /// The vector of an answer.
    pub fn vector_of(&self, result: &OutputResult) -> &[f32] {
        self.vectors.get(result.vector.range()).unwrap_or_default()
    }
}

/// The answer to one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputResult {
    /// The output, as an index into [`Batch::outputs`](crate::Batch::outputs).
    pub output: u32,
    /// Its tokens, in [`StepResult::tokens`]: 0 or more, as its [`Want`](crate::Want) says.
    pub tokens: Span,
    /// Its vector, in [`StepResult::vectors`]; empty unless one was wanted.
    pub vector: Span,
}

/// One token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
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
    /// A transfer did not happen, or only in part: its destination pages are undefined, its source
    /// pages unchanged. Steps are not affected.
    #[error("a transfer between tiers failed: {reason}")]
    TransferFailed {
        /// What the device said.
        reason: String,
    },
    /// The batch breaks a rule; nothing happened.
    #[error("step {step} is malformed: {error}")]
    Batch {
        /// The batch's number.
        step: u64,
        /// The rule.
        error: BatchError,
    },
    /// The executor doesn't do this; nothing happened.
    #[error("this executor doesn't support {what}")]
    Unsupported {
        /// What was asked.
        what: &'static str,
    },
}
