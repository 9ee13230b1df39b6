//! The device-independent part of Understory.

// Exactly one block is allowed, where it stands: the memory map of model files.
#![deny(unsafe_code)]

pub mod engine;
pub mod error;
mod fence;
mod files;
pub mod kv;
pub mod model;
pub mod request;
pub mod schedule;
pub mod text;
pub mod weights;

pub use backend_api as backend;
pub use backend_api::sample;
pub use radix_cache::{
    Event as CacheEvent, Namespace, PageId, Policy, Retention, Token, WritePolicy,
};
