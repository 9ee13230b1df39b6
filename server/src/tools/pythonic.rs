//! Calls written as Python: `[f(a=1, b="x"), g()]`.

use super::call::Names;
use super::delta::{CallIds, Delta, Deltas, Parser};
use super::json::Malformed;
use super::python::PythonScanner;

/// What may stand around the list.
const BEGIN: &str = "<|python_start|>";
const END: &str = "<|python_end|>";

/// Longest name of a function or of an argument, in bytes.
const LONGEST_NAME: usize = 256;

/// Finds calls in an answer that is nothing else: Llama 3.2 and Llama 4.
///
/// A call is told once its function and the name of its first argument are known, and its arguments follow as JSON as
/// they come. An answer that does not begin with a list of calls is content, to the last character.
#[derive(Debug)]
pub(super) struct PythonicParser {
    names: Names,
    ids: CallIds,
    state: State,
    /// What was read since the last thing told: content, if it turns out to be no call.
    raw: String,
    calls: u32,
}

#[derive(Debug)]
enum State {
    /// The list must begin, perhaps behind a mark.
    Beginning,
    /// A call must come, or the end of the list.
    Next,
    /// The name of a function.
    Name(String),
    /// The name of the first argument must come, or the end of the call, which is not told yet.
    First { function: String, name: String },
    /// The name of a further argument must come, or the end of the call.
    Key(String),
    /// The value of an argument.
    Value(PythonScanner),
    /// A comma or the end of the list must come.
    Between,
    /// The list has ended; its mark may follow.
    Behind,
    /// A call that was told is broken: the rest is passed on as its arguments.
    Broken,
    /// The rest is content.
    Content,
}

impl PythonicParser {
    /// A parser of one answer. `names` are the functions that are offered.
    pub(super) fn new(names: impl IntoIterator<Item = String>, ids: CallIds) -> Self {
        let names = Names::new(names.into_iter().collect());
        Self { names, ids, state: State::Beginning, raw: String::new(), calls: 0 }
    }

    fn index(&self) -> u32 {
        self.calls.saturating_sub(1)
    }

    fn read(&mut self, c: char, deltas: &mut Vec<Delta>) {
        match &mut self.state {
            State::Content => return deltas.content(c),
            State::Broken => return deltas.arguments(self.calls.saturating_sub(1), c),
            State::Key(_) | State::Value(_) => return self.read_arguments(c, deltas),
            _ => self.raw.push(c),
        }
        let is_right = match &mut self.state {
            State::Beginning => {
                let begun = self.raw.trim_start();
                let begun = begun.strip_prefix(BEGIN).unwrap_or(begun).trim_start();
                if begun == "[" {
                    self.state = State::Next;
                }
                begun.is_empty() || begun == "[" || BEGIN.starts_with(begun)
            }
            State::Next => match c {
                c if c.is_whitespace() => true,
                ']' if self.calls > 0 => {
                    self.state = State::Behind;
                    self.raw.clear();
                    true
                }
                c if begins_name(c) => {
                    self.state = State::Name(c.to_string());
                    true
                }
                _ => false,
            },
            State::Name(name) => match c {
                '(' if self.names.contains(&*name) => {
                    let function = std::mem::take(name);
                    self.state = State::First { function, name: String::new() };
                    true
                }
                c => takes(name, c),
            },
            State::First { function, name } => match c {
                c if c.is_whitespace() => true,
                ')' if name.is_empty() => {
                    let function = std::mem::take(function);
                    self.begin(function, "{}", deltas);
                    self.state = State::Between;
                    true
                }
                '=' if !name.is_empty() => {
                    let (function, json) = (std::mem::take(function), format!("{{\"{name}\": "));
                    self.begin(function, &json, deltas);
                    self.state = State::Value(PythonScanner::new());
                    true
                }
                c => takes(name, c),
            },
            State::Between => match c {
                c if c.is_whitespace() => true,
                ',' => {
                    self.state = State::Next;
                    true
                }
                ']' => {
                    self.state = State::Behind;
                    self.raw.clear();
                    true
                }
                _ => false,
            },
            State::Behind => {
                let rest = self.raw.trim_start();
                let (is_end, is_right) = (rest == END, END.starts_with(rest));
                if is_end {
                    self.raw.clear();
                }
                is_right
            }
            State::Key(_) | State::Value(_) | State::Broken | State::Content => true,
        };
        if !is_right {
            self.state = State::Content;
            std::mem::take(&mut self.raw).chars().for_each(|c| deltas.content(c));
        }
    }

    /// Tells that a call has begun, with the first of its arguments' JSON.
    fn begin(&mut self, name: String, json: &str, deltas: &mut Vec<Delta>) {
        self.raw.clear();
        let index = self.calls;
        self.calls += 1;
        deltas.push(Delta::Call { index, id: self.ids.of(index), name });
        json.chars().for_each(|c| deltas.arguments(index, c));
    }

    /// Within a call, of which everything is told as JSON.
    fn read_arguments(&mut self, c: char, deltas: &mut Vec<Delta>) {
        let index = self.index();
        let mut json = String::new();
        let read = match &mut self.state {
            State::Key(name) => match c {
                c if c.is_whitespace() => Ok(None),
                ')' if name.is_empty() => {
                    json.push('}');
                    Ok(Some(State::Between))
                }
                '=' if !name.is_empty() => {
                    json = format!(", \"{name}\": ");
                    Ok(Some(State::Value(PythonScanner::new())))
                }
                c if takes(name, c) => Ok(None),
                _ => {
                    json = std::mem::take(name);
                    Err(Malformed)
                }
            },
            State::Value(value) => match (value.push(c, &mut json), c) {
                (Ok(false), _) => Ok(None),
                (Ok(true), ',') => Ok(Some(State::Key(String::new()))),
                (Ok(true), ')') => {
                    json.push('}');
                    Ok(Some(State::Between))
                }
                _ => {
                    json.push_str(value.held());
                    Err(Malformed)
                }
            },
            _ => Ok(None),
        };
        json.chars().for_each(|c| deltas.arguments(index, c));
        match read {
            Ok(None) => {}
            Ok(Some(state)) => self.state = state,
            Err(Malformed) => {
                self.state = State::Broken;
                deltas.arguments(index, c);
            }
        }
    }
}

impl Parser for PythonicParser {
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        text.chars().for_each(|c| self.read(c, deltas));
    }

    fn finish(&mut self, deltas: &mut Vec<Delta>) {
        let raw = std::mem::take(&mut self.raw);
        match std::mem::replace(&mut self.state, State::Content) {
            State::Value(value) => {
                let index = self.index();
                value.held().chars().for_each(|c| deltas.arguments(index, c));
            }
            // The rest of a list that was cut is no content.
            _ if self.calls > 0 && raw.trim_matches([',', ' ', '\n']).is_empty() => {}
            State::Behind if END.starts_with(raw.trim_start()) => {}
            _ => raw.chars().for_each(|c| deltas.content(c)),
        }
    }
}

/// Appends a character to a name, if it can be the next one.
fn takes(name: &mut String, c: char) -> bool {
    let is_right = begins_name(c) || (!name.is_empty() && goes_on(c));
    let is_taken = is_right && name.len() < LONGEST_NAME;
    if is_taken {
        name.push(c);
    }
    is_taken
}

fn begins_name(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn goes_on(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-')
}
