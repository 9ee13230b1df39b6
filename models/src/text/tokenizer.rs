//! Text into tokens and back.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::token_table::TokenTable;
use super::{GgufVocabulary, IncrementalDetokenizer, SpecialTokens, TextError, TextPart};
use crate::files::read_text;
use crate::model::ModelFiles;
use crate::model::config::{MAX_END_TOKENS, json::object};

/// How long a run of white space may be, in characters.
///
/// The patterns that split a text look ahead behind white space, and the regular expression engine
/// gives up at a million steps back; `tokenizers` then takes all the rest of the text for one piece
/// and says nothing. A run of 900,000 was still split right, one of 1,100,000 was not.
const MAX_WHITE_SPACE: usize = 500_000;

/// A model's tokenizer: text into tokens and back.
///
/// Cloning is cheap; clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    table: Arc<TokenTable>,
    special: Arc<SpecialTokens>,
    /// One more than the largest id of those that are not added to the vocabulary.
    own_size: usize,
    /// Put in front of a text that begins, where the definition doesn't do so itself.
    begins_with: Option<u32>,
}

/// The texts of control tokens that end a turn in one family of models or another. Not all files
/// say so; llama.cpp goes by these names as well.
const TURN_ENDS: [&str; 15] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
];

impl Tokenizer {
    /// Reads the tokenizer of an opened model, and checks it against the number of rows in the
    /// model's embedding.
    ///
    /// # Errors
    ///
    /// Those of [`from_directory`](Self::from_directory) or of [`from_gguf`](Self::from_gguf) and
    /// [`GgufVocabulary::from_metadata`], and of [`check_vocabulary`](Self::check_vocabulary).
    pub fn from_model(files: &ModelFiles, vocab_size: usize) -> Result<Self, TextError> {
        let tokenizer = match files {
            ModelFiles::HuggingFace { directory } => Self::from_directory(directory)?,
            ModelFiles::Gguf { file } => {
                Self::from_gguf(&GgufVocabulary::from_metadata(file.metadata())?)?
            }
        };
        tokenizer.check_vocabulary(vocab_size)?;
        Ok(tokenizer)
    }

    /// Reads the tokenizer of a Hugging Face model directory: `tokenizer.json`, the names of the
    /// special tokens from `tokenizer_config.json`, and further tokens that end a turn from
    /// `generation_config.json`, of which the first 1,024 count. Only the first of the three must exist.
    ///
    /// # Errors
    ///
    /// [`TextError`] if a file cannot be read, is malformed or is not supported.
    pub fn from_directory(directory: &Path) -> Result<Self, TextError> {
        let path = directory.join("tokenizer.json");
        let definition =
            read_text(&path).map_err(|source| TextError::Read { path: path.clone(), source })?;
        let tokenizer = Self::from_json(definition.as_bytes())?;
        let config = read_optional_object(&directory.join("tokenizer_config.json"))?;
        let mut special =
            SpecialTokens::from_tokenizer_config(&config, |text| tokenizer.inner.token_to_id(text));
        let generation = read_optional_object(&directory.join("generation_config.json"))?;
        match generation.get("eos_token_id") {
            Some(Value::Array(ids)) => {
                let ids = ids.iter().filter_map(token_id).take(MAX_END_TOKENS);
                ids.for_each(|id| special.add_eos(id));
            }
            Some(id) => token_id(id).into_iter().for_each(|id| special.add_eos(id)),
            None => {}
        }
        tokenizer.add_turn_ends(&mut special);
        // A promise of `tokenizer_config.json` that not every definition keeps; the GGUF files of
        // the same models repeat it.
        let wants_begin = config.get("add_bos_token").and_then(Value::as_bool) == Some(true);
        let begins = tokenizer.encode("", true)?.first().copied();
        let mut tokenizer = tokenizer.with_special_tokens(special);
        tokenizer.begins_with =
            tokenizer.special.bos.filter(|bos| wants_begin && begins != Some(*bos));
        Ok(tokenizer)
    }

