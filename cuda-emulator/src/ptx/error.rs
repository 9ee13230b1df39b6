//! What can be wrong with PTX text.

/// Why PTX text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {problem}")]
pub struct PtxError {
    /// The line of the PTX text, from 1.
    pub line: u32,
    /// What is wrong there.
    pub problem: PtxProblem,
}

/// What is wrong with a line of PTX.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PtxProblem {
    /// A character that PTX doesn't use.
    #[error("unexpected character {0:?}")]
    Character(char),
    /// A string or comment that doesn't end.
    #[error("{0} without an end")]
    Unterminated(&'static str),
    /// A number that can't be read.
    #[error("{0:?} is not a number")]
    Number(String),
    /// Something else was expected.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A directive that the parser doesn't know.
    #[error("unknown directive {0:?}")]
    Directive(String),
    /// A type that PTX doesn't have.
    #[error("unknown type {0:?}")]
    Type(String),
    /// A count or size beyond what a kernel can have.
    #[error("{what} of {value} is more than {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// Operands nested too deep.
    #[error("operands nested too deep")]
    Nested,
    /// An initializer that doesn't fit its variable.
    #[error("the initializer of {0} is longer than the variable")]
    Initializer(String),
    /// A name that was declared twice.
    #[error("{0:?} is declared twice")]
    Twice(String),
    /// A name that wasn't declared.
    #[error("{0:?} is not declared")]
    Unknown(String),
    /// An instruction that the machine doesn't have.
    #[error("unknown instruction {0:?}")]
    Instruction(String),
    /// A modifier that the machine doesn't know for this instruction.
    #[error("{instruction}: unknown modifier {modifier:?}")]
    Modifier {
        /// The whole instruction name.
        instruction: String,
        /// The modifier.
        modifier: String,
    },
    /// A modifier that the instruction needs.
    #[error("{instruction}: needs {what}")]
    Missing {
        /// The whole instruction name.
        instruction: String,
        /// What is missing.
        what: &'static str,
    },
    /// An operand of the wrong kind.
    #[error("{instruction}: operand {index}: {reason}")]
    Operand {
        /// The whole instruction name.
        instruction: String,
        /// Which operand, from 0.
        index: usize,
        /// What is wrong with the operand.
        reason: String,
    },
    /// A number of operands that the instruction doesn't take.
    #[error("{instruction}: {found} operands instead of {expected}")]
    Operands {
        /// The whole instruction name.
        instruction: String,
        /// What it takes.
        expected: usize,
        /// What it was given.
        found: usize,
    },
    /// A call of a function without a body.
    #[error("function {0:?} has no body here")]
    External(String),
}

impl PtxProblem {
    pub(crate) fn at(self, line: u32) -> PtxError {
        PtxError { line, problem: self }
    }
}
