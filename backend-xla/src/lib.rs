//! Work in progress: the PJRT client.

pub mod pjrt;
