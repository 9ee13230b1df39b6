//! Errors for people.

use std::error::Error;

/// Longest text that one error of a chain may add, in characters.
const LONGEST: usize = 1_000;

/// An error and all its causes on one line: `cannot use the weights of the model: a.gguf is not a
/// usable GGUF file: tensor ...`.
///
/// The outermost error says what failed, and only the innermost ones why; a program that prints an
/// error prints this. A cause that the error before it repeats is said once. Line breaks become
/// spaces and other control characters are escaped, since names out of a file may hold any, and
/// what is very long loses its middle.
///
/// ```
/// let error = understory::load("./no/such/model.gguf").start().unwrap_err();
/// assert_eq!(understory::one_line(&error), "./no/such/model.gguf does not exist");
/// ```
pub fn one_line(error: &dyn Error) -> String {
    let mut line = plain(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = plain(&error.to_string());
        if !line.contains(&more) {
            line.push_str(": ");
            line.push_str(&more);
        }
        cause = error.source();
    }
    line
}

/// On one line, without control characters, and not too long.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for word in text.split_whitespace() {
        if !plain.is_empty() {
            plain.push(' ');
        }
        for c in word.chars() {
            if c.is_control() { plain.extend(c.escape_default()) } else { plain.push(c) }
        }
    }
    without_middle(plain)
}

/// Keeps the end as well: where another program's report is quoted, its reason is there.
fn without_middle(text: String) -> String {
    let length = text.chars().count();
    if length <= LONGEST {
        return text;
    }
    let place = |character| text.char_indices().nth(character).map_or(text.len(), |(at, _)| at);
    let (head, tail) = (place(LONGEST / 2), place(length - LONGEST / 2));
    format!("{} ... {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: String,
        source: Option<Box<Link>>,
    }

    fn chain(texts: &[&str]) -> Link {
        let mut links = texts.iter().rev();
        let last = Link { text: (*links.next().unwrap()).to_owned(), source: None };
        links.fold(last, |source, text| Link {
            text: (*text).to_owned(),
            source: Some(Box::new(source)),
        })
    }

    #[test]
    fn causes_follow_and_what_is_repeated_is_said_once() {
        assert_eq!(one_line(&chain(&["a", "b", "c"])), "a: b: c");
        assert_eq!(one_line(&chain(&["cannot open x: gone", "gone"])), "cannot open x: gone");
    }

    #[test]
    fn one_line_is_one_line_and_harmless_on_a_terminal() {
        let line = one_line(&chain(&["first\n  second", "\u{1b}[2Jname\r\n"]));
        assert_eq!(line, "first second: \\u{1b}[2Jname");
    }

    #[test]
    fn what_is_long_loses_its_middle_and_keeps_its_end() {
        let line = one_line(&chain(&[&format!("begin {}end", "ö".repeat(1 << 20))]));
        assert!(line.starts_with("begin ö") && line.ends_with("öend"), "{line}");
        assert!(line.chars().count() < 1_100);
    }
}
