//! Why a backend can't be had or can't compile.

use crate::program::ProgramError;
use crate::weights::{Format, WeightsError};

/// Why a backend can't be had or can't compile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A weight can't be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The program is not well formed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A tensor has another shape than the program says.
    #[error("tensor `{name}` has shape {found:?}, but the program needs {expected:?}")]
    Shape {
        /// The tensor's Hugging Face name.
        name: String,
        /// Shape that the program declares.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// The backend can't compute with a tensor's format.
    #[error("tensor `{name}` is {format:?}, which the {backend} backend can't read")]
    Format {
        /// The tensor's Hugging Face name.
        name: String,
        /// Its format.
        format: Format,
        /// The backend's name.
        backend: &'static str,
    },
    /// An operation or option that the backend doesn't have.
    #[error("the {backend} backend doesn't support {what}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What was asked of it.
        what: String,
    },
    /// The device's memory is too small.
    #[error("{what} needs {needed} bytes, but the device has {available}")]
    Memory {
        /// What was to be placed.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// An option that makes no sense.
    #[error("invalid {option}: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The device, its driver or its plugin failed.
    #[error("{context}: {message}")]
    Device {
        /// What was being done.
        context: String,
        /// What the device said.
        message: String,
    },
}
