//! How a server is set up.

mod arguments;
mod file;
mod keys;
mod tls;

use std::time::Duration;

use crate::kv_events::KvEventsConfig;
use crate::reasoning::ReasoningFormat;
use crate::tools::ToolFormat;

pub use arguments::{EngineArguments, ServeArguments};
pub use file::{ConfigError, with_file};
pub use keys::{Keys, KeysError};
pub use tls::{Tls, TlsError};

/// How a server answers.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ServerOptions {
    /// The names that the model is served under. Default: the one that it was loaded by.
    pub served_model_name: Vec<String>,
    /// Who may ask. Default everybody.
    pub keys: Keys,
    /// What clients may take.
    pub limits: Limits,
    /// Pages of which origins may ask. Default none but the server's own.
    pub cors: Option<Origins>,
    /// Send a comment when a stream has been silent for so long. Default never: some clients fail on comments.
    pub sse_keep_alive: Option<Duration>,
    /// Events of `/generate` have what is new since the last one, rather than all. Default no, as SGLang.
    pub incremental_streaming_output: bool,
    /// Where changes of the cache are published, as `/server_info` tells; publishing is
    /// [`KvEvents`](crate::kv_events::KvEvents)' work. Default nowhere.
    pub kv_events: Option<KvEventsConfig>,
    /// How the model writes calls of tools. Default: as its chat template teaches it, or Hermes' way.
    pub tool_call_parser: Option<ToolFormat>,
    /// How the model marks its thoughts. Default: thoughts are content.
    pub reasoning_parser: Option<ReasoningFormat>,
    /// Devices that share the model, as `/server_info` tells.
    pub tp_size: usize,
}

/// Which origins may ask, for browsers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origins {
    /// All.
    Any,
    /// These, as `https://example.com`.
    Listed(Vec<String>),
}

/// How much and how long clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Longest body in bytes. Default 64 MB.
    pub body_bytes: usize,
    /// Longest head of a request in bytes, at least 8192. Default 32 KB.
    pub head_bytes: usize,
    /// Connections at once; others wait to be accepted. Default 16,384.
    pub connections: usize,
    /// Prompts in a request. Default 4096.
    pub prompts: usize,
    /// For the head of a request, from when it is expected: idle connections are closed after it. Default a minute.
    pub head_patience: Duration,
    /// For the body of a request. Default a minute.
    pub body_patience: Duration,
    /// A client that reads nothing for so long is given up. Default a minute.
    pub write_patience: Duration,
    /// How long requests may go on when the server ends. Default for ever.
    pub drain: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            body_bytes: 64 << 20,
            head_bytes: 32 << 10,
            connections: 16_384,
            prompts: 4096,
            head_patience: MINUTE,
            body_patience: MINUTE,
            write_patience: MINUTE,
            drain: None,
        }
    }
}
