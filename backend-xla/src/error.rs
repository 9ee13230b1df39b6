//! Why the backend can't be had.

use backend_api::BackendError;

use crate::pjrt::PjrtError;

/// Why an [`XlaBackend`](crate::XlaBackend) can't be made.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XlaError {
    /// The plugin can't be loaded, or has no devices.
    #[error(transparent)]
    Pjrt(#[from] PjrtError),
    /// More devices were asked for than there are.
    #[error(
        "tensor parallelism over {requested} devices, but the platform {platform} has {available}"
    )]
    TensorParallel {
        /// Devices asked for.
        requested: usize,
        /// Devices that there are.
        available: usize,
        /// The platform's name.
        platform: String,
    },
    /// A format that the backend doesn't compute in.
    #[error("can't compute in {format}; F32 and BF16 work")]
    Compute {
        /// The format.
        format: backend_api::weights::Format,
    },
}

impl From<XlaError> for BackendError {
    fn from(error: XlaError) -> Self {
        match error {
            XlaError::Pjrt(error) => device(error, "loading the PJRT plugin"),
            XlaError::TensorParallel { .. } => {
                Self::Option { option: "tensor_parallel", reason: error.to_string() }
            }
            XlaError::Compute { .. } => {
                Self::Option { option: "compute", reason: error.to_string() }
            }
        }
    }
}

/// A device's or plugin's error while `context` was being done.
pub(crate) fn device(error: PjrtError, context: impl Into<String>) -> BackendError {
    BackendError::Device { context: context.into(), message: error.to_string() }
}
