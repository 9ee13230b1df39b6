//! A sample's place in a grammar.

use std::fmt;

use engine_core::Token;
use engine_core::request::TokenConstraint;
use llguidance::Matcher;

/// A sample's place in a grammar: gives masks and forced tokens to the engine.
pub struct GrammarConstraint {
    matcher: Matcher,
    /// Tokens that the sample has taken, end tokens among them.
    position: usize,
    /// End tokens among these, all at the end. The matcher doesn't know of them.
    ended: usize,
    /// The stretches that were found to be without a choice, in order, with the position of their
    /// first token. What is forced is decided once, at the first token of a stretch, whether the
    /// engine then appends the tokens together, samples them one by one, or verifies proposals:
    /// another cut of the same bytes into tokens would be another answer.
    forced: Vec<(usize, Vec<Token>)>,
    eos: Vec<Token>,
    forces: bool,
    problem: Option<String>,
}

impl GrammarConstraint {
    /// At the beginning, where `forced` are the tokens without a choice.
    pub(crate) fn new(matcher: Matcher, forced: Vec<Token>, eos: Vec<Token>) -> Self {
        Self {
            matcher,
            position: 0,
            ended: 0,
            forced: Vec::from_iter((!forced.is_empty()).then_some((0, forced))),
            eos,
            forces: true,
            problem: None,
        }
    }

    /// Whether tokens without a choice are appended without sampling (default yes). Such tokens
    /// have no log probabilities, so a request that wants these asks for sampling. Changes no
    /// token.
    #[must_use]
    pub fn forcing(mut self, on: bool) -> Self {
        self.forces = on;
        self
    }

    /// The tokens that must come next, as far as they are known to.
    fn next_forced(&mut self) -> &[Token] {
        let position = self.position;
        let covered = |(start, tokens): &(usize, Vec<Token>)| position < start + tokens.len();
        if !self.forced.last().is_some_and(covered) && self.is_open() {
            let tokens = self.matcher.compute_ff_tokens();
            if !tokens.is_empty() {
                self.forced.push((position, tokens));
            }
        }
        match self.forced.last() {
            Some(stretch) if covered(stretch) && self.ended == 0 => {
                stretch.1.get(position - stretch.0..).unwrap_or_default()
            }
            _ => &[],
        }
    }

    fn is_open(&self) -> bool {
        self.ended == 0 && !self.matcher.is_stopped()
    }

    fn allow_eos(&self, allowed: &mut [u32]) {
        self.eos.iter().for_each(|&token| allow(allowed, token));
    }

    fn keep_problem(&mut self) {
        if self.problem.is_none() {
            let error = self.matcher.get_error().unwrap_or_default();
            self.problem = Some(crate::GrammarError::of_compiler(&error).to_string());
        }
    }
}

impl TokenConstraint for GrammarConstraint {
    fn allow(&mut self, allowed: &mut [u32]) {
        if let Some(&token) = self.next_forced().first() {
            return allow(allowed, token);
        }
        if self.ended > 0 {
            return self.allow_eos(allowed);
        }
        match self.matcher.compute_mask_or_eos() {
            Ok(mask) => {
                for (word, &bits) in allowed.iter_mut().zip(mask.as_slice()) {
                    *word |= bits;
                }
            }
            Err(_) => self.keep_problem(),
        }
    }

    fn advance(&mut self, token: Token) {
        self.position += 1;
        if self.ended > 0 || self.eos.contains(&token) {
            self.ended += 1;
        } else if self.matcher.consume_token(token).is_err() {
            self.keep_problem();
        }
    }

    fn rollback(&mut self, tokens: usize) {
        self.position = self.position.saturating_sub(tokens);
        let ends = tokens.min(self.ended);
        self.ended -= ends;
        if tokens > ends && self.matcher.rollback(tokens - ends).is_err() {
            self.keep_problem();
        }
        while self.forced.last().is_some_and(|(start, _)| *start > self.position) {
            self.forced.pop();
        }
    }

    fn forced(&mut self, tokens: &mut Vec<Token>) {
        if self.forces {
            tokens.extend_from_slice(self.next_forced());
        }
    }

    fn problem(&self) -> Option<String> {
        self.problem.clone()
    }

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self {
            // Caches of its own: samples don't wait for each other's masks.
            matcher: self.matcher.deep_clone(),
            forced: self.forced.clone(),
            eos: self.eos.clone(),
            problem: self.problem.clone(),
            ..*self
        })
    }
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("GrammarConstraint")
            .field("position", &self.position)
            .field("problem", &self.problem)
            .finish_non_exhaustive()
    }
}

fn allow(allowed: &mut [u32], token: Token) {
    if let Some(word) = allowed.get_mut(token as usize / 32) {
        *word |= 1 << (token % 32);
    }
}
