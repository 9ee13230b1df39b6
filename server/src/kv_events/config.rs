//! Where events are published.

use serde::Deserialize;

use super::KvEventsError;

/// Where and how events are published, with SGLang's and vLLM's names (`--kv-events-config`).
/// Members that mean something to their publishers only are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct KvEventsConfig {
    /// `zmq`, or `null` to publish nothing. Default `zmq`.
    pub publisher: String,
    /// Where the PUB socket listens. Default `tcp://*:5557`.
    pub endpoint: String,
    /// Where the ROUTER socket for replays listens, if there is to be one. Default none.
    pub replay_endpoint: Option<String>,
    /// The first frame of each batch, by which subscribers choose. Default empty.
    pub topic: String,
    /// Batches that are kept for replays. Default 10,000.
    pub buffer_steps: usize,
    /// Bytes of batches that are kept for replays. Default 64 MiB.
    pub buffer_bytes: usize,
    /// The number of the engine among those that serve one model together. Default 0.
    pub data_parallel_rank: u32,
}

impl Default for KvEventsConfig {
    fn default() -> Self {
        Self {
            publisher: "zmq".to_owned(),
            endpoint: "tcp://*:5557".to_owned(),
            replay_endpoint: None,
            topic: String::new(),
            buffer_steps: 10_000,
            buffer_bytes: 64 << 20,
            data_parallel_rank: 0,
        }
    }
}

impl KvEventsConfig {
    /// Reads the JSON object that a command line gives.
    ///
    /// # Errors
    ///
    /// [`KvEventsError::Config`].
    pub fn from_json(text: &str) -> Result<Self, KvEventsError> {
        let config: Self = serde_json::from_str(text)
            .map_err(|error| KvEventsError::Config { reason: error.to_string() })?;
        match &*config.publisher {
            "zmq" | "null" => Ok(config),
            other => {
                let reason = format!("publisher must be zmq or null, not {other}");
                Err(KvEventsError::Config { reason })
            }
        }
    }

    /// Whether anything is to be published.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.publisher == "zmq"
    }
}

/// An endpoint as the socket takes it: `*` is every address.
pub(super) fn bindable(endpoint: &str) -> String {
    endpoint.replacen("://*:", "://0.0.0.0:", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vllm_and_sglang_take_is_taken() {
        let text = r#"{"publisher":"zmq","endpoint":"tcp://*:1","replay_endpoint":"tcp://*:2",
            "topic":"kv","buffer_steps":5,"hwm":100000,"max_queue_size":100000,"enable_kv_cache_events":true}"#;
        let config = KvEventsConfig::from_json(text).unwrap();
        assert_eq!((config.topic.as_str(), config.buffer_steps), ("kv", 5));
        assert_eq!(bindable(config.replay_endpoint.as_deref().unwrap()), "tcp://0.0.0.0:2");
        assert!(!KvEventsConfig::from_json("{\"publisher\":\"null\"}").unwrap().is_on());
        for wrong in ["", "[]", "{\"publisher\":\"nats\"}", "{\"buffer_steps\":-1}"] {
            assert!(KvEventsConfig::from_json(wrong).is_err(), "{wrong}");
        }
    }
}
