//! Tokens into text, one at a time.

use std::fmt;
use std::sync::Arc;

use super::token_table::TokenTable;

/// Turns a stream of tokens into a stream of text.
///
/// A character may be spread over several tokens. Its bytes are held back until it is whole, so
/// a delta is never half a character; bytes that can no longer become a character turn into
/// U+FFFD, one for each maximal ill-formed subsequence, as the Unicode standard recommends and
/// [`String::from_utf8_lossy`] does. At most three bytes are ever held back, and a token costs
/// time proportional to its own text.
///
/// The deltas, with that of [`finish`](Self::finish), concatenate to exactly what
/// [`Tokenizer::decode`](super::Tokenizer::decode) makes of the whole list.
///
/// The first token pushed is the beginning of the text, where SentencePiece vocabularies drop a
/// leading space. To continue a text instead, name its tokens
/// ([`continue_after`](Self::continue_after)).
#[derive(Clone)]
pub struct IncrementalDetokenizer {
    table: Arc<TokenTable>,
    skip_special_tokens: bool,
    /// Nothing has been pushed yet that contributes to the text.
    first: bool,
    /// How many leading characters may still be dropped.
    strip: Option<(char, usize)>,
    /// The beginning of a character, after the bytes of the token at hand.
    held: Vec<u8>,
    /// How many of the held bytes belong to the text that is continued.
    foreign: usize,
    delta: String,
}

impl IncrementalDetokenizer {
    pub(crate) fn new(table: Arc<TokenTable>, skip_special_tokens: bool) -> Self {
        let strip = table.leading_strip();
        Self {
            table,
            skip_special_tokens,
            first: true,
            strip,
            held: Vec::new(),
            foreign: 0,
            delta: String::new(),
        }
    }

    /// Makes what is pushed next the continuation of a text: no space is dropped, and a character
    /// that `tokens`, the end of that text or all of it, leaves incomplete may be completed. If
    /// it is not, nothing of it is shown.
    pub fn continue_after(&mut self, tokens: &[u32]) {
        /// Tokens that may share a character: its bytes are four at most, the last not there yet.
        const REACH: usize = 3;
        let contributes = |token: &&u32| {
            let is_skipped = self.skip_special_tokens && self.table.is_special(**token);
            !is_skipped && self.table.text(**token).is_some_and(|text| !text.is_empty())
        };
        let mut tail = [0; REACH];
        let mut length = 0;
        for token in tokens.iter().rev().filter(contributes).take(REACH) {
            tail[length] = *token;
            length += 1;
        }
        for token in tail[..length].iter().rev() {
            self.push(*token);
        }
        self.foreign = self.held.len();
    }

    /// Takes the next token and returns the text that has become certain; it may be empty.
    ///
    /// An id outside the vocabulary contributes nothing: a model may have more rows in its
    /// embedding than its tokenizer has tokens.
    pub fn push(&mut self, token: u32) -> &str {
        self.delta.clear();
        if self.skip_special_tokens && self.table.is_special(token) {
            return "";
        }
        if self.table.append_bytes(token, self.first, &mut self.held) {
            self.first = false;
            self.release();
        }
        &self.delta
    }

    /// Ends the text and returns what was held back: U+FFFD if the text ends within a character,
    /// else nothing. The detokenizer is then ready for a new text.
    pub fn finish(&mut self) -> &str {
        self.delta.clear();
        if self.held.len() > self.foreign {
            self.delta.push(char::REPLACEMENT_CHARACTER);
        }
        self.held.clear();
        self.foreign = 0;
        self.first = true;
        self.strip = self.table.leading_strip();
        &self.delta
    }

    /// Moves all whole characters from the held bytes to the delta.
    fn release(&mut self) {
        let mut incomplete = 0;
        let mut chunks = self.held.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.delta.push_str(chunk.valid());
            match std::str::from_utf8(chunk.invalid()) {
                Ok(_) => {}
                // At the very end, and more bytes may yet make it a character.
                Err(error) if error.error_len().is_none() && chunks.peek().is_none() => {
                    incomplete = chunk.invalid().len();
                }
                Err(_) if chunk.invalid().len() == self.foreign => {}
                Err(_) => self.delta.push(char::REPLACEMENT_CHARACTER),
            }
            if incomplete == 0 {
                self.foreign = 0;
            }
        }
        let done = self.held.len() - incomplete;
        self.held.drain(..done);
        self.strip_leading();
    }

    fn strip_leading(&mut self) {
        let Some((character, mut left)) = self.strip else { return };
        while left > 0 && self.delta.starts_with(character) {
            self.delta.remove(0);
            left -= 1;
        }
        let may_go_on = left > 0 && self.delta.is_empty();
        self.strip = may_go_on.then_some((character, left));
    }
}

impl fmt::Debug for IncrementalDetokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("IncrementalDetokenizer")
            .field("skip_special_tokens", &self.skip_special_tokens)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}
