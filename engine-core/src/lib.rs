//! The device-independent part of Understory.

pub mod weights;
