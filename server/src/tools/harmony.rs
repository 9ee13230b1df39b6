//! Answers in channels: OpenAI's harmony format, which gpt-oss writes.

use super::call::Names;
use super::delta::{CallIds, Delta, Deltas, Parser};

/// Takes an answer in channels apart: `<|channel|>analysis<|message|>..<|end|>` is thoughts, a message to a function
/// (`to=functions.NAME` in its head) is a call, everything else is content.
///
/// The prompt has begun the first message, so the answer begins within its head, or is content where no mark comes. A
/// message to a function that nobody offers is content. The marks are special tokens, which a detokenizer must show.
#[derive(Debug)]
pub(crate) struct HarmonyParser {
    names: Names,
    ids: CallIds,
    /// Whether thoughts are told as such, and not as content.
    separates: bool,
    state: State,
    /// The beginning of a mark, perhaps.
    held: String,
    calls: u32,
}

#[derive(Debug)]
enum State {
    /// The head of a message with its marks, up to its text.
    Head(String),
    Text(Kind),
    /// Between messages.
    Between,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thoughts,
    Content,
    Arguments,
}

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
const MARKS: [&str; 7] = [START, CHANNEL, CONSTRAIN, MESSAGE, "<|end|>", "<|call|>", "<|return|>"];

/// Longest head of a message, in bytes.
const LONGEST_HEAD: usize = 1024;

impl HarmonyParser {
    /// A parser of one answer. `names` are the functions that are offered. Thoughts are content unless `separates`.
    pub(crate) fn new(
        names: impl IntoIterator<Item = String>,
        ids: CallIds,
        separates: bool,
    ) -> Self {
        let names = Names::new(names.into_iter().collect());
        let state = State::Head(String::new());
        Self { names, ids, separates, state, held: String::new(), calls: 0 }
    }

    fn read(&mut self, c: char, deltas: &mut Vec<Delta>) {
        self.held.push(c);
        while !MARKS.iter().any(|mark| mark.starts_with(&*self.held)) {
            let first = self.held.remove(0);
            self.tell(first, deltas);
        }
        if let Some(mark) = MARKS.into_iter().find(|mark| *mark == self.held) {
            self.held.clear();
            self.hear(mark, deltas);
        }
    }

    /// A character that is no mark's.
    fn tell(&mut self, c: char, deltas: &mut Vec<Delta>) {
        match &mut self.state {
            State::Head(head) => {
                head.push(c);
                if head.len() > LONGEST_HEAD || !may_be_head(head) {
                    let head = std::mem::take(head);
                    self.state = State::Text(Kind::Content);
                    head.chars().for_each(|c| deltas.content(c));
                }
            }
            State::Text(Kind::Thoughts) => deltas.reasoning(c),
            State::Text(Kind::Content) => deltas.content(c),
            State::Text(Kind::Arguments) => deltas.arguments(self.calls.saturating_sub(1), c),
            State::Between if c.is_whitespace() => {}
            State::Between => {
                self.state = State::Text(Kind::Content);
                deltas.content(c);
            }
        }
    }

    fn hear(&mut self, mark: &str, deltas: &mut Vec<Delta>) {
        match (mark, &mut self.state) {
            (START, _) => self.state = State::Head(String::new()),
            (CHANNEL | CONSTRAIN, State::Head(head)) => head.push_str(mark),
            (CHANNEL, _) => self.state = State::Head(mark.to_owned()),
            (MESSAGE, State::Head(head)) => {
                let head = std::mem::take(head);
                let kind = self.kind(&head, deltas);
                self.state = State::Text(kind);
            }
            (CONSTRAIN | MESSAGE, _) => {}
            _ => self.state = State::Between,
        }
    }

    /// What the text behind a head is.
    fn kind(&mut self, head: &str, deltas: &mut Vec<Delta>) -> Kind {
        let recipient = word_behind(head, "to=").and_then(|to| to.strip_prefix("functions."));
        match recipient {
            Some(name) if self.names.contains(name) => {
                let index = self.calls;
                self.calls += 1;
                deltas.push(Delta::Call { index, id: self.ids.of(index), name: name.to_owned() });
                Kind::Arguments
            }
            _ if self.separates && word_behind(head, CHANNEL) == Some("analysis") => Kind::Thoughts,
            _ => Kind::Content,
        }
    }
}

impl Parser for HarmonyParser {
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        text.chars().for_each(|c| self.read(c, deltas));
    }

    fn finish(&mut self, deltas: &mut Vec<Delta>) {
        let held = std::mem::take(&mut self.held);
        held.chars().for_each(|c| self.tell(c, deltas));
        // The head of a message that was cut says nothing; without a mark, it is none.
        if let State::Head(head) = std::mem::replace(&mut self.state, State::Between)
            && !head.contains(CHANNEL)
        {
            head.chars().for_each(|c| deltas.content(c));
        }
    }
}

/// Whether a text without its end can be the head of a message: a role and a recipient may stand in front of the mark.
fn may_be_head(head: &str) -> bool {
    let begun = head.trim_start();
    let begun = begun.strip_prefix("assistant").unwrap_or(begun).trim_start();
    begun.contains(CHANNEL)
        || begun.starts_with("to=")
        || "to=".starts_with(begun)
        || "assistant".starts_with(begun)
}

/// The word that follows a mark.
fn word_behind<'a>(head: &'a str, mark: &str) -> Option<&'a str> {
    let (_, rest) = head.split_once(mark)?;
    rest.split([' ', '<']).next()
}
