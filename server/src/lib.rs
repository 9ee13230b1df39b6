//! Serves models over the field's protocols.

pub mod reasoning;
pub mod tools;
