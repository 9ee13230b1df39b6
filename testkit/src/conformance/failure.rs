//! How a case fails.

use engine_core::Token;
use engine_core::backend::{BackendError, StepError};
use engine_core::model::{ConfigError, ProgramError};
use engine_core::weights::TensorError;

/// Why a backend doesn't conform.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A program that it must compile was refused.
    #[error("the program `{program}` was refused")]
    Compile {
        /// The program's name.
        program: String,
        /// What the backend said.
        #[source]
        source: BackendError,
    },
    /// A step that must run failed.
    #[error("step {step} failed")]
    Step {
        /// The step's number.
        step: u64,
        /// What the executor said.
        #[source]
        source: StepError,
    },
    /// A log probability is too far from the reference's.
    #[error(
        "{what}: the log probability of token {token} is {found}, but the reference has {expected} (tolerance {tolerance})"
    )]
    LogProbability {
        /// Which answer.
        what: String,
        /// The token.
        token: Token,
        /// The reference's.
        expected: f32,
        /// The backend's.
        found: f32,
        /// What is allowed.
        tolerance: f32,
    },
    /// Something other than a number is wrong.
    #[error("{what}: expected {expected}, found {found}")]
    Wrong {
        /// What was looked at.
        what: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The backend has no support for what the case is about. Not a failure where the backend's
    /// suite declares it.
    #[error("skipped: {what}")]
    Skipped {
        /// What it doesn't support.
        what: String,
    },
    /// The case itself is at fault: a program, a configuration or weights that don't fit together.
    #[error("the case is malformed")]
    Case(#[from] CaseError),
}

/// A case that is not well formed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaseError {
    /// Its program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Its model's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its weights.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A weight of more dimensions than a tensor can have.
    #[error("the case has a weight that is no vector, matrix or stack of matrices")]
    Rank,
    /// It asks for more pages, slots or positions than it set up.
    #[error("the case has too few {what}")]
    TooFew {
        /// Of what.
        what: &'static str,
    },
}

impl Failure {
    /// That `what` is not as it must be.
    pub(super) fn wrong(
        what: impl Into<String>,
        expected: impl std::fmt::Debug,
        found: impl std::fmt::Debug,
    ) -> Self {
        let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
        Self::Wrong { what: what.into(), expected, found }
    }
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        Self::Case(error.into())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Case(error.into())
    }
}

impl From<TensorError> for Failure {
    fn from(error: TensorError) -> Self {
        Self::Case(error.into())
    }
}

/// Fails with the operands unless they are equal.
pub(super) fn expect_equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &T,
    found: &T,
) -> Result<(), Failure> {
    if expected == found { Ok(()) } else { Err(Failure::wrong(what, expected, found)) }
}
