//! What is to be continued, and how.

use std::time::Duration;

use radix_cache::{Namespace, Token};

use super::constraint::TokenConstraint;
use super::output::Usage;
use super::params::SamplingParams;
use crate::backend::{PoolKind, Pooling};
use crate::text::{ChatMessage, ChatOptions};

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
    /// How a prompt of messages is rendered: tools, documents, variables of the template.
    pub chat: ChatOptions,
    /// How tokens are sampled and when it ends.
    pub sampling: SamplingParams,
    /// Requests of a higher priority leave the queue first, whatever its policy. Default 0.
    pub priority: i32,
    /// Tokens may be proposed for it and verified several at a time, where the engine's
    /// [`speculation`](crate::engine::EngineOptions::speculation) is on. Changes no token. Default
    /// yes.
    pub speculation: bool,
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
    /// A vector is wanted, and no token.
    pub(crate) pooling: Option<Pooling>,
}

impl Request {
    /// A request with default sampling in the default namespace.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            chat: ChatOptions::default(),
            sampling: SamplingParams::default(),
            priority: 0,
            speculation: true,
            namespace: Namespace::default(),
            cache_priority: 0,
            keep_cached_for: None,
            constraint: None,
            pooling: None,
        }
    }
}

backend_api::setters!(Request {
    chat: ChatOptions,
    sampling: SamplingParams,
    priority: i32,
    speculation: bool,
    namespace: Namespace,
    cache_priority: i32,
    keep_cached_for: Duration,
    constraint: Box<dyn TokenConstraint>,
});

/// A text whose meaning is wanted as a vector: computed like a prompt, through the same cache.
///
/// ```
/// use engine_core::request::EmbedRequest;
///
/// let request = EmbedRequest::new("a rowing boat").pooling(engine_core::backend::PoolKind::Mean);
/// assert!(request.normalize);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EmbedRequest {
    /// The text.
    pub prompt: Prompt,
    /// How a prompt of messages is rendered.
    pub chat: ChatOptions,
    /// Which of its tokens' hidden states make the vector. The last one's alone takes the rest
    /// from the cache; the mean of all is computed whole. Default the last.
    pub pooling: PoolKind,
    /// Divide the vector by its Euclidean length. Default yes.
    pub normalize: bool,
    /// As [`Request::priority`].
    pub priority: i32,
    /// As [`Request::namespace`].
    pub namespace: Namespace,
}

impl EmbedRequest {
    /// The last token's state, normalized.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            chat: ChatOptions::default(),
            pooling: PoolKind::Last,
            normalize: true,
            priority: 0,
            namespace: Namespace::default(),
        }
    }
}

backend_api::setters!(EmbedRequest {
    chat: ChatOptions,
    pooling: PoolKind,
    normalize: bool,
    priority: i32,
    namespace: Namespace,
});

impl From<EmbedRequest> for Request {
    fn from(embed: EmbedRequest) -> Self {
        let EmbedRequest { prompt, chat, pooling, normalize, priority, namespace } = embed;
        let pooling = Some(Pooling { kind: pooling, normalize });
        Self { chat, priority, namespace, pooling, ..Self::new(prompt) }
    }
}

/// What an [`EmbedRequest`] gives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Embedding {
    /// As many values as the model is wide.
    pub vector: Vec<f32>,
    /// What it took.
    pub usage: Usage,
}
