//! What a caller asks for and what comes back.

mod params;

pub use params::{ParamsError, SamplingParams};
