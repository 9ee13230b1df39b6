//! Serves a model over the protocols of OpenAI and SGLang: what `understory serve` runs, and a [`Router`](axum::Router)
//! for services that mount the same routes beside their own.
//!
//! ```no_run
//! use understory_server::{Metrics, Server, ServerOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let metrics = Metrics::new();
//! let engine = metrics.record(|| understory::load("default").start())?;
//! let server = Server::new(engine, ServerOptions::default(), metrics)?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:30000").await?;
//! server.serve(listener, None, std::future::pending()).await;
//! # Ok(())
//! # }
//! ```
//!
//! | module | what is in it |
//! | --- | --- |
//! | `protocol` | what clients send and get: serde types |
//! | `intake` | from a body to requests of the engine: pure functions |
//! | `emit` | from the engine's events to chunks and answers: pure state machines |
//! | `http` | routes, connections, limits, clients that leave |
//! | `metrics` | numbers for Prometheus, under the field's names |
//! | [`config`] | flags, keys, certificates |
//! | [`tools`], [`reasoning`] | calls and thoughts, told from content |
//! | [`kv_events`] | changes of the cache, for routers |
//! | `page` | the page at `/` |
//!
//! Nothing here waits on the runtime's threads for the engine, and dropping what answers a client gives the client's
//! request up.

#![forbid(unsafe_code)]

pub mod config;
mod emit;
mod http;
mod intake;
pub mod kv_events;
mod metrics;
mod page;
mod protocol;
pub mod reasoning;
pub mod tools;

pub use config::{Limits, Origins, ServerOptions};
pub use http::{Server, ServerError, refuse_until};
pub use metrics::Metrics;
