//! Understory runs large language models inside your program. Requests that share a prefix
//! share its KV cache.
//!
//! ```no_run
//! use understory::prelude::*;
//!
//! let engine = understory::load("default").start()?;
//! let messages = vec![ChatMessage::new("user", "Why do leaves turn red?")];
//! for event in engine.submit(Request::new(messages).sampling(SamplingParams::greedy(64)))? {
//!     if let GenerationEvent::Text { text, .. } = event? {
//!         print!("{text}");
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The same in steps, for programs that bring a device, a tokenizer or a model of their own:
//!
//! ```no_run
//! use understory::prelude::*;
//!
//! let fetch = FetchOptions::default();
//! let path = ModelSource::Default.resolve(&fetch, &mut ())?;
//! let backend = BackendChoice::default().open(&fetch, &mut ())?;
//! let engine = Engine::builder().load(path, backend.as_ref(), &mut ())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An [`Engine`](engine::Engine) is a handle that any thread may clone and call; it knows no async
//! runtime, and its streams are `futures` streams as well as iterators. The program owns logging
//! (`tracing`), metrics (`metrics`) and signals: this library prints nothing and installs nothing.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`load`] | from a model's name to an engine |
//! | [`engine`] | the engine, how it is set up, its streams |
//! | [`request`] | requests, sampling parameters, events, outputs |
//! | [`error`] | what can go wrong, by whose fault it is |
//! | [`source`] | where models come from |
//! | [`BackendChoice`] | which device runs them |
//! | [`text`], [`model`], [`weights`], [`backend`], [`schedule`], [`kv`], [`sample`], [`cache`] | the parts, for programs that put them together themselves |
//!
//! Every type that a function of these modules takes or returns has its name in one of them.
//!
//! # Features
//!
//! `cpu` (default): the embedded backend, which needs nothing installed. `hub` (default): models
//! from the Hugging Face hub. `xla`: TPUs and other devices through a PJRT plugin. `cuda`: NVIDIA
//! devices, and an emulator of them. `grammar`: structured output. None changes what another does.

#![forbid(unsafe_code)]

mod backends;
mod load;
mod one_line;
pub mod source;

pub use backends::{BackendChoice, BackendChoiceError};
pub use engine_core::{CacheEvent, Namespace, PageId, Policy, Retention, Token, WritePolicy};
pub use engine_core::{
    backend, engine, error, kv, model, request, sample, schedule, text, weights,
};
pub use load::{LoadError, Loader, load};
pub use one_line::one_line;
/// The prefix cache by itself.
pub use radix_cache as cache;
/// JSON, of which the fields of messages are made.
pub use serde_json;

#[cfg(feature = "cpu")]
pub use backend_cpu as cpu;
#[cfg(feature = "cuda")]
pub use backend_cuda as cuda;
#[cfg(feature = "xla")]
pub use backend_xla as xla;
/// Structured output.
#[cfg(feature = "grammar")]
pub use grammar;

/// What most programs import.
pub mod prelude {
    pub use crate::backend::{Backend, Compute, KvFormat, Progress};
    pub use crate::engine::{Engine, EngineOptions, FitEstimate, Generation, KvMemory, Shutdown};
    pub use crate::error::{EngineError, GenerateError, GenerationError, SubmitError};
    pub use crate::request::{
        FinishReason, Finished, GenerationEvent, Output, Prompt, Request, SamplingParams,
    };
    pub use crate::source::{FetchOptions, ModelSource};
    pub use crate::text::ChatMessage;
    pub use crate::{BackendChoice, LoadError, Loader, Namespace, Token, one_line};
}

/// The programs in the README are compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
