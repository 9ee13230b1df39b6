//! What a chat model says: content, reasoning, calls of tools.

/// A piece of what was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Content(String),
    Reasoning(String),
    /// A call begins.
    Call {
        index: u32,
        id: String,
        name: String,
    },
    /// More of the arguments of a call.
    Arguments {
        index: u32,
        json: String,
    },
}

/// Takes a sample's text apart as it comes.
#[derive(Debug, Default)]
pub(crate) struct Speech {}

impl Speech {
    /// All text is content.
    pub(crate) fn plain() -> Self {
        Self::default()
    }

    pub(crate) fn push(&mut self, text: String) -> Vec<Said> {
        vec![Said::Content(text)]
    }

    /// What was held back, when the text has ended.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        Vec::new()
    }
}