    /// Builds a tokenizer from the contents of a `tokenizer.json`. Such a file does not name the
    /// special tokens: see [`with_special_tokens`](Self::with_special_tokens).
    ///
    /// # Errors
    ///
    /// [`TextError::InvalidTokenizer`] and [`TextError::UnsupportedDecoder`].
    pub fn from_json(definition: &[u8]) -> Result<Self, TextError> {
        let mut inner =
            guarded(|| tokenizers::Tokenizer::from_bytes(definition)).map_err(invalid)?;
        // A training script's settings, left in the file; they would cut or pad prompts.
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);
        let decoder = serde_json::to_value(inner.get_decoder()).map_err(invalid)?;
        let special = |text: &str| inner.get_added_vocabulary().is_special_token(text);
        let tokens = inner.get_vocab(true).into_iter().map(|(text, id)| {
            let special = special(&text);
            (text, id, special)
        });
        let table = TokenTable::new(tokens, &decoder)?;
        let added = inner.get_added_vocabulary().get_vocab();
        let own = inner.get_vocab(true).into_iter().filter(|(text, _)| !added.contains_key(text));
        let own_size = own.map(|(_, id)| id as usize + 1).max().unwrap_or(0);
        Ok(Self {
            inner: Arc::new(inner),
            table: Arc::new(table),
            special: Arc::new(SpecialTokens::default()),
            own_size,
            begins_with: None,
        })
    }

    /// Builds a tokenizer from the vocabulary of a GGUF file.
    ///
    /// # Errors
    ///
    /// [`TextError::UnsupportedTokenizerModel`], [`TextError::UnsupportedPreTokenizer`] and
    /// [`TextError::InvalidTokenizer`].
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self, TextError> {
        let definition = vocabulary.to_tokenizer_json()?;
        let definition = serde_json::to_vec(&definition).map_err(invalid)?;
        let is_known = |id: &u32| (*id as usize) < vocabulary.tokens.len();
        let bos = vocabulary.bos.filter(is_known);
        let mut special = SpecialTokens { bos, ..SpecialTokens::default() };
        vocabulary.eos.iter().filter(|id| is_known(id)).for_each(|id| special.add_eos(*id));
        let named = [
            ("bos_token", vocabulary.bos),
            ("eos_token", vocabulary.eos.first().copied()),
            ("pad_token", vocabulary.padding),
            ("unk_token", vocabulary.unknown),
        ];
        for (name, id) in named {
            if let Some(text) = id.and_then(|id| vocabulary.tokens.get(id as usize)) {
                special.named.insert(name.to_owned(), text.clone());
            }
        }
        let tokenizer = Self::from_json(&definition)?;
        tokenizer.add_turn_ends(&mut special);
        Ok(tokenizer.with_special_tokens(special))
    }

    /// Adds the control tokens that end a turn by their names.
    fn add_turn_ends(&self, special: &mut SpecialTokens) {
        let id = |text: &str| self.token_to_id(text).filter(|id| self.is_special(*id));
        // Harmony ends its messages with one token, and its turns with others.
        let is_harmony = id("<|return|>").is_some() && id("<|call|>").is_some();
        let ends = TURN_ENDS.into_iter().filter(|text| !(is_harmony && *text == "<|end|>"));
        ends.filter_map(id).for_each(|id| special.add_eos(id));
    }

    /// The same tokenizer with these special tokens.
    #[must_use]
    pub fn with_special_tokens(mut self, special: SpecialTokens) -> Self {
        self.special = Arc::new(special);
        self
    }

    /// Turns a text into tokens. Special tokens that are written out in the text, as a chat
    /// template writes them, are recognised. `add_special_tokens` adds what the tokenizer
    /// definition puts around a text, usually the token that begins it; text from a chat template
    /// already has it.
    ///
    /// # Errors
    ///
    /// [`TextError::WhiteSpace`] for an absurdly long run of white space, and
    /// [`TextError::Encode`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        if longest_white_space(text) > MAX_WHITE_SPACE {
            return Err(TextError::WhiteSpace { limit: MAX_WHITE_SPACE });
        }
        let encoding = guarded(|| self.inner.encode_fast(text, add_special_tokens))
            .map_err(|reason| TextError::Encode { reason })?;
        let begin = self.begins_with.filter(|_| add_special_tokens);
        Ok(begin.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Turns a text into tokens in which no control token is recognised: `<|im_end|>` is text
    /// like any other.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TextError> {
        if longest_white_space(text) > MAX_WHITE_SPACE {
            return Err(TextError::WhiteSpace { limit: MAX_WHITE_SPACE });
        }
        // What the crate does with the text between two added tokens.
        let encoding = guarded(|| {
            let mut normalized = NormalizedString::from(text);
            if let Some(normalizer) = self.inner.get_normalizer() {
                normalizer.normalize(&mut normalized)?;
            }
            let mut pieces = PreTokenizedString::from(normalized);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
            pieces.into_encoding(None, 0, OffsetType::Byte)
        });
        let encoding = encoding.map_err(|reason| TextError::Encode { reason })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Turns the parts of a prompt into tokens: [plainly](Self::encode_plain) where a part is
    /// plain, else as [`encode`](Self::encode) does without adding tokens. A part that isn't the
    /// first gets no space in front where the vocabulary puts one in front of a text.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_parts(&self, parts: &[TextPart]) -> Result<Vec<u32>, TextError> {
        let encode = |text: &str, is_plain: bool| match is_plain {
            true => self.encode_plain(text),
            false => self.encode(text, false),
        };
        let mut tokens = Vec::new();
        let mut line_break = None;
        for (number, TextPart { text, is_plain }) in parts.iter().enumerate() {
            if number == 0 {
                tokens = encode(text, *is_plain)?;
                continue;
            }
            // After a line break a text doesn't begin; the line break is taken off again.
            if line_break.is_none() {
                line_break = Some(self.encode("\n", false)?);
            }
            let before = line_break.as_deref().unwrap_or_default();
            let behind = encode(&format!("\n{text}"), *is_plain)?;
            match behind.strip_prefix(before) {
                Some(part) => tokens.extend_from_slice(part),
                None => tokens.extend(encode(text, *is_plain)?),
            }
        }
        Ok(tokens)
    }

    /// The texts of all special tokens.
    pub(super) fn control_tokens(&self) -> impl Iterator<Item = &str> {
        let ids = 0..u32::try_from(self.vocab_size()).unwrap_or(u32::MAX);
        ids.filter(|id| self.is_special(*id)).filter_map(|id| self.id_to_token(id))
    }

    /// Turns tokens into text, as [`IncrementalDetokenizer`] does. Ids outside the vocabulary
    /// contribute nothing.
    #[must_use]
    pub fn decode(&self, tokens: &[u32], skip_special_tokens: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special_tokens);
        let mut text = String::new();
        for token in tokens {
            text.push_str(detokenizer.push(*token));
        }
        text.push_str(detokenizer.finish());
        text
    }

    /// A detokenizer for one stream of tokens.
    #[must_use]
    pub fn detokenizer(&self, skip_special_tokens: bool) -> IncrementalDetokenizer {
        IncrementalDetokenizer::new(Arc::clone(&self.table), skip_special_tokens)
    }

    /// The token as the vocabulary writes it (`Ġthe` for " the"), or `None` outside the
    /// vocabulary.
    #[must_use]
    pub fn id_to_token(&self, token: u32) -> Option<&str> {
        self.table.text(token)
    }

    /// The id of a token as the vocabulary writes it.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that the token stands for within a text, not necessarily whole characters; or
    /// `None` outside the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, token: u32) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.table.append_bytes(token, false, &mut bytes).then_some(bytes)
    }

    /// Whether the token is special, so that it can be left out of text.
    #[must_use]
    pub fn is_special(&self, token: u32) -> bool {
        self.table.is_special(token)
    }

    /// One more than the largest token id.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// The tokens that begin and end a text, and other named ones.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Checks that a model with `model_size` rows in its embedding has one for every token of the
    /// vocabulary itself. It may have more, as embeddings are often padded; and tokens that were
    /// added to the vocabulary may have none (Gemma 3's `<image_soft_token>`, a `[PAD]` of Llama
    /// 2). Those are never sampled, and an error in a prompt.
    ///
    /// # Errors
    ///
    /// [`TextError::VocabularyMismatch`].
    pub fn check_vocabulary(&self, model_size: usize) -> Result<(), TextError> {
        if self.own_size <= model_size {
            return Ok(());
        }
        let largest_id = u32::try_from(self.own_size - 1).unwrap_or(u32::MAX);
        Err(TextError::VocabularyMismatch { largest_id, model_size })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

/// The length of the longest run of white space, in characters.
fn longest_white_space(text: &str) -> usize {
    text.split(|character: char| !character.is_whitespace())
        .map(|run| run.chars().count())
        .max()
        .unwrap_or(0)
}

/// Runs code of the `tokenizers` crate. A definition that is well-formed but contradicts itself
/// makes some of that code panic, while reading it or only at a text; as the definition comes
/// from a file, that must be an error. Nothing is left half-changed: behind the shared reference
/// there is only a cache, which gives up on a poisoned lock.
fn guarded<T>(action: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(action)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "the definition contradicts itself".to_owned())),
    }
}

fn invalid(error: impl fmt::Display) -> TextError {
    TextError::InvalidTokenizer { reason: error.to_string() }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The JSON object in a file, or an empty one if there is no such file.
pub(super) fn read_optional_object(path: &Path) -> Result<Map<String, Value>, TextError> {
    let json = match read_text(path) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(source) => return Err(TextError::Read { path: path.to_owned(), source }),
    };
    object(&json)
        .map_err(|error| TextError::Malformed { path: path.to_owned(), reason: error.to_string() })
}
