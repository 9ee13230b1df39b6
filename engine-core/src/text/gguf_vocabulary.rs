//! A tokenizer from the vocabulary of a GGUF file.
//!
//! GGUF stores tokens and merges, but of the pre-tokenizer only a name. What a name means is
//! defined by the Hugging Face tokenizers of the models that carry it; GGUF readers reproduce
//! those, and so does the table in [`split_of`].

use std::collections::HashSet;

use serde_json::{Value, json};

use super::TextError;
use crate::weights::Metadata;

/// The tokenizer part of a GGUF file's metadata, as stored.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: the algorithm. Only `gpt2`, byte-level BPE, is supported.
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the pre-tokenizer. Files without it predate the key,
    /// and mean `default`.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`: the text of each token, in the byte alphabet.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`: what each token is: 1 normal, 3 control, 4 user-defined, ...
    /// Empty if the file does not say; then all are normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: pairs of tokens with a space between, in order of rank.
    pub merges: Vec<String>,
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

/// Token types of GGUF that are found in a text before it is split and merged.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// GPT-2's regular expression: contractions, words, numbers and punctuation, each with one
/// leading space, and runs of white space without their last character if a word follows.
const GPT2_SPLIT: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

impl GgufVocabulary {
    /// Reads the vocabulary out of a file's metadata. What the lists hold is checked when a
    /// [`Tokenizer`](super::Tokenizer) is built from them.
    ///
    /// # Errors
    ///
    /// [`TextError::Gguf`] if `tokenizer.ggml.model` or `tokenizer.ggml.tokens` is missing, or
    /// if a key has another type than it should.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TextError> {
        let id = |key: &str| -> Result<Option<u32>, TextError> {
            match metadata.unsigned(key)? {
                None => Ok(None),
                Some(id) => u32::try_from(id).map(Some).map_err(|_| TextError::InvalidTokenizer {
                    reason: format!("{key} is the absurd id {id}"),
                }),
            }
        };
        let ends = ["eos", "eot", "eom"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
        let ends = ends.iter().map(|key| id(key)).collect::<Result<Vec<_>, _>>()?;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        // A type that does not fit is none of those that matter.
        let narrow = |kind: i128| i32::try_from(kind).unwrap_or(0);
        let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        Ok(Self {
            model: metadata.required("tokenizer.ggml.model", Metadata::string)?.to_owned(),
            pre: owned(metadata.string("tokenizer.ggml.pre")?),
            tokens: metadata.required("tokenizer.ggml.tokens", Metadata::strings)?.to_vec(),
            token_types: types.into_iter().map(narrow).collect(),
            merges: metadata.strings("tokenizer.ggml.merges")?.unwrap_or_default().to_vec(),
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: ends.into_iter().flatten().collect(),
            padding: id("tokenizer.ggml.padding_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
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
        if self.model != "gpt2" {
            return Err(TextError::UnsupportedTokenizerModel { model: self.model.clone() });
        }
        let pre = self.pre.as_deref().unwrap_or("default");
        let family = split_of(pre).ok_or_else(|| TextError::UnsupportedPreTokenizer {
            pre: pre.to_owned(),
            supported: PRE_TOKENIZERS.join(", "),
        })?;
        self.check()?;

        let vocabulary: serde_json::Map<String, Value> =
            self.tokens.iter().cloned().zip((0_u32..).map(Value::from)).collect();
        let mut steps = family.steps;
        steps.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false,
        }));
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(),
            "normalizer": family.normalizer,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
            "post_processor": self.post_processor(family.add_bos)?,
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": false,
            },
            "model": {
                "type": "BPE",
                "vocab": vocabulary,
                "merges": self.merges,
                "ignore_merges": family.ignore_merges,
            },
        }))
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
        let added = self.token_types.iter().zip(&self.tokens).zip(0_u32..);
        added
            .filter(|((kind, token), _)| {
                matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty()
            })
            .map(|((kind, token), id)| {
                json!({
                    "id": id, "content": token, "special": *kind == CONTROL,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
            .collect()
    }

    /// Puts `bos` in front and `eos` behind, where the file or the family asks for it.
    fn post_processor(&self, family_adds_bos: bool) -> Result<Value, TextError> {
        let named = |id: u32| {
            self.tokens.get(id as usize).map(|token| (token, id)).ok_or_else(|| {
                TextError::InvalidTokenizer {
                    reason: format!("special token {id} is outside the vocabulary"),
                }
            })
        };
        let all = self.bos.iter().chain(&self.eos).chain(&self.padding).chain(&self.unknown);
        for id in all {
            named(*id)?;
        }
        let bos = self.bos.filter(|_| self.add_bos.unwrap_or(family_adds_bos));
        let eos = self.eos.first().copied().filter(|_| self.add_eos);
        let (mut single, mut special) = (Vec::new(), serde_json::Map::new());
        let mut place = |id: Option<u32>, single: &mut Vec<Value>| -> Result<(), TextError> {
            if let Some(id) = id {
                let (token, id) = named(id)?;
                single.push(json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
                special
                    .insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
            }
            Ok(())
        };
        place(bos, &mut single)?;
        single.push(json!({ "Sequence": { "id": "A", "type_id": 0 } }));
        place(eos, &mut single)?;
        if special.is_empty() {
            return Ok(Value::Null);
        }
        Ok(json!({
            "type": "TemplateProcessing", "single": single, "special_tokens": special,
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 0 } },
            ],
        }))
    }
}

/// The names that [`split_of`] knows.
const PRE_TOKENIZERS: [&str; 10] = [
    "default",
    "gpt-2",
    "smollm",
    "starcoder",
    "refact",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "qwen2",
    "deepseek-r1-qwen",
];

/// What the name of a pre-tokenizer stands for.
struct Family {
    normalizer: Value,
    /// How a text is split before each piece is put into the byte alphabet and merged.
    steps: Vec<Value>,
    /// A piece that is a token as a whole is not merged from its bytes.
    ignore_merges: bool,
    /// Prompts begin with `bos` where the file does not say.
    add_bos: bool,
}

fn split_of(pre: &str) -> Option<Family> {
    let plain =
        |steps| Family { normalizer: Value::Null, steps, ignore_merges: false, add_bos: false };
    Some(match pre {
        "gpt-2" => plain(vec![split(GPT2_SPLIT)]),
        // Every digit is a piece of its own, then as GPT-2.
        "smollm" | "starcoder" | "refact" => {
            plain(vec![json!({ "type": "Digits", "individual_digits": true }), split(GPT2_SPLIT)])
        }
        "llama-bpe" | "llama-v3" | "llama3" => Family {
            ignore_merges: true,
            add_bos: true,
            ..plain(vec![split(&word_split(r"\p{N}{1,3}"))])
        },
        "qwen2" => Family {
            normalizer: json!({ "type": "NFC" }),
            ..plain(vec![split(&word_split(r"\p{N}"))])
        },
        "deepseek-r1-qwen" => plain(vec![split(&word_split(r"\p{N}"))]),
        // What GGUF readers have always done with files that name nothing: punctuation apart,
        // then as GPT-2, then numbers apart and cut into threes.
        "default" => plain(vec![
            split(r"[\p{P}\$\+<=>\^~\|]+"),
            split(GPT2_SPLIT),
            split(r"\p{N}+"),
            split(r"[0-9][0-9][0-9]"),
        ]),
        _ => return None,
    })
}

/// The split of Llama 3 and its descendants: like GPT-2's, but contractions in any case, words
/// with any one leading character that is not a letter or a digit, numbers as given, and line
/// breaks together with what stands before them.
fn word_split(number: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false,
    })
}
