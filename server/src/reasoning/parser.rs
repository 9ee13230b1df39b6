//! Tells thoughts from the answer by the marks around them.

use crate::tools::{Delta, Deltas, Parser};

/// How a family of models marks its thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReasoningFormat {
    /// `<think>` may be the beginning of an answer, and `</think>` ends the thoughts: Qwen 3.
    Qwen3,
    /// The prompt has begun the thoughts, so the answer begins within them: DeepSeek R1 and the
    /// models taught by it. A `<think>` at the beginning is taken for the prompt's.
    DeepSeekR1,
}

impl ReasoningFormat {
    /// The names that a command line takes: SGLang's and vLLM's.
    pub const NAMES: [(&str, Self); 5] = [
        ("qwen3", Self::Qwen3),
        ("deepseek-r1", Self::DeepSeekR1),
        ("deepseek_r1", Self::DeepSeekR1),
        ("qwen3-thinking", Self::DeepSeekR1),
        ("deepseek-v3", Self::Qwen3),
    ];

    /// The format that a command line names.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// The format of an answer to a prompt, by the prompt's end: a chat template that begins the
    /// thoughts writes `<think>`, one that skips them writes `<think>` and `</think>`.
    #[must_use]
    pub fn of_prompt(self, prompt: &str) -> Option<Self> {
        let end = prompt.trim_end();
        if end.ends_with("</think>") {
            None
        } else if end.ends_with("<think>") {
            Some(Self::DeepSeekR1)
        } else {
            Some(self)
        }
    }
}

const BEGIN: &str = "<think>";
const END: &str = "</think>";

/// Tells thoughts from the answer. Marks belong to neither; every other character belongs to one
/// of the two.
#[derive(Debug)]
pub struct ReasoningParser {
    state: State,
    /// The beginning of a mark, perhaps, with the white space in front of it.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the beginning. Without a mark, it is the beginning of the thoughts or of the answer.
    Beginning {
        in_thoughts: bool,
    },
    Thoughts,
    Answer,
}

impl ReasoningParser {
    /// A parser of one answer.
    #[must_use]
    pub fn new(format: ReasoningFormat) -> Self {
        let in_thoughts = format == ReasoningFormat::DeepSeekR1;
        Self { state: State::Beginning { in_thoughts }, held: String::new() }
    }

    fn read(&mut self, c: char, deltas: &mut Vec<Delta>) {
        match self.state {
            State::Answer => deltas.content(c),
            State::Beginning { in_thoughts } => {
                self.held.push(c);
                let begun = self.held.trim_start();
                if begun == BEGIN {
                    self.held.clear();
                    self.state = State::Thoughts;
                } else if !BEGIN.starts_with(begun) {
                    self.state = if in_thoughts { State::Thoughts } else { State::Answer };
                    let held = std::mem::take(&mut self.held);
                    held.chars().for_each(|c| self.read(c, deltas));
                }
            }
            State::Thoughts => {
                self.held.push(c);
                while !END.starts_with(&*self.held) {
                    deltas.reasoning(self.held.remove(0));
                }
                if self.held == END {
                    self.held.clear();
                    self.state = State::Answer;
                }
            }
        }
    }
}

impl Parser for ReasoningParser {
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        text.chars().for_each(|c| self.read(c, deltas));
    }

    fn finish(&mut self, deltas: &mut Vec<Delta>) {
        let is_thought = match self.state {
            State::Beginning { in_thoughts } => in_thoughts,
            state => state == State::Thoughts,
        };
        for c in std::mem::take(&mut self.held).chars() {
            match is_thought {
                true => deltas.reasoning(c),
                false => deltas.content(c),
            }
        }
    }
}
