//! What backends would each write for themselves.
//!
//! A backend takes from here what suits it; nothing in the contract asks for it.

mod pack;
mod tickets;

pub use pack::{OutputRow, Packed, output_rows};
pub use tickets::Tickets;
