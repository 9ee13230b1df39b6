//! What can go wrong between text and tokens.

use crate::clip;
use std::path::PathBuf;

use crate::weights::GgufError;

/// An error of [`crate::text`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file of the model could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A JSON file of the model is not what it should be.
    #[error("{path} is malformed: {reason}", reason = clip(reason))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The metadata of a GGUF file lack something, or have it in another type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A tokenizer definition (`tokenizer.json`, or the vocabulary of a GGUF file) contradicts
    /// itself or is incomplete.
    #[error("the tokenizer definition is invalid: {reason}", reason = clip(reason))]
    InvalidTokenizer {
        /// What is wrong with it.
        reason: String,
    },
    /// The GGUF file names a kind of tokenizer that is not supported.
    #[error("tokenizer model {model:?} is not supported (supported: \"gpt2\", \"llama\", \"gemma4\")", model = clip(model))]
    UnsupportedTokenizerModel {
        /// The value of `tokenizer.ggml.model`.
        model: String,
    },
    /// The GGUF file names a pre-tokenizer that is not supported.
    #[error("pre-tokenizer {pre:?} is not supported (supported: {supported})", pre = clip(pre))]
    UnsupportedPreTokenizer {
        /// The value of `tokenizer.ggml.pre`.
        pre: String,
        /// The names that are supported.
        supported: String,
    },
    /// The tokenizer turns tokens into text by a rule that is not supported.
    #[error("the tokenizer's decoder is not supported: {decoder}", decoder = clip(decoder))]
    UnsupportedDecoder {
        /// The decoder as the tokenizer definition writes it.
        decoder: String,
    },
    /// The tokenizer has tokens that the model has no embedding for.
    #[error(
        "the tokenizer has token ids up to {largest_id}, the model's vocabulary only {model_size} \
         entries"
    )]
    VocabularyMismatch {
        /// The largest token id of the tokenizer.
        largest_id: u32,
        /// The number of rows in the model's embedding.
        model_size: usize,
    },
    /// The tokenizer could not encode a text.
    #[error("cannot tokenize the text: {reason}", reason = clip(reason))]
    Encode {
        /// The tokenizer's message.
        reason: String,
    },
    /// A text has a run of white space so long that it can't be split reliably.
    #[error("the text has more than {limit} characters of white space in a row")]
    WhiteSpace {
        /// The longest run that is accepted.
        limit: usize,
    },
    /// A stop string is empty, so it would match everywhere.
    #[error("stop string {index} is empty")]
    EmptyStopString {
        /// Its position in the list.
        index: usize,
    },
    /// A chat template is not a valid template.
    #[error("the chat template has a syntax error{}: {reason}", at_line(*line), reason = clip(reason))]
    TemplateSyntax {
        /// The line, counted from 1, if it is known.
        line: Option<usize>,
        /// What is wrong there.
        reason: String,
    },
    /// A chat template failed on a conversation: it does what templates can't do, or the
    /// conversation lacks what it needs.
    #[error("the chat template failed{}: {reason}", at_line(*line), reason = clip(reason))]
    TemplateRender {
        /// The line, counted from 1, if it is known.
        line: Option<usize>,
        /// What went wrong there.
        reason: String,
    },
    /// A chat template refused a conversation, for instance because roles don't alternate.
    #[error("the chat template refuses the conversation: {message}", message = clip(message))]
    TemplateRefused {
        /// The template's own message.
        message: String,
    },
    /// A chat template is larger, or nests more deeply, than any that is meant well.
    #[error("the chat template has more than {limit} {what}")]
    TemplateTooLarge {
        /// What there are too many of.
        what: &'static str,
        /// The most that are accepted.
        limit: usize,
    },
    /// A chat template ran for too long, wrote too much, or made a value that is too large.
    #[error("the chat template was stopped: {limit}")]
    TemplateLimit {
        /// The limit that it met.
        limit: &'static str,
    },
    /// A model has several chat templates, but not one of this name.
    #[error("there is no chat template {name:?} (there are: {available})", name = clip(name))]
    UnknownTemplate {
        /// The name asked for.
        name: String,
        /// The names that there are.
        available: String,
    },
}

fn at_line(line: Option<usize>) -> String {
    line.map(|line| format!(" at line {line}")).unwrap_or_default()
}
