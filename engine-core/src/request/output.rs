//! What a stream carries.

use std::fmt;
use std::time::{Duration, Instant};

use radix_cache::Token;

/// Something that happened to one of a request's samples. Samples are numbered from 0; a request
/// with `n = 1` has sample 0 only.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum GenerationEvent {
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
    },
    /// The sample has ended.
    Finished(Finished),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The sample.
    pub sample: u32,
    /// Why.
    pub reason: FinishReason,
    /// What it took.
    pub usage: Usage,
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
    /// When its first token was known; `None` if it has none.
    pub first_token: Option<Instant>,
    /// When it ended.
    pub finish: Instant,
}

impl Usage {
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
    /// Why it ended.
    pub reason: FinishReason,
    /// What it took.
    pub usage: Usage,
}
