//! Why a grammar is refused.

/// Why a grammar can't restrict sampling. Found before anything is sampled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// The text of the grammar is longer than allowed.
    #[error("the grammar has {size} bytes, and at most {limit} are taken")]
    TooLarge {
        /// Bytes of the grammar; of a schema, as compact JSON.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Brackets, rules or schemas nest deeper than allowed.
    #[error("the grammar nests {depth} levels deep, and at most {limit} are taken")]
    TooDeep {
        /// Levels, counted up to the first one too many.
        depth: usize,
        /// The limit.
        limit: usize,
    },
    /// The grammar is well-formed, but compiling it or computing a mask takes more work or memory
    /// than allowed.
    #[error("the grammar is too complex: {reason}")]
    TooComplex {
        /// Which limit was passed.
        reason: String,
    },
    /// A schema uses a keyword, or a value of a keyword, that a grammar can't enforce.
    #[error("at {pointer}: {keyword} is not supported{detail}")]
    Unsupported {
        /// Where in the schema, as a JSON pointer in a fragment: `#/properties/name`.
        pointer: String,
        /// Which keyword.
        keyword: String,
        /// What is supported instead, with a separator in front; may be empty.
        detail: String,
    },
    /// The grammar is malformed, or allows no text at all.
    #[error("{reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer can't be used for grammars.
    #[error("the tokenizer can't take part in grammars: {reason}")]
    Vocabulary {
        /// What is missing.
        reason: String,
    },
}

impl GrammarError {
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { reason: reason.into() }
    }

    /// Sorts a message of the compiler into the kinds of errors.
    pub(crate) fn of_compiler(message: &str) -> Self {
        // Such a message may carry a state, which is for the compiler's authors, or a backtrace.
        let ends = ["\n<non-verbose/>", "\n<state>", "\n<backtrace>"];
        let end = ends.iter().filter_map(|end| message.find(end)).min().unwrap_or(message.len());
        let reason = message[..end].trim().to_owned();
        if reason.starts_with("NoExtension") {
            return Self::invalid("the grammar allows no text");
        }
        let lower = reason.to_lowercase();
        let is_limit = ["fuel", "too complex", "too large", "too many", "limit", "exceeded"];
        match is_limit.iter().any(|word| lower.contains(word)) {
            true => Self::TooComplex { reason },
            false => Self::Invalid { reason },
        }
    }
}
