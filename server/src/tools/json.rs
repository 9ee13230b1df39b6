//! JSON, character by character: whether a text is still the beginning of a document.

/// Follows one JSON document.
#[derive(Clone, Debug)]
pub(super) struct JsonScanner {
    /// Which containers are open: true for objects.
    open: Vec<bool>,
    state: State,
}

/// What a character does in its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing that is of interest.
    Goes,
    /// It is the first of something.
    Begins(Kind),
    /// It is the last of something.
    Ends(Kind),
}

/// What can begin and end in a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Key,
    Text,
    Object,
    Array,
    /// A number, `true`, `false` or `null`: its end is not told.
    Scalar,
}

/// The text is not the beginning of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value must come; or an end, in an array that has just begun.
    Value {
        or_end: bool,
    },
    /// A key must come; or an end, in an object that has just begun.
    KeyNext {
        or_end: bool,
    },
    Colon,
    Text {
        is_key: bool,
        escape: Escape,
    },
    Number,
    /// What is left of `true`, `false` or `null`.
    Word(&'static str),
    /// A comma or an end must come.
    Behind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    No,
    Begun,
    /// So many hexadecimal digits are missing.
    Digits(u8),
}

impl JsonScanner {
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), state: State::Value { or_end: false } }
    }

    /// How many containers are open.
    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    /// Takes the next character. Nothing may follow the end of a container that none is around.
    pub(super) fn push(&mut self, c: char) -> Result<Event, Malformed> {
        let (state, event) = match self.state {
            State::Text { is_key, escape } => return self.in_text(is_key, escape, c),
            State::Number if matches!(c, '0'..='9' | '.' | 'e' | 'E' | '+' | '-') => {
                (State::Number, Event::Goes)
            }
            State::Word(rest) if !rest.is_empty() => {
                (State::Word(rest.strip_prefix(c).ok_or(Malformed)?), Event::Goes)
            }
            state if matches!(c, ' ' | '\n' | '\r' | '\t') => {
                let ends = matches!(state, State::Number | State::Word(_));
                (if ends { State::Behind } else { state }, Event::Goes)
            }
            State::Value { or_end: true } if c == ']' => return self.close(false),
            State::Value { .. } => match c {
                '{' => {
                    self.open.push(true);
                    (State::KeyNext { or_end: true }, Event::Begins(Kind::Object))
                }
                '[' => {
                    self.open.push(false);
                    (State::Value { or_end: true }, Event::Begins(Kind::Array))
                }
                '"' => (text(false), Event::Begins(Kind::Text)),
                '-' | '0'..='9' => (State::Number, Event::Begins(Kind::Scalar)),
                't' => (State::Word("rue"), Event::Begins(Kind::Scalar)),
                'f' => (State::Word("alse"), Event::Begins(Kind::Scalar)),
                'n' => (State::Word("ull"), Event::Begins(Kind::Scalar)),
                _ => return Err(Malformed),
            },
            State::KeyNext { or_end: true } if c == '}' => return self.close(true),
            State::KeyNext { .. } if c == '"' => (text(true), Event::Begins(Kind::Key)),
            State::Colon if c == ':' => (State::Value { or_end: false }, Event::Goes),
            State::Number | State::Word(_) | State::Behind => match (c, self.open.last()) {
                (',', Some(true)) => (State::KeyNext { or_end: false }, Event::Goes),
                (',', Some(false)) => (State::Value { or_end: false }, Event::Goes),
                ('}', Some(true)) | (']', Some(false)) => return self.close(c == '}'),
                _ => return Err(Malformed),
            },
            State::KeyNext { .. } | State::Colon => return Err(Malformed),
        };
        self.state = state;
        Ok(event)
    }

    fn in_text(&mut self, is_key: bool, escape: Escape, c: char) -> Result<Event, Malformed> {
        let escape = match escape {
            Escape::No if c == '"' => {
                self.state = if is_key { State::Colon } else { State::Behind };
                return Ok(Event::Ends(if is_key { Kind::Key } else { Kind::Text }));
            }
            Escape::No if c == '\\' => Escape::Begun,
            Escape::No => Escape::No,
            Escape::Begun => match c {
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => Escape::No,
                'u' => Escape::Digits(4),
                _ => return Err(Malformed),
            },
            Escape::Digits(left) if c.is_ascii_hexdigit() => match left {
                0 | 1 => Escape::No,
                left => Escape::Digits(left - 1),
            },
            Escape::Digits(_) => return Err(Malformed),
        };
        self.state = State::Text { is_key, escape };
        Ok(Event::Goes)
    }

    fn close(&mut self, is_object: bool) -> Result<Event, Malformed> {
        self.open.pop();
        self.state = State::Behind;
        Ok(Event::Ends(if is_object { Kind::Object } else { Kind::Array }))
    }
}

fn text(is_key: bool) -> State {
    State::Text { is_key, escape: Escape::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the text is one object and no more.
    fn is_object(text: &str) -> bool {
        let mut scanner = JsonScanner::new();
        let mut last = Ok(Event::Goes);
        for c in text.chars() {
            last = scanner.push(c);
            if last.is_err() {
                return false;
            }
        }
        scanner.depth() == 0 && last == Ok(Event::Ends(Kind::Object))
    }

    #[test]
    fn documents_are_told_from_what_is_none() {
        for text in [
            "{}",
            r#"{ "a" : [ ] , "b":[1,-2.5e+3 , true,null],"c":{"d":"\u00e4\n\"" }}"#,
            r#"{"a":{},"b":[[],{}],"c":false }"#,
        ] {
            assert!(is_object(text), "{text}");
        }
        for text in [
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{'a':1}",
            "{\"a\":[1,]}",
            "{\"a\":tru}",
            "{\"a\":truee}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12g4\"}",
            "{\"a\":1]",
            "{\"a\":1} x",
            "{\"a\" 1}",
            "{a:1}",
            "{}}",
            "{",
        ] {
            assert!(!is_object(text), "{text}");
        }
    }
}
