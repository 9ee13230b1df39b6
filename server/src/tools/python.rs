//! Python's literals into JSON, character by character.

use super::json::Malformed;

/// Follows one literal: a text, a number, `True`, `False`, `None`, a list, a tuple or a dictionary.
#[derive(Debug)]
pub(super) struct PythonScanner {
    /// The closing bracket of each container that is open.
    open: Vec<char>,
    state: State,
    /// A number or a word, which is read to its end first.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value must come; or the end, in a container that has just begun or behind a comma.
    Value {
        is_first: bool,
    },
    /// A key must come, or the end.
    Key {
        is_first: bool,
    },
    Colon,
    Text {
        quote: char,
        is_key: bool,
        escape: Escape,
    },
    Number,
    Word,
    /// A comma or an end must come.
    Behind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    No,
    Begun,
    /// So many hexadecimal digits are missing of a number.
    Digits {
        left: u8,
        code: u32,
    },
}

impl PythonScanner {
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), state: State::Value { is_first: true }, held: String::new() }
    }

    /// What has been read of a number or a word, and is not told yet.
    pub(super) fn held(&self) -> &str {
        &self.held
    }

    /// Takes the next character, and appends the JSON that is certain. True if the literal ended before the character.
    pub(super) fn push(&mut self, c: char, json: &mut String) -> Result<bool, Malformed> {
        match self.state {
            State::Text { quote, is_key, escape } => {
                self.in_text(c, quote, is_key, escape, json)?;
                return Ok(false);
            }
            State::Number if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-') => {
                self.held.push(c);
                return Ok(false);
            }
            State::Word if c.is_alphanumeric() || c == '_' => {
                self.held.push(c);
                return Ok(false);
            }
            State::Number => {
                json.push_str(&number(&self.held)?);
                self.held.clear();
                self.state = State::Behind;
            }
            State::Word => {
                json.push_str(word(&self.held)?);
                self.held.clear();
                self.state = State::Behind;
            }
            _ => {}
        }
        if c.is_whitespace() {
            return Ok(false);
        }
        self.between(c, json)
    }

    fn between(&mut self, c: char, json: &mut String) -> Result<bool, Malformed> {
        match self.state {
            State::Behind if self.open.is_empty() => return Ok(true),
            State::Behind if c == ',' => {
                self.state = match self.open.last() {
                    Some('}') => State::Key { is_first: false },
                    _ => State::Value { is_first: false },
                };
            }
            State::Behind | State::Value { .. } | State::Key { .. }
                // Behind a colon there must be a value.
                if self.open.last() == Some(&c)
                    && !(c == '}' && matches!(self.state, State::Value { .. })) =>
            {
                self.open.pop();
                json.push(if c == '}' { '}' } else { ']' });
                self.state = State::Behind;
            }
            State::Colon if c == ':' => {
                json.push_str(": ");
                self.state = State::Value { is_first: true };
            }
            State::Key { is_first } if matches!(c, '"' | '\'') => {
                json.push_str(if is_first { "\"" } else { ", \"" });
                self.state = State::Text { quote: c, is_key: true, escape: Escape::No };
            }
            State::Value { is_first } => {
                if !is_first {
                    json.push_str(", ");
                }
                self.value(c, json)?;
            }
            _ => return Err(Malformed),
        }
        Ok(false)
    }

    fn value(&mut self, c: char, json: &mut String) -> Result<(), Malformed> {
        self.state = match c {
            '"' | '\'' => {
                json.push('"');
                State::Text { quote: c, is_key: false, escape: Escape::No }
            }
            '[' | '(' => {
                json.push('[');
                self.open.push(if c == '[' { ']' } else { ')' });
                State::Value { is_first: true }
            }
            '{' => {
                json.push('{');
                self.open.push('}');
                State::Key { is_first: true }
            }
            '0'..='9' | '-' | '+' | '.' => {
                self.held.push(c);
                State::Number
            }
            c if c.is_alphabetic() => {
                self.held.push(c);
                State::Word
            }
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn in_text(
        &mut self,
        c: char,
        quote: char,
        is_key: bool,
        escape: Escape,
        json: &mut String,
    ) -> Result<(), Malformed> {
        let escape = match escape {
            Escape::No if c == quote => {
                json.push('"');
                self.state = if is_key { State::Colon } else { State::Behind };
                return Ok(());
            }
            Escape::No if c == '\\' => Escape::Begun,
            Escape::No => {
                push_escaped(c, json);
                Escape::No
            }
            Escape::Begun => match c {
                'x' => Escape::Digits { left: 2, code: 0 },
                'u' => Escape::Digits { left: 4, code: 0 },
                'U' => Escape::Digits { left: 8, code: 0 },
                _ => {
                    match c {
                        '\n' => {}
                        'n' => json.push_str("\\n"),
                        'r' => json.push_str("\\r"),
                        't' => json.push_str("\\t"),
                        'b' => json.push_str("\\b"),
                        'f' => json.push_str("\\f"),
                        '0' => json.push_str("\\u0000"),
                        '\\' | '"' | '\'' => push_escaped(c, json),
                        // Python keeps the backslash of what it does not know.
                        c => {
                            json.push_str("\\\\");
                            push_escaped(c, json);
                        }
                    }
                    Escape::No
                }
            },
            Escape::Digits { left, code } => {
                let code = (code << 4) | c.to_digit(16).ok_or(Malformed)?;
                if left > 1 {
                    Escape::Digits { left: left - 1, code }
                } else {
                    // Halves of pairs are JSON's as well.
                    match char::from_u32(code) {
                        Some(c) => push_escaped(c, json),
                        None if code <= 0xFFFF => json.push_str(&format!("\\u{code:04x}")),
                        None => return Err(Malformed),
                    }
                    Escape::No
                }
            }
        };
        self.state = State::Text { quote, is_key, escape };
        Ok(())
    }
}

fn push_escaped(c: char, json: &mut String) {
    match c {
        '"' => json.push_str("\\\""),
        '\\' => json.push_str("\\\\"),
        c if c.is_control() => json.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => json.push(c),
    }
}

/// A number as JSON writes it.
fn number(text: &str) -> Result<String, Malformed> {
    let digits = text.replace('_', "");
    let digits = digits.strip_prefix('+').unwrap_or(&digits);
    let is_json = |text: &str| serde_json::from_str::<serde_json::Number>(text).is_ok();
    if is_json(digits) {
        return Ok(digits.to_owned());
    }
    // `.5` and `5.`
    let (sign, size) = match digits.strip_prefix('-') {
        Some(size) => ("-", size),
        None => ("", digits),
    };
    let whole = match (size.strip_prefix('.'), size.strip_suffix('.')) {
        (Some(part), _) => format!("{sign}0.{part}"),
        (None, Some(part)) => format!("{sign}{part}.0"),
        (None, None) => return Err(Malformed),
    };
    if is_json(&whole) { Ok(whole) } else { Err(Malformed) }
}

/// A word as JSON writes it; models write JSON's own, too.
fn word(text: &str) -> Result<&'static str, Malformed> {
    match text {
        "True" | "true" => Ok("true"),
        "False" | "false" => Ok("false"),
        "None" | "null" => Ok("null"),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The JSON of a literal with a comma behind it.
    fn json(text: &str) -> Result<String, Malformed> {
        let (mut scanner, mut json) = (PythonScanner::new(), String::new());
        for c in text.chars() {
            if scanner.push(c, &mut json)? {
                return Err(Malformed);
            }
        }
        if scanner.push(',', &mut json)? { Ok(json) } else { Err(Malformed) }
    }

    #[test]
    fn literals_become_json_of_the_same_value() {
        for (python, expected) in [
            ("1", "1"),
            ("-1_000.5e3", "-1000.5e3"),
            (".5", "0.5"),
            ("-5.", "-5.0"),
            ("+7", "7"),
            ("True", "true"),
            (" None ", "null"),
            ("''", "\"\""),
            (r#"'it\'s "so"\n'"#, r#""it's \"so\"\n""#),
            (r#""\x41\u00e4\U0001f600\q""#, "\"A\u{e4}\u{1f600}\\\\q\""),
            (r"'\ud83d\ude00'", r#""\ud83d\ude00""#),
            ("'a\tb'", r#""a\u0009b""#),
            ("[1, [2,], ('a', ), {}]", r#"[1, [2], ["a"], {}]"#),
            ("{'a': 1, \"b\": {'c': [False]},}", r#"{"a": 1, "b": {"c": [false]}}"#),
        ] {
            let found = json(python).unwrap_or_else(|_| panic!("{python}"));
            assert_eq!(found, expected, "{python}");
            assert!(serde_json::from_str::<serde_json::Value>(&found).is_ok(), "{found}");
        }
    }

    #[test]
    fn what_is_no_literal_is_malformed() {
        for text in [
            "", "[1", "1 2", "f(x)", "nope", "{'a' 1}", "{1: 2}", "{'a': }", "[1)", "0x1f", "--1",
            "'\\xg0'",
        ] {
            assert_eq!(json(text), Err(Malformed), "{text}");
        }
    }
}
