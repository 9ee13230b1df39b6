//! How the results and errors of steps stand in a log: by what enters a decision.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::backend::{RowFailure, StepError, StepResult};

#[derive(Serialize, Deserialize)]
enum LoggedError {
    Rows(Vec<(u32, String)>),
    KvLost(String),
    Dead(String),
    /// Any other: of a step as bad as lost KV, of copies their failure.
    Other(String),
}

impl LoggedError {
    fn of(error: &StepError) -> Self {
        match error {
            StepError::Rows(failures) => {
                Self::Rows(failures.iter().map(|f| (f.row, f.reason.clone())).collect())
            }
            StepError::KvLost { reason } => Self::KvLost(reason.clone()),
            StepError::Dead { reason } => Self::Dead(reason.clone()),
            other => Self::Other(other.to_string()),
        }
    }

    fn error(self) -> StepError {
        match self {
            Self::Rows(failures) => StepError::Rows(
                failures.into_iter().map(|(row, reason)| RowFailure { row, reason }).collect(),
            ),
            Self::KvLost(reason) => StepError::KvLost { reason },
            Self::Dead(reason) => StepError::Dead { reason },
            Self::Other(reason) => StepError::TransferFailed { reason },
        }
    }
}

pub(super) mod error {
    use serde::{Deserializer, Serializer};

    use super::{Cow, Deserialize, LoggedError, Serialize, StepError};

    pub(in crate::schedule) fn serialize<S: Serializer>(
        error: &Option<Cow<'_, StepError>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        error.as_deref().map(LoggedError::of).serialize(serializer)
    }

    pub(in crate::schedule) fn deserialize<'a, 'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Cow<'a, StepError>>, D::Error> {
        let logged = Option::<LoggedError>::deserialize(deserializer)?;
        Ok(logged.map(|logged| Cow::Owned(logged.error())))
    }
}

pub(super) mod result {
    use radix_cache::Token;
    use serde::{Deserializer, Serializer};

    use super::{Cow, Deserialize, StepResult};
    use crate::backend::{Sampled, Span};

    pub(in crate::schedule) fn serialize<S: Serializer>(
        result: &StepResult,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let answers = result.outputs.iter().map(|answer| {
            let tokens = result.tokens_of(answer).iter().map(|sampled| sampled.token);
            (answer.output, tokens.collect::<Vec<Token>>())
        });
        serializer.collect_seq(answers)
    }

    pub(in crate::schedule) fn deserialize<'a, 'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Cow<'a, StepResult>, D::Error> {
        let answers = Vec::<(u32, Vec<Token>)>::deserialize(deserializer)?;
        let mut result = StepResult::default();
        for (output, tokens) in answers {
            let sampled = |token| Sampled { token, logprob: f32::NAN, top: Span::default() };
            result.push_tokens(output, tokens.into_iter().map(sampled));
        }
        Ok(Cow::Owned(result))
    }
}
