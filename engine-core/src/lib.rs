//! The device-independent part of Understory.

// Exactly one block is allowed, where it stands: the memory map of model files.
#![deny(unsafe_code)]

pub mod text;
pub mod weights;
