//! The tags of a chat template's source, in tokens.

use super::TextError;

/// Tokens of one tag: parser and compiler go into each other for every link of a chain.
const MAX_TOKENS: usize = 2048;

/// Brackets within brackets.
const MAX_BRACKETS: usize = 100;

/// A token of a tag.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// Where it begins in the source.
    pub(super) start: usize,
    /// For a bracket, how many tokens further its partner is.
    pub(super) partner: usize,
}

impl Token<'_> {
    pub(super) fn end(&self) -> usize {
        self.start + self.text.len()
    }

    pub(super) fn opens(&self) -> bool {
        matches!(self.text, "(" | "[" | "{")
    }

    pub(super) fn closes(&self) -> bool {
        matches!(self.text, ")" | "]" | "}")
    }

    /// A name, or a number.
    pub(super) fn is_word(&self) -> bool {
        self.text.starts_with(|first: char| first.is_alphanumeric() || first == '_')
    }

    pub(super) fn is_string(&self) -> bool {
        self.text.starts_with(['"', '\''])
    }
}

/// The tokens between the two ends of a tag.
pub(super) struct Tokens<'a> {
    pub(super) source: &'a str,
    pub(super) start: usize,
    pub(super) list: Vec<Token<'a>>,
    /// Behind the tag.
    pub(super) end: usize,
    /// The marks of trimmed white space, `-` or `+`, at either end.
    pub(super) marks: [&'a str; 2],
}

/// The text in a tag on both sides of its tokens: white space and marks.
pub(super) struct Trimmed<'a> {
    pub(super) before: &'a str,
    pub(super) after: &'a str,
}

impl<'a> Tokens<'a> {
    /// Reads the tag whose inside begins at `start`, as the template engine does: it ends at the
    /// first `close` outside of brackets and strings.
    pub(super) fn read(source: &'a str, start: usize, close: &str) -> Result<Self, TextError> {
        let mut list: Vec<Token<'a>> = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        let mut at = start;
        let mut marks = ["", ""];
        if source[at..].starts_with(['-', '+']) {
            marks[0] = &source[at..at + 1];
            at += 1;
        }
        loop {
            at += source[at..].len() - source[at..].trim_ascii_start().len();
            let rest = &source[at..];
            if open.is_empty() {
                let mark = rest.get(..1).filter(|mark| ["-", "+"].contains(mark)).unwrap_or("");
                if rest[mark.len()..].starts_with(close) {
                    marks[1] = mark;
                    let end = at + mark.len() + close.len();
                    return Ok(Self { source, start, list, end, marks });
                }
            }
            let Some(length) = token_length(rest) else {
                return Err(syntax(source, start, "the tag doesn't end"));
            };
            let mut token = Token { text: &rest[..length], start: at, partner: 0 };
            if token.closes() {
                let partner = open.pop().map(|opened| (opened, list[opened].text));
                let Some((opened, "(" | "[" | "{")) = partner else {
                    return Err(syntax(source, at, "a bracket closes that isn't open"));
                };
                token.partner = list.len() - opened;
                list[opened].partner = token.partner;
            }
            if token.opens() {
                open.push(list.len());
            }
            if open.len() > MAX_BRACKETS {
                return Err(too_large("brackets within brackets", MAX_BRACKETS));
            }
            list.push(token);
            if list.len() > MAX_TOKENS {
                return Err(too_large("tokens in a tag", MAX_TOKENS));
            }
            at += length;
        }
    }

    pub(super) fn trimmed(&self) -> Trimmed<'a> {
        let first = self.list.first().map_or(self.start + self.marks[0].len(), |token| token.start);
        let last = self.list.last().map_or(first, Token::end);
        Trimmed { before: &self.source[self.start..first], after: &self.source[last..self.end - 2] }
    }
}

/// The length of the token at the beginning of `rest`; `None` at the end of the source, which may
/// be in a string.
fn token_length(rest: &str) -> Option<usize> {
    let first = rest.chars().next()?;
    if first.is_alphanumeric() || first == '_' {
        let is_inner = |inner: char| inner.is_alphanumeric() || inner == '_';
        return Some(rest.find(|inner| !is_inner(inner)).unwrap_or(rest.len()));
    }
    if matches!(first, '"' | '\'') {
        let mut characters = rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => drop(characters.next()),
                _ if character == first => return Some(at + 1),
                _ => {}
            }
        }
        return None;
    }
    let pairs = ["==", "!=", ">=", "<=", "//", "**"];
    Some(if pairs.iter().any(|pair| rest.starts_with(pair)) { 2 } else { first.len_utf8() })
}

/// The places of the tokens that are in no bracket, and of the brackets that open there.
pub(super) fn top_level<'a>(tokens: &'a [Token<'_>]) -> impl Iterator<Item = usize> + 'a {
    let after = |at: usize| {
        let token = tokens.get(at)?;
        Some(at + 1 + if token.opens() { token.partner } else { 0 })
    };
    std::iter::successors(Some(0), move |at| after(*at)).take_while(|at| *at < tokens.len())
}

pub(super) fn too_large(what: &'static str, limit: usize) -> TextError {
    TextError::TemplateTooLarge { what, limit }
}

pub(super) fn syntax(source: &str, at: usize, reason: &str) -> TextError {
    let line = 1 + source[..at].matches('\n').count();
    TextError::TemplateSyntax { line: Some(line), reason: reason.to_owned() }
}
