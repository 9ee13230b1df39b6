//! Work in progress.
pub mod source;

#[cfg(feature = "xla")]
pub use backend_xla as xla;
