//! Understory runs large language models inside your program. Requests that share a prefix
//! share its KV cache.
//!
//! ```no_run
//! use understory::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let path = ModelSource::Default.resolve(&FetchOptions::default(), &mut ())?;
//! let backend = BackendChoice::default().open(&FetchOptions::default(), &mut ())?;
//! let engine = Engine::builder().load(path, backend.as_ref(), &mut ())?;
//!
//! let messages = vec![ChatMessage::new("user", "Why do leaves turn red?")];
//! for event in engine.submit(Request::new(messages).sampling(SamplingParams::greedy(64)))? {
//!     if let GenerationEvent::Text { text, .. } = event? {
//!         print!("{text}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! An [`Engine`](engine::Engine) is a handle that any thread may clone and call; it knows no async
//! runtime, and its streams are `futures` streams as well as iterators. The program owns logging
//! (`tracing`), metrics (`metrics`) and signals: this library prints nothing and installs nothing.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`engine`] | the engine, how it is set up, its streams |
//! | [`request`] | requests, sampling parameters, events, outputs |
//! | [`error`] | what can go wrong, by whose fault it is |
//! | [`source`] | where models come from |
//! | [`BackendChoice`] | which device runs them |
//! | [`text`], [`model`], [`weights`], [`backend`] | the parts, for programs that put them together themselves |
//!
//! # Features
//!
//! `cpu` (default): the embedded backend, which needs nothing installed. `hub` (default): models
//! from the Hugging Face hub. `xla`: TPUs and other devices through a PJRT plugin. None changes
//! what another does.

#![forbid(unsafe_code)]

mod backends;
pub mod source;

pub use backends::{BackendChoice, BackendChoiceError};
pub use engine_core::{Namespace, PageId, Policy, Token, WritePolicy};
pub use engine_core::{backend, engine, error, model, request, schedule, text, weights};

#[cfg(feature = "cpu")]
pub use backend_cpu as cpu;
#[cfg(feature = "xla")]
pub use backend_xla as xla;

/// What most programs import.
pub mod prelude {
    pub use crate::backend::{Backend, Progress};
    pub use crate::engine::{Engine, EngineOptions, Generation, KvMemory, Shutdown};
    pub use crate::error::{EngineError, GenerateError, GenerationError, SubmitError};
    pub use crate::request::{
        FinishReason, Finished, GenerationEvent, Output, Prompt, Request, SamplingParams,
    };
    pub use crate::source::{FetchOptions, ModelSource};
    pub use crate::text::ChatMessage;
    pub use crate::{BackendChoice, Namespace, Token};
}
