//! Reads what other people's model files hold. Three questions, a module each:
//!
//! | module | answers |
//! | --- | --- |
//! | [`model`] | which architecture the files describe, as a [`Program`](model::Program) for a backend |
//! | [`weights`] | where each tensor lies, and in which format |
//! | [`text`] | how text becomes tokens and tokens become text: vocabulary, chat template, detokenizer |
//!
//! The files come from strangers. A file that can't be used is refused with a typed error that names
//! the reason; no file makes this crate panic, hang or take memory out of proportion to its size.
//! The crate knows neither the scheduler nor a device.

// Exactly one block is allowed, where it stands: the memory map of model files.
#![deny(unsafe_code)]

mod files;
pub mod model;
pub mod text;
pub mod weights;

pub(crate) use backend_api::clip;
