//! A tokenizer as the trie that masks are computed over.

use std::sync::Arc;

use engine_core::text::{TextError, Tokenizer};
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::error::GrammarError;

/// Longer tokens don't fit the trie. Grammars never allow them.
const LONGEST_TOKEN: usize = 1000;

/// The trie of a tokenizer's tokens, and the tokenizer for what grammars force.
pub(crate) fn token_environment(tokenizer: &Tokenizer) -> Result<TokEnv, GrammarError> {
    let failed = |reason: &str| GrammarError::Vocabulary { reason: reason.to_owned() };
    let size = u32::try_from(tokenizer.vocab_size()).map_err(|_| failed("too many tokens"))?;
    let eos = &tokenizer.special_tokens().eos;
    let eos: Vec<u32> = eos.iter().copied().filter(|&token| token < size).collect();
    let first = *eos.first().ok_or_else(|| failed("no token ends a text"))?;
    let words: Vec<Vec<u8>> = (0..size).map(|token| word(tokenizer, token)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&eos);
    Ok(Arc::new(Environment { trie, tokenizer: tokenizer.clone() }))
}

/// A token as the trie knows it: its bytes, a special one's name behind a byte that no text has,
/// or nothing for a token that no grammar can mean.
fn word(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    let marker = TokTrie::SPECIAL_TOKEN_MARKER;
    let word = if tokenizer.is_special(token) {
        let name = tokenizer.id_to_token(token).unwrap_or_default();
        [&[marker], name.as_bytes()].concat()
    } else {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        if bytes.first() == Some(&marker) { Vec::new() } else { bytes }
    };
    if word.len() > LONGEST_TOKEN { Vec::new() } else { word }
}

struct Environment {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl Environment {
    /// The tokens of a text that doesn't begin a prompt, or none if the tokenizer has no tokens
    /// that spell exactly this text.
    fn tokens(&self, text: &str) -> Option<Vec<u32>> {
        let spells = |tokens: &Vec<u32>| self.trie.decode(tokens) == text.as_bytes();
        let plain = |text: &str| -> Result<_, TextError> { self.tokenizer.encode_plain(text) };
        if let Some(tokens) = plain(text).ok().filter(spells) {
            return Some(tokens);
        }
        // Where a space is put in front of a text that begins, this one doesn't begin.
        let (before, behind) = (plain("\n").ok()?, plain(&format!("\n{text}")).ok()?);
        behind.strip_prefix(before.as_slice()).map(<[u32]>::to_vec).filter(spells)
    }
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokens(text).unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}
