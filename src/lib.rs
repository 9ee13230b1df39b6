//! Work in progress.
pub mod source;
