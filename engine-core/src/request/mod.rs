//! What a caller asks for and what comes back.

mod constraint;
mod output;
mod params;
mod prompt;
mod stream;

pub use constraint::TokenConstraint;
pub use output::{
    FinishReason, Finished, GenerationEvent, Output, StopMatch, TokenLogprobs, Usage,
};
pub use params::{ParamsError, SamplingParams};
pub use prompt::{EmbedRequest, Embedding, Prompt, Request};
pub(crate) use stream::{Feed, Reader, stream};
