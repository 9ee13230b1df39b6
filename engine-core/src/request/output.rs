//! What a stream carries.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use radix_cache::Token;

/// Something that happened to one of a request's samples. Samples are numbered from 0; a request
/// with `n = 1` has sample 0 only.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum GenerationEvent {
    /// The sample left the queue and runs.
    Admitted {
        /// The sample.
        sample: u32,
        /// Tokens of its prompt; of a branch, those taken over from its parent included.
        prompt_tokens: u32,
        /// Of those, tokens whose KV was in the prefix cache.
        cached_tokens: u32,
        /// How long it waited in the queue.
        queue_time: Duration,
    },
    /// How likely a run of the prompt's tokens was, if asked for. The runs of a prompt follow each
    /// other and begin with its second token: nothing precedes the first.
    Prompt {
        /// The sample: 0, which speaks for the others.
        sample: u32,
        /// Place of the run's first token in the prompt.
        position: u32,
        /// One for each token of the run.
        logprobs: Vec<TokenLogprobs>,
    },
    /// A token was generated. Tokens come with a stop token, or those of a stop string, where
    /// one ended the sample; text does not.
    Token {
        /// The sample.
        sample: u32,
        /// The token.
        token: Token,
        /// Its log probability and the likeliest tokens, if asked for.
        logprobs: Option<Box<TokenLogprobs>>,
        /// When the engine knew it, however late it is read.
        at: Instant,
    },
    /// Text has become certain. The texts of a sample, one after another, are its answer: no
    /// piece is empty, none ends within a character, and no part of a stop string is among them.
    Text {
        /// The sample.
        sample: u32,
        /// The piece.
        text: String,
        /// The tokens whose text it is, counted from the sample's first. Of the first and the last
        /// it may be a part; the next piece then begins with the same token. A token without a
        /// text of its own counts with the piece that follows.
        tokens: Range<u32>,
    },
    /// The vector of an embedding request.
    Embedding {
        /// The sample: 0.
        sample: u32,
        /// As many values as the model is wide.
        vector: Vec<f32>,
    },
    /// The sample has ended.
    Finished(Finished),
}

impl GenerationEvent {
    /// The sample that it happened to.
    pub fn sample(&self) -> u32 {
        match *self {
            Self::Admitted { sample, .. }
            | Self::Prompt { sample, .. }
            | Self::Token { sample, .. }
            | Self::Text { sample, .. }
            | Self::Embedding { sample, .. }
            | Self::Finished(Finished { sample, .. }) => sample,
        }
    }
}

/// How likely a token was under the model itself, before temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// The likeliest tokens at this position with theirs, likeliest first.
    pub top: Vec<(Token, f32)>,
}

/// How a sample ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The sample.
    pub sample: u32,
    /// Why.
    pub reason: FinishReason,
    /// What it ended at, if the reason is [`FinishReason::Stop`].
    pub matched: Option<StopMatch>,
    /// What it took.
    pub usage: Usage,
}

/// What a sample ended at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopMatch {
    /// One of the model's end tokens, or of the request's
    /// [`stop_token_ids`](super::SamplingParams::stop_token_ids).
    Token(Token),
    /// One of the request's [`stop`](super::SamplingParams::stop) strings.
    Text(Arc<str>),
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// Its token limit, or the context's.
    Length,
    /// It was given up: by its reader, or by a shutdown.
    Abort,
}

impl FinishReason {
    /// The name that OpenAI's interface gives it (`abort` is this crate's own).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Tokens and times of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of those, tokens whose KV was in the prefix cache.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// When it was submitted.
    pub arrival: Instant,
    /// When it left the queue; `None` if it never did.
    pub admitted: Option<Instant>,
    /// When its first token was known; `None` if it has none.
    pub first_token: Option<Instant>,
    /// When it ended.
    pub finish: Instant,
}

impl Usage {
    /// From submission to the first step that it is part of.
    pub fn queue_time(&self) -> Option<Duration> {
        self.admitted.map(|admitted| admitted.saturating_duration_since(self.arrival))
    }

    /// From submission to the first token.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.first_token.map(|first| first.saturating_duration_since(self.arrival))
    }

    /// From submission to the end.
    pub fn total_time(&self) -> Duration {
        self.finish.saturating_duration_since(self.arrival)
    }
}

/// A whole sample.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// Its number within the request.
    pub sample: u32,
    /// Its text; empty where the engine has no tokenizer.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<Token>,
    /// When the engine knew each token.
    pub token_times: Vec<Instant>,
    /// For each token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// For each token of the prompt but the first, if asked for; of sample 0 only.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub reason: FinishReason,
    /// What it ended at, if the reason is [`FinishReason::Stop`].
    pub matched: Option<StopMatch>,
    /// What it took.
    pub usage: Usage,
}
