//! What backends would each write for themselves.
//!
//! A backend takes from here what suits it; nothing in the contract asks for it.

mod liveness;
mod load;
mod memory;
mod output_rows;
mod tickets;

pub use liveness::{Buffers, Liveness, activation_bytes};
pub use load::{check_copies, check_memory, check_options, check_weight_shape, kv_bytes};
pub use memory::available_bytes;
pub use output_rows::{OutputRow, output_rows};
pub use tickets::Tickets;
