//! The engine over test backends: the shadow, whose tokens an oracle foretells, and ones that
//! fail, hang and panic. No test waits for a time to pass.

mod cache;
mod constraints;
mod failures;
mod first_space;
mod foreign;
mod host_tier;
mod hostile_templates;
mod processor;
mod prompts;
mod random;
#[path = "../../benches/host_tier/replay.rs"]
mod replay;
mod reports;
mod requests;
mod shutdowns;
mod streams;
mod submission;
mod support;
#[path = "../../radix-cache/benches/cache/trace.rs"]
mod trace;
mod traces;
