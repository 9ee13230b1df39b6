//! Grammars that restrict what a sample says: JSON schemas, regular expressions, EBNF, Lark, and
//! choices, as the [`TokenConstraint`](engine_core::request::TokenConstraint)s of an engine.
//!
//! ```
//! use grammar::{GrammarCompiler, GrammarOptions, GrammarSpec};
//! use serde_json::json;
//! # let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny/llama-tied");
//! # let tokenizer = engine_core::text::Tokenizer::from_directory(directory.as_ref())?;
//!
//! // Once, with the engine's tokenizer; clones share everything.
//! let compiler = GrammarCompiler::new(&tokenizer, GrammarOptions::default())?;
//! let spec = GrammarSpec::JsonSchema(json!({
//!     "type": "object",
//!     "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
//!     "required": ["city", "degrees"],
//!     "additionalProperties": false,
//! }));
//! // For each request, on a thread that may block for a moment.
//! let constraint = compiler.compile(&spec)?.constraint();
//! let request = engine_core::request::Request::new("Weather as JSON: ")
//!     .constraint(Box::new(constraint));
//! # let _ = request;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is decided here
//!
//! - [llguidance](https://crates.io/crates/llguidance) computes masks: its lexer and Earley parser
//!   walk the trie of the vocabulary. This crate builds the trie from any tokenizer of the engine
//!   (GGUF files too), bounds the work, and keeps what llguidance calls forced bytes apart from
//!   what is sampled, so that an answer doesn't depend on whether forced tokens are appended,
//!   sampled or proposed.
//! - A schema is enforced exactly or refused: [`GrammarError::Unsupported`] names the keyword and
//!   where it stands. Properties come in the order of the schema.
//! - Grammars are bounded before they are compiled (bytes, nesting), while they are compiled and
//!   at each mask (work, states). Compiling happens on a thread of its own with a deep stack, never
//!   on a thread of the engine.
//! - When a grammar is complete, the model's end tokens are all that is allowed.
//!
//! llguidance catches panics of its own and, to keep their place out of the program's output,
//! chains a panic hook in front of the one that is installed: the one thing global here.

mod compiler;
mod constraint;
mod ebnf;
mod error;
mod options;
mod schema;
mod spec;
mod text;
mod vocabulary;

pub use compiler::{Grammar, GrammarCompiler};
pub use constraint::GrammarConstraint;
pub use error::GrammarError;
pub use options::GrammarOptions;
pub use spec::GrammarSpec;
