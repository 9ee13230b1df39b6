//! Serves models over the field's protocols.

pub mod kv_events;
pub mod reasoning;
pub mod tools;
