//! An answer with thoughts in front and calls within.

use super::ReasoningParser;
use crate::tools::{Delta, Parser};

/// Takes a whole answer apart: thoughts first, and what is behind them into content and calls.
/// Without parsers, all of it is content.
#[derive(Debug, Default)]
pub struct AnswerParser {
    reasoning: Option<ReasoningParser>,
    tools: Option<Box<dyn Parser>>,
    parts: Vec<Delta>,
}

impl AnswerParser {
    /// A parser of one answer.
    #[must_use]
    pub fn new(reasoning: Option<ReasoningParser>, tools: Option<Box<dyn Parser>>) -> Self {
        Self { reasoning, tools, parts: Vec::new() }
    }

    fn pass_on(&mut self, deltas: &mut Vec<Delta>) {
        for part in self.parts.drain(..) {
            match (part, &mut self.tools) {
                (Delta::Content(text), Some(tools)) => tools.push(&text, deltas),
                (part, _) => deltas.push(part),
            }
        }
    }
}

impl Parser for AnswerParser {
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        match &mut self.reasoning {
            Some(reasoning) => reasoning.push(text, &mut self.parts),
            None => self.parts.push(Delta::Content(text.to_owned())),
        }
        self.pass_on(deltas);
    }

    fn finish(&mut self, deltas: &mut Vec<Delta>) {
        if let Some(reasoning) = &mut self.reasoning {
            reasoning.finish(&mut self.parts);
        }
        self.pass_on(deltas);
        if let Some(tools) = &mut self.tools {
            tools.finish(deltas);
        }
    }
}
