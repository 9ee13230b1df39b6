//! What is to be continued, and how.

use std::time::Duration;

use radix_cache::{Namespace, Token};

use super::constraint::TokenConstraint;
use super::params::SamplingParams;
use crate::text::ChatMessage;

/// What a request continues.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Prompt {
    /// Text, with the special tokens around it that the tokenizer's definition adds.
    Text(String),
    /// Tokens, taken as they are.
    Tokens(Vec<Token>),
    /// A conversation, rendered by the model's chat template.
    Messages(Vec<ChatMessage>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<Token>> for Prompt {
    fn from(tokens: Vec<Token>) -> Self {
        Self::Tokens(tokens)
    }
}

impl From<Vec<ChatMessage>> for Prompt {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Self::Messages(messages)
    }
}

/// One call of the model.
///
/// ```
/// use engine_core::request::{Request, SamplingParams};
///
/// let request = Request::new("Once upon a time").sampling(SamplingParams::greedy(32));
/// assert_eq!(request.sampling.max_tokens, Some(32));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Request {
    /// What is continued.
    pub prompt: Prompt,
    /// How tokens are sampled and when it ends.
    pub sampling: SamplingParams,
    /// Requests share cached prefixes within a namespace only: a tenant, say.
    pub namespace: Namespace,
    /// Its cached prefix is evicted later than those of lower priority, where the engine's
    /// eviction policy is [`Policy::Priority`](radix_cache::Policy::Priority). Default 0.
    pub cache_priority: i32,
    /// Its cached prefix is evicted after everything that is not kept, for so long. Never more
    /// than a wish: when nothing else is left, it goes too.
    pub keep_cached_for: Option<Duration>,
    /// Restricts what may be said; each of the request's samples has its own copy.
    pub constraint: Option<Box<dyn TokenConstraint>>,
}

impl Request {
    /// A request with default sampling in the default namespace.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            sampling: SamplingParams::default(),
            namespace: Namespace::default(),
            cache_priority: 0,
            keep_cached_for: None,
            constraint: None,
        }
    }

    /// How tokens are sampled and when it ends.
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// Share cached prefixes with requests of this namespace only.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Evict its cached prefix later than those of lower priority.
    #[must_use]
    pub fn cache_priority(mut self, priority: i32) -> Self {
        self.cache_priority = priority;
        self
    }

    /// Evict its cached prefix after everything that is not kept, for so long.
    #[must_use]
    pub fn keep_cached_for(mut self, duration: Duration) -> Self {
        self.keep_cached_for = Some(duration);
        self
    }

    /// Restrict what may be said.
    #[must_use]
    pub fn constraint(mut self, constraint: Box<dyn TokenConstraint>) -> Self {
        self.constraint = Some(constraint);
        self
    }
}
