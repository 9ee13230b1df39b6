//! Test doubles for the engine, and what every backend must pass.
//!
//! - [`shadow`]: a backend that computes nothing but remembers, for every KV position, what was
//!   written there. Whatever a scheduler gets wrong about pages or slots shows as a typed
//!   violation or as a wrong token.
//! - [`interpreter`]: runs a program slowly and clearly: what other backends are compared with.
//! - [`conformance`]: the cases that every backend runs, each a test of its own.
//! - [`faults`]: wraps any executor and makes it fail at chosen steps.
//! - [`null`]: answers at once, for measuring everything but the device.
//! - [`random`]: the small generator that tests draw their cases from, by a seed that they print.

pub mod conformance;
pub mod faults;
pub mod interpreter;
pub mod null;
pub mod random;
pub mod shadow;
