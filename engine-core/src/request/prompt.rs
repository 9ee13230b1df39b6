//! What is to be continued, and how.

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

    /// Restrict what may be said.
    #[must_use]
    pub fn constraint(mut self, constraint: Box<dyn TokenConstraint>) -> Self {
        self.constraint = Some(constraint);
        self
    }
}
