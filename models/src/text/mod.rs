//! Text on both sides of the model: prompts into tokens, tokens back into text.
//!
//! - [`Tokenizer`] turns text into tokens. It is read from a Hugging Face `tokenizer.json` or
//!   built from the vocabulary of a GGUF file ([`GgufVocabulary`]).
//! - [`ChatTemplate`] renders a conversation into the text that a chat model continues.
//! - [`IncrementalDetokenizer`] turns a stream of tokens into a stream of text, and never emits
//!   half a character.
//! - [`StopStrings`] ends a stream at a string, and never emits a part of it.
//!
//! Nothing here knows about devices, threads or requests. Whatever a file or a caller can get
//! wrong is a [`TextError`].

mod chat_message;
mod chat_template;
mod detokenizer;
mod error;
mod gguf_pre_tokenizer;
mod gguf_vocabulary;
mod parts;
mod python_json;
mod special_tokens;
mod stop_strings;
mod template_environment;
mod template_source;
mod template_tokens;
mod token_table;
mod tokenizer;

pub use chat_message::ChatMessage;
pub use chat_template::{ChatOptions, ChatTemplate};
pub use detokenizer::IncrementalDetokenizer;
pub use error::TextError;
pub use gguf_vocabulary::GgufVocabulary;
pub use parts::TextPart;
pub use special_tokens::SpecialTokens;
pub use stop_strings::{StopMatcher, StopScan, StopStrings};
pub use tokenizer::Tokenizer;
