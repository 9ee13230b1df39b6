//! What an answer is made of besides text, as it comes.

use std::fmt;

/// A piece of an answer. The pieces of one kind (and of one call's arguments), put together, are
/// the same however the answer was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delta {
    /// What the model thinks before it answers.
    Reasoning(String),
    /// What it answers.
    Content(String),
    /// A call begins.
    Call {
        /// Calls are counted from 0.
        index: u32,
        /// What the call's result will be addressed to.
        id: String,
        /// Which function.
        name: String,
    },
    /// A piece of the arguments of the call that began last: JSON, put together.
    Arguments {
        /// Which call.
        index: u32,
        /// The piece.
        text: String,
    },
}

/// Takes an answer apart, however it is cut into pieces.
pub trait Parser: fmt::Debug + Send {
    /// Takes the next piece of the answer, and appends what it completes. What may still turn out
    /// to be part of something else is held back.
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>);

    /// The answer has ended: appends what was held back.
    fn finish(&mut self, deltas: &mut Vec<Delta>);
}

/// An answer, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What the model thought; none if it is empty.
    pub reasoning: Option<String>,
    /// What it answered; none if it is empty.
    pub content: Option<String>,
    /// What it calls.
    pub calls: Vec<ToolCall>,
}

/// A call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// What the call's result will be addressed to.
    pub id: String,
    /// Which function.
    pub name: String,
    /// JSON, unless the answer was cut or the model wrote none.
    pub arguments: String,
}

impl Message {
    /// Takes a whole answer apart.
    pub fn parse(parser: &mut dyn Parser, text: &str) -> Self {
        let mut deltas = Vec::new();
        parser.push(text, &mut deltas);
        parser.finish(&mut deltas);
        Self::of(deltas)
    }

    /// Puts pieces together.
    pub fn of(deltas: impl IntoIterator<Item = Delta>) -> Self {
        let mut message = Self::default();
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => message.reasoning.get_or_insert_default().push_str(&text),
                Delta::Content(text) => message.content.get_or_insert_default().push_str(&text),
                Delta::Call { id, name, .. } => {
                    message.calls.push(ToolCall { id, name, arguments: String::new() });
                }
                Delta::Arguments { text, .. } => {
                    if let Some(call) = message.calls.last_mut() {
                        call.arguments.push_str(&text);
                    }
                }
            }
        }
        message
    }
}

/// Names calls: `call_` and 24 hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub struct CallIds {
    seed: u64,
}

impl CallIds {
    /// Names that differ for different seeds: one for each choice of each answer.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    pub(super) fn of(self, index: u32) -> String {
        let first = mixed(self.seed.wrapping_add(u64::from(index).wrapping_mul(GOLDEN)));
        let second = mixed(first ^ self.seed);
        format!("call_{first:016x}{:08x}", second >> 32)
    }
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finalizer of SplitMix64: different inputs give different outputs.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Appends characters to the last piece where it is of their kind.
pub(crate) trait Deltas {
    fn reasoning(&mut self, c: char);
    fn content(&mut self, c: char);
    fn arguments(&mut self, index: u32, c: char);
}

impl Deltas for Vec<Delta> {
    fn reasoning(&mut self, c: char) {
        match self.last_mut() {
            Some(Delta::Reasoning(text)) => text.push(c),
            _ => self.push(Delta::Reasoning(c.to_string())),
        }
    }

    fn content(&mut self, c: char) {
        match self.last_mut() {
            Some(Delta::Content(text)) => text.push(c),
            _ => self.push(Delta::Content(c.to_string())),
        }
    }

    fn arguments(&mut self, index: u32, c: char) {
        match self.last_mut() {
            Some(Delta::Arguments { index: of, text }) if *of == index => text.push(c),
            _ => self.push(Delta::Arguments { index, text: c.to_string() }),
        }
    }
}
