//! The device-independent part of Understory.

#![forbid(unsafe_code)]

pub mod engine;
pub mod error;
mod fence;
pub mod kv;
pub mod request;
pub mod schedule;

pub use backend_api as backend;
pub use backend_api::sample;
pub use models::{model, text, weights};
pub use radix_cache::{
    Event as CacheEvent, Namespace, PageId, Policy, Retention, Token, WritePolicy,
};
