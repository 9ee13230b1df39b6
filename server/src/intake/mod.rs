//! From what clients send to what the engine takes. Nothing here waits or changes anything.

mod anthropic;
mod chat;
mod completions;
mod embeddings;
mod generate;
mod messages;
mod namespaces;
mod refusals;
mod responses;
mod sampling;
mod structure;
mod tokenize;

use grammar::{GrammarCompiler, GrammarError};
use sha2::{Digest, Sha256};
use understory::engine::Engine;
use understory::request::{Request, SamplingParams};
use understory::text::{ChatMessage, ChatOptions, Tokenizer};
use understory::{Namespace, Token, one_line};

pub(crate) use anthropic::{count, message};
pub(crate) use chat::chat;
pub(crate) use completions::completion;
pub(crate) use embeddings::{EmbeddingPlan, embeddings};
pub(crate) use generate::generate;
pub(crate) use namespaces::Namespaces;
pub(crate) use refusals::{ended, refused};
pub(crate) use responses::response;
pub(crate) use tokenize::tokenize;

use crate::emit::{Emit, Head};
use crate::protocol::{PromptInput, Refused};
use crate::reasoning::ReasoningFormat;
use crate::tools::ToolFormat;

/// What requests are read against.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) engine: Engine,
    pub(crate) tokenizer: Tokenizer,
    /// The names that the model is served under; the first is its own.
    pub(crate) names: Vec<String>,
    pub(crate) fingerprint: String,
    /// Compiles what answers are restricted to; or why the tokenizer can't be used for that.
    pub(crate) grammars: Result<GrammarCompiler, GrammarError>,
    /// How the model writes calls, and how it marks its thoughts, if it does.
    pub(crate) tool_call_parser: ToolFormat,
    pub(crate) reasoning_parser: Option<ReasoningFormat>,
    /// The names of namespaces, where routers are told of them.
    pub(crate) namespaces: Option<Namespaces>,
    /// Bytes of the longest token: no prompt of the context's tokens is longer.
    pub(crate) longest_token: usize,
    /// Most prompts of a request: so many as may wait.
    pub(crate) most_prompts: usize,
    /// Events of `/generate` have what is new, rather than all.
    pub(crate) incremental: bool,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The request's id.
    pub(crate) rid: String,
    /// In seconds since 1970.
    pub(crate) created: u64,
    /// Whose prefixes are shared.
    pub(crate) tenant: Option<String>,
}

/// What is to be done about a request.
pub(crate) struct Plan {
    pub(crate) requests: Vec<Request>,
    /// Under which the requests can be aborted.
    pub(crate) rids: Vec<String>,
    pub(crate) emit: Box<dyn Emit>,
    pub(crate) stream: bool,
}

impl Context {
    /// Finds a model that is not served here.
    pub(crate) fn check_model(&self, model: Option<&str>) -> Result<(), Refused> {
        match model {
            None | Some("" | "default") => Ok(()),
            Some(name) if self.names.iter().any(|own| own == name) => Ok(()),
            Some(name) => {
                let message = format!("the model {name:?} does not exist");
                Err(Refused::invalid(Some("model"), message).code("model_not_found").status(404))
            }
        }
    }

    /// Finds parameters that make no sense, before anything is sized by them.
    fn check_params(&self, params: &SamplingParams) -> Result<(), Refused> {
        let checked = params.validate(self.engine.model().vocab_size);
        checked.map_err(|error| refused(&error.into(), "prompt"))
    }

    fn check_prompts(&self, param: &str, prompts: usize) -> Result<(), Refused> {
        match prompts {
            0 => Err(Refused::invalid(Some(param), format!("{param} has no entries"))),
            _ if prompts > self.most_prompts => {
                let most = self.most_prompts;
                let message = format!("{param} has {prompts} entries, but at most {most} may wait");
                Err(Refused::invalid(Some(param), message))
            }
            _ => Ok(()),
        }
    }

    /// The namespace of the caller's tenant and of the request's salt, which is in `param`. An empty salt is none.
    fn namespace(
        &self,
        caller: &Caller,
        param: &str,
        salt: Option<&str>,
    ) -> Result<Namespace, Refused> {
        /// Routers are told of salts, so each is kept.
        const LONGEST_SALT: usize = 256;
        let salt = salt.filter(|salt| !salt.is_empty());
        if salt.is_some_and(|salt| salt.len() > LONGEST_SALT) {
            let message = format!("{param} must have at most {LONGEST_SALT} bytes");
            return Err(Refused::invalid(Some(param), message));
        }
        let tenant = caller.tenant.as_deref();
        let namespace = Namespace::tenant(tenant.map_or(0, number)).salted(salt.map_or(0, number));
        if let Some(names) = &self.namespaces {
            names.note(namespace, tenant, salt);
        }
        Ok(namespace)
    }

    /// The name that an answer carries: the one that was asked for, or else the model's own.
    fn own_name<'a>(&'a self, asked: Option<&'a str>) -> &'a str {
        let own = self.names.first().map_or("", String::as_str);
        asked.filter(|name| !name.is_empty()).unwrap_or(own)
    }

    fn head(&self, kind: &str, caller: &Caller, model: Option<&str>) -> Head {
        Head {
            id: format!("{kind}-{}", caller.rid),
            created: caller.created,
            model: self.own_name(model).to_owned(),
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// The tokens of a prompt.
    pub(crate) fn tokens(
        &self,
        param: &str,
        prompt: &PromptInput,
        add_special_tokens: bool,
    ) -> Result<Vec<Token>, Refused> {
        match prompt {
            PromptInput::Tokens(tokens) => {
                let context = self.engine.limits().context_length;
                if tokens.len() > context {
                    let length = tokens.len();
                    let message = format!("{length} tokens are more than the context's {context}");
                    return Err(
                        Refused::invalid(Some(param), message).code("context_length_exceeded")
                    );
                }
                Ok(tokens.clone())
            }
            PromptInput::Text(text) => {
                self.check_length(param, text.len())?;
                let tokens = self.tokenizer.encode(text, add_special_tokens);
                tokens.map_err(|error| Refused::invalid(Some(param), one_line(&error)))
            }
        }
    }

    /// The tokens of a conversation.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<Vec<Token>, Refused> {
        let wrong = |message: String| Refused::invalid(Some("messages"), message);
        let template = self.engine.chat_template();
        let template =
            template.ok_or_else(|| wrong("the model has no chat template".to_owned()))?;
        let parts = template.render_parts(messages, options, &self.tokenizer);
        let tokens = parts.and_then(|parts| self.tokenizer.encode_parts(&parts));
        tokens.map_err(|error| wrong(one_line(&error)))
    }

    /// Refuses a text that is too long whatever its tokens are, before it is tokenized.
    pub(crate) fn check_length(&self, param: &str, bytes: usize) -> Result<(), Refused> {
        let context = self.engine.limits().context_length;
        if bytes <= context.saturating_mul(self.longest_token) {
            return Ok(());
        }
        let message = format!(
            "{bytes} bytes of text have more tokens than the context, which holds {context}"
        );
        Err(Refused::invalid(Some(param), message).code("context_length_exceeded"))
    }
}

/// A number for a name: so much of a cryptographic hash that names don't meet by chance, nor cheaply on purpose.
pub(crate) fn number(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    let bytes: [u8; 8] =
        std::array::from_fn(|index| digest.get(index).copied().unwrap_or_default());
    u64::from_le_bytes(bytes)
}
