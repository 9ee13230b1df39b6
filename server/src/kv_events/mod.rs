//! What the prefix cache holds, told to routers over ZMQ in the format of vLLM and SGLang.
//!
//! A PUB socket sends batches of three frames: the topic, a sequence number (`u64`, big-endian, from
//! 0 without a gap) and a payload in MessagePack. A ROUTER socket answers whoever has missed some: a
//! request is `["", start]`, an answer `["", topic, number, payload]` a batch from `start` on, and at
//! last `["", "", -1, ""]`. Where batches from `start` on are no longer kept, the answer is one batch
//! that clears and then stores the whole tree as it is now: late subscribers become exact. It has the
//! number of the last batch that was published, which subscribers take the next one to follow.
//!
//! ```no_run
//! # async fn start(engine: understory::engine::Engine) -> Result<(), Box<dyn std::error::Error>> {
//! use understory_server::kv_events::{KvEvents, KvEventsConfig};
//!
//! // The engine keeps events: EngineOptions::cache_events.
//! let config = KvEventsConfig::from_json("{\"publisher\": \"zmq\", \"endpoint\": \"tcp://*:5557\"}")?;
//! let events = KvEvents::start(engine, config, None).await?;
//! println!("{}", events.endpoint());
//! # Ok(())
//! # }
//! ```

mod config;
mod log;
mod publisher;
mod replay;
mod wire;

pub use config::KvEventsConfig;
pub use publisher::{KvEvents, KvEventsError, NamespaceNames};
