//! PTX text to tokens.

use super::error::{PtxError, PtxProblem};

/// A token and the line that it stands on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) line: u32,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind<'a> {
    /// A name, a directive or an instruction with its modifiers, `ld.global.v2.u32`.
    Word(&'a str),
    /// A whole number, with a note whether a minus stands before the digits elsewhere.
    Integer(u64),
    /// `0f3F800000`: the bits of a single.
    Single(u32),
    /// `0d3FF0000000000000` or a decimal fraction: the bits of a double.
    Double(u64),
    Text(&'a str),
    Sign(char),
    End,
}

impl Kind<'_> {
    /// How an error message names the token.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Word(word) => format!("{word:?}"),
            Self::Integer(value) => value.to_string(),
            Self::Single(bits) => format!("0f{bits:08X}"),
            Self::Double(bits) => format!("0d{bits:016X}"),
            Self::Text(text) => format!("string {text:?}"),
            Self::Sign(sign) => format!("{sign:?}"),
            Self::End => "the end of the text".to_owned(),
        }
    }
}

/// Splits PTX text into tokens; the last one is [`Kind::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, PtxError> {
    let mut lexer = Lexer { text, at: 0, line: 1 };
    let mut tokens = Vec::with_capacity(text.len() / 4);
    loop {
        let token = lexer.next()?;
        tokens.push(token);
        if token.kind == Kind::End {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn next(&mut self) -> Result<Token<'a>, PtxError> {
        self.skip_blank()?;
        let line = self.line;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Ok(Token { kind: Kind::End, line });
        };
        let kind = if first == '"' {
            let inner = rest.get(1..).unwrap_or("");
            let length = inner.find('"').ok_or(PtxProblem::Unterminated("a string").at(line))?;
            let text = inner.get(..length).unwrap_or("");
            self.line += newlines(text);
            self.at += length + 2;
            Kind::Text(text)
        } else if first.is_ascii_digit() {
            let word = take_number(rest);
            self.at += word.len();
            number(word).ok_or_else(|| PtxProblem::Number(word.to_owned()).at(line))?
        } else if is_word(first) {
            let word = take_word(rest);
            self.at += word.len();
            Kind::Word(word)
        } else if "{}[](),;:|!@=+-<>".contains(first) {
            self.at += 1;
            Kind::Sign(first)
        } else {
            return Err(PtxProblem::Character(first).at(line));
        };
        Ok(Token { kind, line })
    }

    fn skip_blank(&mut self) -> Result<(), PtxError> {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            let blank = rest.len() - trimmed.len();
            self.line += newlines(rest.get(..blank).unwrap_or(""));
            self.at += blank;
            if trimmed.starts_with("//") {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if trimmed.starts_with("/*") {
                let end = trimmed
                    .find("*/")
                    .ok_or(PtxProblem::Unterminated("a comment").at(self.line))?;
                self.line += newlines(trimmed.get(..end).unwrap_or(""));
                self.at += end + 2;
            } else {
                return Ok(());
            }
        }
    }
}

fn newlines(text: &str) -> u32 {
    u32::try_from(text.bytes().filter(|byte| *byte == b'\n').count()).unwrap_or(u32::MAX / 2)
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || "_$%.".contains(character)
}

/// A word ends before a colon, unless the colon is one of a pair as in `shared::cta`.
fn take_word(text: &str) -> &str {
    let bytes = text.as_bytes();
    let mut end = 0;
    while let Some(byte) = bytes.get(end) {
        if is_word(char::from(*byte)) {
            end += 1;
        } else if *byte == b':'
            && bytes.get(end + 1) == Some(&b':')
            && bytes.get(end + 2).is_some_and(u8::is_ascii_alphanumeric)
        {
            end += 2;
        } else {
            break;
        }
    }
    text.get(..end).unwrap_or("")
}

/// A number may hold an exponent with a sign.
fn take_number(text: &str) -> &str {
    let bytes = text.as_bytes();
    let prefixed =
        bytes.first() == Some(&b'0') && bytes.get(1).is_some_and(|byte| b"xXfFdDbB".contains(byte));
    let mut end = 0;
    while let Some(byte) = bytes.get(end) {
        let exponent_sign = !prefixed
            && b"+-".contains(byte)
            && end > 0
            && bytes.get(end - 1).is_some_and(|before| b"eE".contains(before));
        if byte.is_ascii_alphanumeric() || *byte == b'.' || exponent_sign {
            end += 1;
        } else {
            break;
        }
    }
    text.get(..end).unwrap_or("")
}

fn number(word: &str) -> Option<Kind<'static>> {
    let prefix = word.get(..2).unwrap_or("");
    let digits = word.get(2..).unwrap_or("");
    // All digits must be there.
    let bits = |count| {
        let whole = digits.len() == count && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        whole.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    };
    if prefix.eq_ignore_ascii_case("0f") {
        return bits(8).map(|bits| Kind::Single(bits as u32));
    }
    if prefix.eq_ignore_ascii_case("0d") {
        return bits(16).map(Kind::Double);
    }
    let whole = word.strip_suffix('U').unwrap_or(word);
    let digits = whole.get(2..).unwrap_or("");
    if prefix.eq_ignore_ascii_case("0x") {
        return u64::from_str_radix(digits, 16).ok().map(Kind::Integer);
    }
    if prefix.eq_ignore_ascii_case("0b") {
        return u64::from_str_radix(digits, 2).ok().map(Kind::Integer);
    }
    if word.contains('.') || word.contains(['e', 'E']) {
        return word.parse().ok().map(|value: f64| Kind::Double(value.to_bits()));
    }
    if whole.len() > 1 && whole.starts_with('0') {
        return u64::from_str_radix(whole, 8).ok().map(Kind::Integer);
    }
    whole.parse().ok().map(Kind::Integer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind<'_>> {
        tokens(text).unwrap().into_iter().map(|token| token.kind).collect()
    }

    #[test]
    fn numbers_are_read_in_every_notation() {
        assert_eq!(
            kinds("10 0x1F 017 0b101 7U 0f3F800000 0d3FF0000000000000 1.5"),
            [
                Kind::Integer(10),
                Kind::Integer(31),
                Kind::Integer(15),
                Kind::Integer(5),
                Kind::Integer(7),
                Kind::Single(0x3f80_0000),
                Kind::Double(0x3ff0_0000_0000_0000),
                Kind::Double(0x3ff8_0000_0000_0000),
                Kind::End,
            ]
        );
    }

    #[test]
    fn double_colons_belong_to_a_word_and_single_ones_do_not() {
        assert_eq!(
            kinds("$L1: ld.shared::cta.u32"),
            [Kind::Word("$L1"), Kind::Sign(':'), Kind::Word("ld.shared::cta.u32"), Kind::End]
        );
    }

    #[test]
    fn lines_are_counted_through_comments_and_strings() {
        let all = tokens("a // x\n/* \n\n */ b \"\n\" c").unwrap();
        let lines: Vec<_> = all.iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 4, 4, 5, 5]);
    }
}
