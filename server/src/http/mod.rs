//! HTTP around the pure parts: routes, limits, connections.

mod answer;
mod body;
mod connection;
mod control;
mod embeddings;
mod events;
mod guard;
mod info;
mod peer;
mod routes;
mod running;
mod serve;
mod state;

pub(crate) use answer::json_of;
pub(crate) use info::Load;
pub use serve::refuse_until;
pub use state::{Server, ServerError};
