//! Limits on what grammars may cost, and how JSON is written.

use std::time::Duration;

use llguidance::api::ParserLimits;

/// What grammars may cost, and how JSON is written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GrammarOptions {
    /// Most bytes of a grammar's text. Default 64 KiB.
    pub max_size: usize,
    /// How deep brackets, rules and schemas may nest. Default 64.
    pub max_depth: usize,
    /// Most white space between two tokens of JSON, in characters; 0 for compact JSON. Default 24,
    /// which holds a line break and an indentation. A bound keeps a model from writing blanks
    /// until its limit.
    pub json_white_space: usize,
    /// Most work of compiling a grammar, in thousands of the compiler's units: about 20 µs each on
    /// a core of a server. Default 1000.
    pub compile_work: u64,
    /// Longest time of compiling a grammar. Default 10 seconds.
    pub compile_time: Duration,
    /// Most work of one mask, in thousands of units: about 70 µs each. Default 100. A grammar that
    /// passes this ends its own sample.
    pub mask_work: u64,
    /// Most states of the lexer of one sample: about 2 KiB each. Default 12,500.
    pub max_states: usize,
    /// Compiled grammars that are kept for requests that state the same grammar again. Default 32.
    pub cached_grammars: usize,
}

impl Default for GrammarOptions {
    fn default() -> Self {
        Self {
            max_size: 64 << 10,
            max_depth: 64,
            json_white_space: 24,
            compile_work: 1000,
            compile_time: Duration::from_secs(10),
            mask_work: 100,
            max_states: 12_500,
            cached_grammars: 32,
        }
    }
}

impl GrammarOptions {
    /// See [`json_white_space`](Self::json_white_space).
    #[must_use]
    pub fn json_white_space(mut self, characters: usize) -> Self {
        self.json_white_space = characters;
        self
    }

    /// See [`max_size`](Self::max_size).
    #[must_use]
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.max_size = bytes;
        self
    }

    /// See [`cached_grammars`](Self::cached_grammars).
    #[must_use]
    pub fn cached_grammars(mut self, grammars: usize) -> Self {
        self.cached_grammars = grammars;
        self
    }

    pub(crate) fn parser_limits(&self) -> ParserLimits {
        ParserLimits {
            initial_lexer_fuel: self.compile_work.saturating_mul(1000),
            step_lexer_fuel: self.mask_work.saturating_mul(1000),
            max_lexer_states: self.max_states,
            max_grammar_size: self.max_size,
            verbose_errors: false,
            ..ParserLimits::default()
        }
    }
}
