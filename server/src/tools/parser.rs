//! Finds calls in an answer, however the answer is cut into pieces.

use std::collections::VecDeque;

use super::call::{CallScanner, Names, News};
use super::delta::{CallIds, Delta, Deltas, Parser};
use super::format::Syntax;
use super::json::{Event, JsonScanner, Malformed};

/// Longest name in front of arguments, with the marks between the two, in bytes.
const LONGEST_NAME: usize = 256;

/// Finds calls in an answer.
///
/// A call is told as soon as its function is known; its arguments follow as they come. What looks
/// like a call and is none (broken JSON, a function that nobody offers) is content. White space
/// between calls, and between content and a call, is part of neither.
#[derive(Debug)]
pub(super) struct ToolParser {
    syntax: Syntax,
    names: Names,
    ids: CallIds,
    state: State,
    /// The beginning of a mark, perhaps.
    held: String,
    /// White space of which it isn't known yet whether content is around it.
    blank: String,
    /// What was read of a call that has not been told: content, if it turns out to be none.
    raw: String,
    /// Bytes of `raw` that can't begin a call again.
    mark: usize,
    calls: u32,
    /// Whether a call was the last thing told.
    is_behind_call: bool,
    /// Characters to be read, those that are read again first.
    queue: VecDeque<char>,
}

#[derive(Debug)]
enum State {
    /// Content.
    Text,
    /// A call or a list of calls must begin. In a list, one call after another.
    Open { in_list: bool },
    /// The name in front of arguments.
    Name(String),
    /// The arguments behind a name.
    NamedArguments(JsonScanner),
    /// A call.
    Object { call: Box<CallScanner>, in_list: bool },
    /// A comma or the end of the list must come.
    InList,
    /// A call has ended; its end mark may follow.
    Behind,
    /// A call that was told has turned out to be broken. Up to the end mark, what is there is
    /// passed on as its arguments or, if these had ended, as content.
    Broken { in_arguments: bool },
}

impl ToolParser {
    /// A parser of one answer. `names` are the functions that are offered.
    pub(super) fn new(
        syntax: Syntax,
        names: impl IntoIterator<Item = String>,
        ids: CallIds,
    ) -> Self {
        let state = if syntax.is_bare { State::Open { in_list: false } } else { State::Text };
        Self {
            syntax,
            names: Names::new(names.into_iter().collect()),
            ids,
            state,
            held: String::new(),
            blank: String::new(),
            raw: String::new(),
            mark: 0,
            calls: 0,
            is_behind_call: false,
            queue: VecDeque::new(),
        }
    }

    fn read(&mut self, c: char, deltas: &mut Vec<Delta>) {
        match &mut self.state {
            State::Text => self.read_text(c, deltas),
            State::Broken { in_arguments } => {
                let in_arguments = *in_arguments;
                self.read_broken(c, in_arguments, deltas);
            }
            State::Behind => self.read_behind(c),
            State::NamedArguments(json) => match json.push(c) {
                Ok(event) => {
                    deltas.arguments(self.calls.saturating_sub(1), c);
                    if json.depth() == 0 && matches!(event, Event::Ends(_)) {
                        self.state = State::Behind;
                    }
                }
                Err(Malformed) => {
                    self.state = State::Broken { in_arguments: true };
                    self.queue.push_front(c);
                }
            },
            State::Object { call, in_list } => {
                let in_list = *in_list;
                match call.push(c) {
                    Ok(news) => self.hear(news, c, in_list, deltas),
                    Err(Malformed) if call.has_begun() => {
                        let in_arguments = call.is_in_arguments();
                        self.state = State::Broken { in_arguments };
                        self.queue.push_front(c);
                    }
                    Err(Malformed) => self.fall_back(c, deltas),
                }
            }
            State::Open { in_list } => {
                let in_list = *in_list;
                self.read_open(c, in_list, deltas);
            }
            State::Name(name) => match c {
                '{' => {
                    let written = name.split("[CALL_ID]").next().unwrap_or_default();
                    let written = written.strip_suffix("[ARGS]").unwrap_or(written).trim();
                    let name = written.to_owned();
                    if self.names.contains(&name) {
                        self.begin(name, String::new(), deltas);
                        self.state = State::NamedArguments(JsonScanner::new());
                        self.queue.push_front(c);
                    } else {
                        self.fall_back(c, deltas);
                    }
                }
                // What could be a name has an end.
                '\n' => self.fall_back(c, deltas),
                _ if name.len() > LONGEST_NAME => self.fall_back(c, deltas),
                c => {
                    name.push(c);
                    self.raw.push(c);
                }
            },
            State::InList => {
                self.raw.push(c);
                match c {
                    ',' => self.state = State::Open { in_list: true },
                    ']' => {
                        self.raw.clear();
                        self.state = State::Behind;
                    }
                    c if c.is_ascii_whitespace() => {}
                    _ => {
                        self.raw.pop();
                        self.fall_back(c, deltas);
                    }
                }
            }
        }
    }

    fn read_text(&mut self, c: char, deltas: &mut Vec<Delta>) {
        let Some(begin) = self.syntax.begin else { return self.tell_text(c, deltas) };
        self.held.push(c);
        while !begin.starts_with(&*self.held) {
            let first = self.held.remove(0);
            self.tell_text(first, deltas);
        }
        if self.held == begin {
            self.raw = std::mem::take(&mut self.held);
            self.mark = self.raw.len();
            self.state = State::Open { in_list: false };
        }
    }

    fn tell_text(&mut self, c: char, deltas: &mut Vec<Delta>) {
        if c.is_whitespace() {
            self.blank.push(c);
            return;
        }
        self.tell_blank(deltas);
        self.is_behind_call = false;
        deltas.content(c);
    }

