//! What a model thinks before it answers, told from the answer.

mod answer;
mod parser;

pub use answer::AnswerParser;
pub use parser::{ReasoningFormat, ReasoningParser};
