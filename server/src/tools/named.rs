//! An answer that is the arguments of one function.

use super::delta::{CallIds, Delta, Deltas, Parser};

/// Takes a whole answer for the arguments of a function that the request has named: the grammar of
/// [`tool_grammar`](super::tool_grammar) makes it such.
#[derive(Debug)]
pub struct NamedParser {
    name: Option<String>,
    ids: CallIds,
}

impl NamedParser {
    /// A parser of one answer.
    #[must_use]
    pub fn new(name: String, ids: CallIds) -> Self {
        Self { name: Some(name), ids }
    }

    fn begin(&mut self, deltas: &mut Vec<Delta>) {
        if let Some(name) = self.name.take() {
            deltas.push(Delta::Call { index: 0, id: self.ids.of(0), name });
        }
    }
}

impl Parser for NamedParser {
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        if !text.is_empty() {
            self.begin(deltas);
            text.chars().for_each(|c| deltas.arguments(0, c));
        }
    }

    fn finish(&mut self, deltas: &mut Vec<Delta>) {
        self.begin(deltas);
    }
}
