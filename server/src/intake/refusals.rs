//! The engine's errors as clients are told.

use understory::error::{GenerationError, SubmitError};
use understory::one_line;
use understory::request::ParamsError;
use understory::schedule::Refusal;
use understory::text::TextError;

use crate::protocol::Refused;

/// Why a request was not taken. `prompt` is the parameter with the prompt.
pub(crate) fn refused(error: &SubmitError, prompt: &str) -> Refused {
    let message = one_line(error);
    match error {
        SubmitError::OneOfSeveral { index, error } => {
            let param = format!("{prompt}[{index}]");
            refused(error, &param)
        }
        SubmitError::Params(error) => Refused::invalid(Some(param(error)), message),
        SubmitError::Refused(Refusal::PromptTooLong { .. } | Refusal::NeverFits { .. }) => {
            Refused::invalid(Some(prompt), message).code("context_length_exceeded")
        }
        SubmitError::Refused(Refusal::NothingToGenerate) => {
            Refused::invalid(Some("max_tokens"), message)
        }
        SubmitError::QueueFull { .. } | SubmitError::Refused(Refusal::QueueFull { .. }) => {
            Refused::queue_full(message)
        }
        SubmitError::ShuttingDown | SubmitError::Dead(_) => Refused::server(503, message),
        SubmitError::Text(TextError::EmptyStopString { .. }) => {
            Refused::invalid(Some("stop"), message)
        }
        SubmitError::NoEmbeddings => Refused::invalid(None, message).code("unsupported"),
        SubmitError::OwnThread => Refused::server(500, message),
        _ => Refused::invalid(Some(prompt), message),
    }
}

/// Why a stream ended without a finish.
pub(crate) fn ended(error: &GenerationError) -> Refused {
    let status = match error {
        GenerationError::Dead(_) | GenerationError::GivenUp { .. } => 503,
        _ => 500,
    };
    Refused::server(status, one_line(error))
}

fn param(error: &ParamsError) -> &'static str {
    match error {
        ParamsError::OutOfRange { name, .. }
        | ParamsError::UnknownToken { name, .. }
        | ParamsError::TooMany { name, .. } => name,
        ParamsError::EmptyStop { .. } => "stop",
        ParamsError::MinAboveMax { .. } => "min_tokens",
        _ => "sampling_params",
    }
}
