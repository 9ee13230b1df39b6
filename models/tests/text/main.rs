//! Text into tokens, tokens into text, and where text ends: the public behaviour of
//! `models::text`.

mod chat_template;
mod detokenizer;
mod fixtures;
mod hostile_templates;
mod stop_strings;
mod tokenizer;
mod vocabularies;