    fn tell_blank(&mut self, deltas: &mut Vec<Delta>) {
        self.blank.drain(..).for_each(|c| deltas.content(c));
    }

    fn read_open(&mut self, c: char, in_list: bool, deltas: &mut Vec<Delta>) {
        match c {
            c if c.is_whitespace() => self.raw.push(c),
            '{' => {
                let call = Box::new(CallScanner::new(Names::clone(&self.names)));
                self.state = State::Object { call, in_list };
                self.queue.push_front(c);
            }
            '[' if self.syntax.has_lists && !in_list => {
                self.raw.push(c);
                self.state = State::Open { in_list: true };
            }
            c if self.syntax.has_names && !in_list && is_name(c) => {
                self.state = State::Name(c.to_string());
                self.raw.push(c);
            }
            c => self.fall_back(c, deltas),
        }
    }

    fn hear(&mut self, news: News, c: char, in_list: bool, deltas: &mut Vec<Delta>) {
        match news {
            News::None => {
                if let State::Object { call, .. } = &self.state
                    && !call.has_begun()
                {
                    self.raw.push(c);
                }
            }
            News::Begins { name, arguments } => self.begin(name, arguments, deltas),
            News::Argument => deltas.arguments(self.calls.saturating_sub(1), c),
            News::Ended => self.end(in_list),
            News::Whole { name, arguments } => {
                self.begin(name, arguments, deltas);
                self.end(in_list);
            }
        }
    }

    /// Tells that a call has begun: what was held back was part of it.
    fn begin(&mut self, name: String, arguments: String, deltas: &mut Vec<Delta>) {
        self.raw.clear();
        self.blank.clear();
        self.mark = 0;
        self.is_behind_call = true;
        let index = self.calls;
        self.calls += 1;
        deltas.push(Delta::Call { index, id: self.ids.of(index), name });
        arguments.chars().for_each(|c| deltas.arguments(index, c));
    }

    fn end(&mut self, in_list: bool) {
        self.state = if in_list { State::InList } else { State::Behind };
    }

    /// Behind a call: its end mark, separators and white space are no content.
    fn read_behind(&mut self, c: char) {
        if let Some(end) = self.syntax.end {
            self.held.push(c);
            if end.starts_with(&*self.held) {
                if self.held == end {
                    self.held.clear();
                    self.blank.clear();
                    self.state = State::Text;
                }
                return;
            }
            // White space in front of the mark, or no mark at all.
            if c.is_whitespace() && self.held.len() == c.len_utf8() {
                self.held.clear();
                self.blank.push(c);
                return;
            }
            self.state = State::Text;
            let held = std::mem::take(&mut self.held);
            held.chars().rev().for_each(|c| self.queue.push_front(c));
        } else if c.is_whitespace() || self.syntax.separators.contains(&c) {
            self.blank.push(c);
        } else {
            // Another call, or content. If it is content, it begins with what was held back.
            let separators = std::mem::take(&mut self.blank);
            self.state = match self.syntax.is_bare && !self.syntax.has_lists && c == '{' {
                true => {
                    self.raw = separators;
                    self.mark = self.raw.len();
                    State::Open { in_list: false }
                }
                false => {
                    self.blank = separators;
                    State::Text
                }
            };
            self.queue.push_front(c);
        }
    }

    fn read_broken(&mut self, c: char, in_arguments: bool, deltas: &mut Vec<Delta>) {
        let mark = self.syntax.end.or(self.syntax.begin);
        self.held.push(c);
        while let Some(first) = self.held.chars().next()
            && !mark.is_some_and(|mark| mark.starts_with(&*self.held))
        {
            self.held.remove(0);
            self.tell_broken(first, in_arguments, deltas);
        }
        if mark.is_some_and(|mark| self.held == mark) {
            let held = std::mem::take(&mut self.held);
            self.state = State::Text;
            // The mark of the next call is read as such; that of this one's end is not told.
            if self.syntax.end.is_none() {
                held.chars().rev().for_each(|c| self.queue.push_front(c));
            }
        }
    }

    fn tell_broken(&mut self, c: char, in_arguments: bool, deltas: &mut Vec<Delta>) {
        match in_arguments {
            true => deltas.arguments(self.calls.saturating_sub(1), c),
            false => deltas.content(c),
        }
    }

    /// What was read since the last thing told is content, and may hold calls behind its mark.
    fn fall_back(&mut self, c: char, deltas: &mut Vec<Delta>) {
        self.state = State::Text;
        self.queue.push_front(c);
        let raw = std::mem::take(&mut self.raw);
        let (mark, rest) = raw.split_at(std::mem::take(&mut self.mark).min(raw.len()));
        mark.chars().for_each(|c| self.tell_text(c, deltas));
        rest.chars().rev().for_each(|c| self.queue.push_front(c));
    }
}

impl Parser for ToolParser {
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        for c in text.chars() {
            self.queue.push_back(c);
            while let Some(c) = self.queue.pop_front() {
                self.read(c, deltas);
            }
        }
    }

    fn finish(&mut self, deltas: &mut Vec<Delta>) {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Text) {
            State::Broken { in_arguments } => {
                held.chars().for_each(|c| self.tell_broken(c, in_arguments, deltas));
            }
            // The end mark was cut.
            State::Behind => {}
            _ => {
                let raw = std::mem::take(&mut self.raw);
                // The rest of a list that was cut is no content.
                let is_rest = |c: char| c.is_whitespace() || c == ',';
                let is_blank = raw.trim_matches(is_rest).is_empty() && self.is_behind_call;
                if !is_blank {
                    raw.chars().chain(held.chars()).for_each(|c| self.tell_text(c, deltas));
                }
            }
        }
        if !self.is_behind_call {
            self.tell_blank(deltas);
        }
        self.blank.clear();
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}
