//! Ends a stream of text at a string.

use std::sync::Arc;

use super::TextError;

/// Strings at which generation stops, compiled. Shared by all samples of a request.
///
/// The text ends at the stop string that is complete first; of several that are complete at the
/// same character, at the longest. So the result does not depend on how the text was cut into
/// pieces.
#[derive(Debug, Clone)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
    include_in_text: bool,
}

impl StopStrings {
    /// Compiles a list of stop strings. With `include_in_text` the text ends after the stop
    /// string, otherwise before it.
    ///
    /// # Errors
    ///
    /// [`TextError::EmptyStopString`].
    pub fn new<S: AsRef<str>>(
        strings: impl IntoIterator<Item = S>,
        include_in_text: bool,
    ) -> Result<Self, TextError> {
        let patterns = strings
            .into_iter()
            .enumerate()
            .map(|(index, string)| match string.as_ref() {
                "" => Err(TextError::EmptyStopString { index }),
                string => Ok(Pattern::new(string)),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { patterns, include_in_text })
    }

    /// Whether there is nothing to stop at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// A matcher for one stream of text.
    #[must_use]
    pub fn matcher(&self) -> StopMatcher {
        StopMatcher {
            matched: vec![0; self.patterns.len()],
            stop_strings: self.clone(),
            text: String::new(),
            released: 0,
            stopped: None,
        }
    }
}

/// Looks for stop strings in one stream of text, and holds back what may become one.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stop_strings: StopStrings,
    /// For each pattern, how many of its bytes the text seen so far ends with.
    matched: Vec<usize>,
    /// What was held back, after what has been released and is to be forgotten.
    text: String,
    released: usize,
    stopped: Option<usize>,
}

/// What [`StopMatcher::push`] made of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopScan<'a> {
    /// The text that can be shown now. It may be empty, and shorter or longer than the piece.
    pub text: &'a str,
    /// The index of the stop string that has been met. The text is complete then, and further
    /// pieces are ignored.
    pub stopped: Option<usize>,
}

impl StopMatcher {
    /// Takes the next piece of the text.
    pub fn push(&mut self, piece: &str) -> StopScan<'_> {
        self.scan(piece, true)
    }

    /// Takes a piece that comes too early for the text to end in it. A stop string that is
    /// complete within it is text like any other; one that only begins in it still counts.
    pub fn push_early(&mut self, piece: &str) -> &str {
        self.scan(piece, false).text
    }

    fn scan(&mut self, piece: &str, may_stop: bool) -> StopScan<'_> {
        self.text.drain(..self.released);
        self.released = 0;
        if self.stopped.is_some() {
            return StopScan { text: "", stopped: self.stopped };
        }
        let before = self.text.len();
        self.text.push_str(piece);
        for (offset, byte) in piece.bytes().enumerate() {
            let complete = self.advance(byte);
            if let Some(index) = complete.filter(|_| may_stop) {
                let end = before + offset + 1;
                let stop_length = self.stop_strings.patterns[index].bytes.len();
                let keep = if self.stop_strings.include_in_text { end } else { end - stop_length };
                self.text.truncate(keep);
                self.released = keep;
                self.stopped = Some(index);
                return StopScan { text: &self.text, stopped: self.stopped };
            }
        }
        let patterns = self.stop_strings.patterns.iter().zip(&self.matched);
        let held = patterns.map(|(pattern, matched)| pattern.pending(*matched)).max().unwrap_or(0);
        self.released = self.text.len() - held;
        StopScan { text: &self.text[..self.released], stopped: None }
    }

    /// Ends the text and returns what was held back: the beginning of a stop string that did not
    /// come.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.text.drain(..self.released);
        self.text
    }

    /// Extends all partial matches by a byte, and returns the longest pattern that is complete.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        let mut complete: Option<usize> = None;
        let patterns = &self.stop_strings.patterns;
        for (index, (pattern, matched)) in patterns.iter().zip(&mut self.matched).enumerate() {
            *matched = pattern.advance(*matched, byte);
            let longer =
                complete.is_none_or(|best| pattern.bytes.len() > patterns[best].bytes.len());
            if *matched == pattern.bytes.len() && longer {
                complete = Some(index);
            }
        }
        complete
    }
}

/// A string and its failure function (Knuth, Morris and Pratt, 1977). A match of bytes is a match
/// of characters, as a string in UTF-8 begins and ends between characters.
#[derive(Debug)]
struct Pattern {
    bytes: Box<[u8]>,
    /// Entry i: the length of the longest proper prefix of `bytes[..=i]` that is also its suffix.
    fallback: Box<[usize]>,
}

impl Pattern {
    fn new(string: &str) -> Self {
        let mut pattern =
            Self { bytes: string.as_bytes().into(), fallback: vec![0; string.len()].into() };
        let mut matched = 0;
        for index in 1..pattern.bytes.len() {
            matched = pattern.advance(matched, pattern.bytes[index]);
            pattern.fallback[index] = matched;
        }
        pattern
    }

    /// How many of the `matched` bytes that the text ends with may still become the pattern.
    fn pending(&self, matched: usize) -> usize {
        if matched == self.bytes.len() { self.fallback[matched - 1] } else { matched }
    }

    /// How many bytes of the pattern the text ends with after one more byte, if it was `matched`
    /// before. Amortised O(1): each step back undoes a step forward.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes.get(matched) != Some(&byte) {
            matched = self.fallback[matched - 1];
        }
        if self.bytes[matched] == byte { matched + 1 } else { matched }
    }
}
