//! A tokenizer from the vocabulary of a GGUF file.
//!
//! GGUF stores tokens with merges, or as SentencePiece does with scores; of the pre-tokenizer it
//! stores only a name.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::TextError;
use super::gguf_pre_tokenizer::{PRE_TOKENIZERS, family_of};
use crate::weights::Metadata;
use crate::weights::gguf::{Array, Value as Stored};

/// The tokenizer part of a GGUF file's metadata, as stored.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: the algorithm. `gpt2` is byte-level BPE, `llama` is SentencePiece's
    /// BPE by scores, `gemma4` is BPE by merges over SentencePiece's tokens.
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the pre-tokenizer. Files without it predate the key,
    /// and mean `default`.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`: the text of each token, in the byte alphabet or, in `llama` and
    /// `gemma4`, with U+2581 for a space.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`: what each token is: 1 normal, 3 control, 4 user-defined, ...
    /// Empty if the file does not say; then all are normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: pairs of tokens with a space between, in order of rank.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.scores`: of two adjacent pairs the one that makes the token of the higher
    /// score is merged first. Of `llama` only.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.add_space_prefix`: whether a text gets a space in front, as it does where
    /// the file does not say. Of `llama` only.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`, and with it `eot_token_id` and `eom_token_id`.
    pub eos: Vec<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub padding: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`: whether a prompt begins with `bos`. Where the file does
    /// not say, the pre-tokenizer's family decides.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`: whether an encoded text ends with the first of `eos`.
    pub add_eos: bool,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// The token type of GGUF for text like any other.
const NORMAL: i32 = 1;

/// The token type of GGUF for what no other token stands for.
const UNKNOWN: i32 = 2;

/// Token types of GGUF that are found in a text before it is split and merged.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// The longest token of a SentencePiece model, in bytes: looking for the ways to put one together takes
/// time with the square of its length. Gemma's longest has 93, Llama 2's 48.
const MAX_PIECE_BYTES: usize = 1_024;

/// How many bytes the merges of a SentencePiece model may have in all, which its tokens may give the
/// square of their own. Gemma's 580,604 merges have 5.2 MB.
const MAX_MERGE_BYTES: usize = 32 << 20;

