//! What happened since the engine looked last.

use radix_cache::Token;

use super::arrival::{FinishReason, SequenceId};
use super::report::Event;
use crate::backend::{Sampled, Span, StepResult};

/// Owns the events that nobody has read.
#[derive(Debug, Default)]
pub(super) struct News {
    happened: Vec<Happened>,
    /// Likeliest tokens of the events.
    top: Vec<(Token, f32)>,
    /// Scores of prompts.
    scores: Vec<Sampled>,
    vectors: Vec<f32>,
}

#[derive(Debug)]
enum Happened {
    Admitted { id: SequenceId, cached_tokens: u32 },
    Token { id: SequenceId, token: Token, logprob: f32, top: Span },
    Scored { id: SequenceId, position: u32, tokens: Span },
    Pooled { id: SequenceId, positions: u32, vector: Span },
    Finished { id: SequenceId, reason: FinishReason },
}

impl News {
    pub(super) fn admitted(&mut self, id: SequenceId, cached_tokens: usize) {
        self.happened.push(Happened::Admitted { id, cached_tokens: cached_tokens as u32 });
    }

    pub(super) fn token(&mut self, id: SequenceId, sampled: &Sampled, result: &StepResult) {
        let top = self.keep_top(sampled, result);
        let (token, logprob) = (sampled.token, sampled.logprob);
        self.happened.push(Happened::Token { id, token, logprob, top });
    }

    pub(super) fn scored(
        &mut self,
        id: SequenceId,
        position: usize,
        tokens: &[Sampled],
        result: &StepResult,
    ) {
        let start = self.scores.len() as u32;
        for scored in tokens {
            let top = self.keep_top(scored, result);
            self.scores.push(Sampled { top, ..*scored });
        }
        let tokens = Span { start, len: tokens.len() as u32 };
        self.happened.push(Happened::Scored { id, position: position as u32, tokens });
    }

    pub(super) fn pooled(&mut self, id: SequenceId, positions: u32, vector: &[f32]) {
        let span = Span { start: self.vectors.len() as u32, len: vector.len() as u32 };
        self.vectors.extend_from_slice(vector);
        self.happened.push(Happened::Pooled { id, positions, vector: span });
    }

    fn keep_top(&mut self, sampled: &Sampled, result: &StepResult) -> Span {
        if sampled.top.len == 0 {
            return Span::default();
        }
        let start = self.top.len() as u32;
        self.top.extend(result.top.get(sampled.top.range()).unwrap_or_default());
        Span { start, len: self.top.len() as u32 - start }
    }

    pub(super) fn finished(&mut self, id: SequenceId, reason: FinishReason) {
        self.happened.push(Happened::Finished { id, reason });
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Event<'_>> + '_ {
        self.happened.iter().map(|happened| match happened {
            &Happened::Admitted { id, cached_tokens } => Event::Admitted { id, cached_tokens },
            &Happened::Token { id, token, logprob, top } => {
                let logprob = Some(logprob).filter(|logprob| !logprob.is_nan());
                let top = self.top.get(top.range()).unwrap_or_default();
                Event::Token { id, token, logprob, top }
            }
            &Happened::Scored { id, position, tokens } => {
                let tokens = self.scores.get(tokens.range()).unwrap_or_default();
                Event::Scored { id, position, tokens, top: &self.top }
            }
            &Happened::Pooled { id, positions, vector } => {
                let vector = self.vectors.get(vector.range()).unwrap_or_default();
                Event::Pooled { id, positions, vector }
            }
            Happened::Finished { id, reason } => Event::Finished { id: *id, reason },
        })
    }

    pub(super) fn clear(&mut self) {
        self.happened.clear();
        self.top.clear();
        self.scores.clear();
        self.vectors.clear();
    }
}
