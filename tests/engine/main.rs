//! The engine over test backends: the shadow, whose tokens an oracle foretells, and ones that
//! fail, hang and panic. No test waits for a time to pass.

mod cache;
mod constraints;
mod failures;
mod host_tier;
mod processor;
mod requests;
mod shutdowns;
mod streams;
mod support;