impl GgufVocabulary {
    /// Reads the vocabulary out of a file's metadata. What the lists hold is checked when a
    /// [`Tokenizer`](super::Tokenizer) is built from them. A special token that is not in the
    /// vocabulary is dropped with a warning: some files write -1 for none.
    ///
    /// # Errors
    ///
    /// [`TextError::Gguf`] if `tokenizer.ggml.model` or `tokenizer.ggml.tokens` is missing, or
    /// if a key has another type than it should.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TextError> {
        let tokens = metadata.required("tokenizer.ggml.tokens", Metadata::strings)?;
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = metadata.get(&key)?.as_integer();
            let known = id.and_then(|id| u32::try_from(id).ok());
            let known = known.filter(|id| (*id as usize) < tokens.len());
            if known.is_none() {
                tracing::warn!("`{key}` is no id of the vocabulary, and is ignored");
            }
            known
        };
        let scores = match metadata.get("tokenizer.ggml.scores") {
            Some(Stored::Array(Array::F32(scores))) => scores.clone(),
            _ => Vec::new(),
        };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        // A type that does not fit is none of those that matter.
        let narrow = |kind: i128| i32::try_from(kind).unwrap_or(0);
        let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        Ok(Self {
            model: metadata.required("tokenizer.ggml.model", Metadata::string)?.to_owned(),
            pre: owned(metadata.string("tokenizer.ggml.pre")?),
            tokens: tokens.iter().enumerate().map(named).collect(),
            token_types: types.into_iter().map(narrow).collect(),
            merges: metadata.strings("tokenizer.ggml.merges")?.unwrap_or_default().to_vec(),
            scores,
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
            bos: id("bos"),
            eos: ["eos", "eot", "eom"].into_iter().filter_map(id).collect(),
            padding: id("padding"),
            unknown: id("unknown"),
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            chat_template: owned(metadata.string("tokenizer.chat_template")?),
        })
    }

    /// The same tokenizer in the form of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`TextError`] if the model or the pre-tokenizer is not supported, or if the lists
    /// contradict each other.
    pub(crate) fn to_tokenizer_json(&self) -> Result<Value, TextError> {
        self.check()?;
        match self.model.as_str() {
            "gpt2" => self.byte_level(),
            "llama" => self.with_spaces_escaped()?.by_scores(),
            "gemma4" => self.by_merges_of_pieces(),
            _ => Err(TextError::UnsupportedTokenizerModel { model: self.model.clone() }),
        }
    }

    /// Byte-level BPE.
    fn byte_level(&self) -> Result<Value, TextError> {
        let pre = self.pre.as_deref().unwrap_or("default");
        let family = family_of(pre).ok_or_else(|| TextError::UnsupportedPreTokenizer {
            pre: pre.to_owned(),
            supported: PRE_TOKENIZERS.join(", "),
        })?;
        self.check_merges()?;
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false,
        });
        let mut steps = family.steps;
        steps.push(byte_level.clone());
        let model = json!({ "merges": self.merges, "ignore_merges": family.ignore_merges });
        Ok(self.definition(
            family.normalizer,
            json!({ "type": "Sequence", "pretokenizers": steps }),
            byte_level,
            family.add_bos,
            model,
        ))
    }

    /// SentencePiece's BPE: the pair that makes the token of the highest score first. Every way to
    /// put a token together from two others is a merge, in order of that token's score; so
    /// Hugging Face's converters make a `tokenizer.json` of such a model.
    fn by_scores(&self) -> Result<Value, TextError> {
        if self.scores.len() != self.tokens.len() {
            return Err(TextError::InvalidTokenizer {
                reason: format!("{} tokens but {} scores", self.tokens.len(), self.scores.len()),
            });
        }
        let invalid = |reason| Err(TextError::InvalidTokenizer { reason });
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let (mut merges, mut merge_bytes) = (Vec::new(), 0_usize);
        for (whole, token) in self.tokens.iter().enumerate() {
            if !matches!(self.kind(whole), NORMAL | USER_DEFINED) {
                continue;
            }
            let length = token.len();
            if length > MAX_PIECE_BYTES {
                return invalid(format!(
                    "token {whole} has {length} bytes, more than {MAX_PIECE_BYTES}"
                ));
            }
            let mut ways: Vec<_> = token
                .char_indices()
                .skip(1)
                .filter_map(|(at, _)| {
                    let (left, right) = token.split_at(at);
                    Some((*ids.get(left)?, *ids.get(right)?, left, right))
                })
                .collect();
            merge_bytes = merge_bytes.saturating_add(ways.len().saturating_mul(length));
            if merge_bytes > MAX_MERGE_BYTES {
                return invalid(format!(
                    "the merges that its tokens give have more than {MAX_MERGE_BYTES} bytes"
                ));
            }
            ways.sort_unstable();
            merges.extend(ways.into_iter().map(|(_, _, left, right)| (whole, left, right)));
        }
        let length = |text: &str| text.chars().count();
        // SentencePiece finds the tokens that its user defined before it merges any pair; the scores
        // that files give these tokens mean nothing.
        let score = |id: usize| match self.kind(id) {
            USER_DEFINED => f32::INFINITY,
            _ => self.scores[id],
        };
        merges.sort_by(|(a, a_left, a_right), (b, b_left, b_right)| {
            score(*b)
                .total_cmp(&score(*a))
                .then_with(|| length(b_left).cmp(&length(a_left)))
                .then_with(|| length(b_right).cmp(&length(a_right)))
        });
        let merges: Vec<Value> =
            merges.into_iter().map(|(_, left, right)| json!([left, right])).collect();
        let has_prefix = self.add_space_prefix.unwrap_or(true);
        let escape = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let mut normalizers = vec![escape];
        if has_prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        }
        Ok(self.definition(
            json!({ "type": "Sequence", "normalizers": normalizers }),
            Value::Null,
            pieces_decoder(has_prefix),
            true,
            self.piece_model(merges),
        ))
    }

    /// Texts are escaped before tokens are looked for, so tokens must be as well: converters undo the
    /// escape in tokens that the user defined, such as Gemma's runs of spaces.
    fn with_spaces_escaped(&self) -> Result<Self, TextError> {
        let tokens = self.tokens.iter().map(|token| token.replace(' ', "▁")).collect();
        let escaped = Self { tokens, ..self.clone() };
        escaped.check()?;
        Ok(escaped)
    }

    /// BPE over SentencePiece's tokens, where line breaks stand apart.
    fn by_merges_of_pieces(&self) -> Result<Value, TextError> {
        self.check_merges()?;
        Ok(self.definition(
            json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }),
            json!({
                "type": "Split", "pattern": { "Regex": r"\n+" }, "behavior": "Isolated",
                "invert": false,
            }),
            pieces_decoder(false),
            true,
            self.piece_model(self.merges.iter().cloned().map(Value::from).collect()),
        ))
    }

    fn piece_model(&self, merges: Vec<Value>) -> Value {
        let unknown = self.unknown.and_then(|id| self.tokens.get(id as usize)).cloned();
        let unknown = unknown.or_else(|| {
            let unknown = (0..self.tokens.len()).find(|id| self.kind(*id) == UNKNOWN);
            unknown.map(|id| self.tokens[id].clone())
        });
        json!({
            "merges": merges, "ignore_merges": false, "byte_fallback": true, "fuse_unk": true,
            "unk_token": unknown,
        })
    }

    /// The parts of a `tokenizer.json` put together.
    fn definition(
        &self,
        normalizer: Value,
        pre_tokenizer: Value,
        decoder: Value,
        family_adds_bos: bool,
        mut model: Value,
    ) -> Value {
        let vocabulary: serde_json::Map<String, Value> =
            self.tokens.iter().cloned().zip((0_u32..).map(Value::from)).collect();
        model["type"] = "BPE".into();
        model["vocab"] = vocabulary.into();
        json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(family_adds_bos),
            "decoder": decoder,
            "model": model,
        })
    }

    fn kind(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(NORMAL)
    }

    /// What the `tokenizers` crate would find wrong only by a panic, a vague message or not at
    /// all.
    fn check(&self) -> Result<(), TextError> {
        let invalid = |reason| Err(TextError::InvalidTokenizer { reason });
        if self.tokens.is_empty() {
            return invalid("it has no tokens".to_owned());
        }
        if !self.token_types.is_empty() && self.token_types.len() != self.tokens.len() {
            return invalid(format!(
                "{} tokens but {} token types",
                self.tokens.len(),
                self.token_types.len()
            ));
        }
        let mut seen = HashSet::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if !seen.insert(token.as_str()) {
                return invalid(format!("token {id} ({token:?}) occurs twice"));
            }
        }
        Ok(())
    }

    fn check_merges(&self) -> Result<(), TextError> {
        let invalid = |reason| Err(TextError::InvalidTokenizer { reason });
        if self.merges.is_empty() {
            return invalid("it has no merges, by which its tokens are made".to_owned());
        }
        let seen: HashSet<&str> = self.tokens.iter().map(String::as_str).collect();
        for (rank, merge) in self.merges.iter().enumerate() {
            let known = merge.split_once(' ').is_some_and(|(left, right)| {
                seen.contains(left)
                    && seen.contains(right)
                    && seen.contains(format!("{left}{right}").as_str())
            });
            if !known {
                return invalid(format!(
                    "merge {rank} ({merge:?}) is not a pair of tokens that make a token"
                ));
            }
        }
        Ok(())
    }

    fn added_tokens(&self) -> Vec<Value> {
        // SentencePiece's unknown token is not text either.
        let is_unknown = |kind| self.model == "llama" && kind == UNKNOWN;
        let added = self.token_types.iter().zip(&self.tokens).zip(0_u32..);
        added
            .filter(|((kind, _), _)| matches!(**kind, CONTROL | USER_DEFINED) || is_unknown(**kind))
            .map(|((kind, token), id)| {
                json!({
                    "id": id, "content": token, "special": *kind != USER_DEFINED,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
            .collect()
    }

    /// Puts `bos` in front and `eos` behind, where the file or the family asks for it.
    fn post_processor(&self, family_adds_bos: bool) -> Value {
        let named = |id: u32| self.tokens.get(id as usize).map(|token| (token, id));
        let bos = self.bos.filter(|_| self.add_bos.unwrap_or(family_adds_bos));
        let eos = self.eos.first().copied().filter(|_| self.add_eos);
        let (mut single, mut special) = (Vec::new(), serde_json::Map::new());
        let mut place = |id: Option<u32>, single: &mut Vec<Value>| {
            if let Some((token, id)) = id.and_then(named) {
                single.push(json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
                special
                    .insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
            }
        };
        place(bos, &mut single);
        single.push(json!({ "Sequence": { "id": "A", "type_id": 0 } }));
        place(eos, &mut single);
        if special.is_empty() {
            return Value::Null;
        }
        json!({
            "type": "TemplateProcessing", "single": single, "special_tokens": special,
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 0 } },
            ],
        })
    }
}

/// The token's text. Some files have tokens without, which would all be one.
fn named((id, token): (usize, &String)) -> String {
    if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() }
}

/// How SentencePiece's tokens become text; with a prefix, the first space was put there.
fn pieces_decoder(has_prefix: bool) -> Value {
    let mut steps = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if has_prefix {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": steps })
}
