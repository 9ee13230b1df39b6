//! What can go wrong between this crate and a plugin.

use std::path::PathBuf;

use super::sys;

/// The plugin's classification of an error, after `absl::StatusCode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The operation was cancelled.
    Cancelled,
    /// The caller passed something wrong, such as a program that does not compile.
    InvalidArgument,
    /// The operation ran out of time.
    DeadlineExceeded,
    /// Something named does not exist.
    NotFound,
    /// Something to be made exists already.
    AlreadyExists,
    /// The process may not do this.
    PermissionDenied,
    /// Device memory, most often, is exhausted.
    ResourceExhausted,
    /// The system is not in a state for this operation.
    FailedPrecondition,
    /// The operation was aborted.
    Aborted,
    /// An index or a value is out of range.
    OutOfRange,
    /// The plugin does not implement this.
    Unimplemented,
    /// A broken invariant inside the plugin.
    Internal,
    /// The device or a service is unavailable.
    Unavailable,
    /// Data was lost or corrupted.
    DataLoss,
    /// The process has not authenticated.
    Unauthenticated,
    /// The plugin did not say, or used a code of a later version.
    Unknown,
}

impl ErrorCode {
    pub(super) fn from_raw(code: sys::PJRT_Error_Code) -> Self {
        match code {
            sys::PJRT_Error_Code_CANCELLED => Self::Cancelled,
            sys::PJRT_Error_Code_INVALID_ARGUMENT => Self::InvalidArgument,
            sys::PJRT_Error_Code_DEADLINE_EXCEEDED => Self::DeadlineExceeded,
            sys::PJRT_Error_Code_NOT_FOUND => Self::NotFound,
            sys::PJRT_Error_Code_ALREADY_EXISTS => Self::AlreadyExists,
            sys::PJRT_Error_Code_PERMISSION_DENIED => Self::PermissionDenied,
            sys::PJRT_Error_Code_RESOURCE_EXHAUSTED => Self::ResourceExhausted,
            sys::PJRT_Error_Code_FAILED_PRECONDITION => Self::FailedPrecondition,
            sys::PJRT_Error_Code_ABORTED => Self::Aborted,
            sys::PJRT_Error_Code_OUT_OF_RANGE => Self::OutOfRange,
            sys::PJRT_Error_Code_UNIMPLEMENTED => Self::Unimplemented,
            sys::PJRT_Error_Code_INTERNAL => Self::Internal,
            sys::PJRT_Error_Code_UNAVAILABLE => Self::Unavailable,
            sys::PJRT_Error_Code_DATA_LOSS => Self::DataLoss,
            sys::PJRT_Error_Code_UNAUTHENTICATED => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}

/// An error of the PJRT client.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PjrtError {
    /// The shared library can't be read.
    #[error("can't read the PJRT plugin {path}: {message}", path = path.display())]
    Unreadable {
        /// The plugin's path.
        path: PathBuf,
        /// What the operating system says.
        message: String,
    },
    /// The shared library is for another processor.
    #[error(
        "the PJRT plugin {path} is built for ELF machine {found}, and this process runs on \
         {expected}", path = path.display()
    )]
    WrongArchitecture {
        /// The plugin's path.
        path: PathBuf,
        /// `e_machine` of the plugin.
        found: u16,
        /// `e_machine` of this process.
        expected: u16,
    },
    /// The file is no shared library, or a library that it needs is missing.
    #[error("can't load the PJRT plugin {path}: {message}", path = path.display())]
    Load {
        /// The plugin's path.
        path: PathBuf,
        /// What the dynamic linker says.
        message: String,
    },
    /// A shared library without the entry point of a PJRT plugin.
    #[error("{path} is not a PJRT plugin: it does not export GetPjrtApi", path = path.display())]
    NotAPlugin {
        /// The library's path.
        path: PathBuf,
    },
    /// The plugin speaks a version of the API that this client does not.
    #[error(
        "the PJRT plugin {path} has API version {}.{}; versions {}.{} and later {}.x work",
        found.0, found.1, oldest.0, oldest.1, oldest.0, path = path.display()
    )]
    ApiVersion {
        /// The plugin's path.
        path: PathBuf,
        /// Major and minor version of the plugin.
        found: (i32, i32),
        /// The oldest version that works.
        oldest: (i32, i32),
    },
    /// libtpu would wait for minutes on a metadata server.
    #[error(
        "{path} is libtpu, which hangs at load off a TPU host unless the environment has \
         TPU_SKIP_MDS_QUERY=1: call backend_xla::pjrt::disable_tpu_metadata_query at the start of \
         main", path = path.display()
    )]
    TpuMetadataQuery {
        /// The plugin's path.
        path: PathBuf,
    },
    /// The plugin lacks a function.
    #[error("the PJRT plugin does not offer {function}")]
    Missing {
        /// The name of the C function.
        function: &'static str,
    },
    /// The plugin returned an error.
    #[error("{function}: {message} ({code:?})")]
    Call {
        /// The C function, or what was waited for.
        function: &'static str,
        /// The plugin's classification.
        code: ErrorCode,
        /// The plugin's words.
        message: String,
    },
    /// The client has no device that this process can use.
    #[error("the PJRT platform {platform} has no addressable device")]
    NoDevices {
        /// The platform's name.
        platform: String,
    },
    /// A device index past the last device.
    #[error("there is no device {index}: the client has {count}")]
    NoSuchDevice {
        /// The index asked for.
        index: usize,
        /// How many devices there are.
        count: usize,
    },
    /// Host bytes that don't fit the shape.
    #[error("a buffer of {element:?} with shape {dims:?} takes {expected} bytes; {found} given")]
    HostSize {
        /// The element type.
        element: super::ElementType,
        /// The dimensions.
        dims: Vec<i64>,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Arguments that are not the same list on each device.
    #[error(
        "an execution on {devices} devices needs as many argument lists, of one length and with \
         the same arguments donated; list {list} differs"
    )]
    Arguments {
        /// The devices that the executable runs on.
        devices: usize,
        /// The first argument list that does not fit.
        list: usize,
    },
    /// Something did not complete in time.
    #[error("{what} did not complete in time")]
    Timeout {
        /// What was waited for.
        what: &'static str,
    },
}

impl PjrtError {
    /// The plugin's classification, where the plugin reported the error.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }
}
