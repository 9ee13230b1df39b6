//! The command line of `understory serve`, with SGLang's names.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use understory::prelude::*;
use understory::schedule::{QueuePolicy, Speculation};
use understory::source::PluginSource;
use understory::{Policy, WritePolicy};

use super::{Keys, KeysError, Limits, Origins, ServerOptions, Tls, TlsError};
use crate::kv_events::KvEventsConfig;
use crate::reasoning::ReasoningFormat;
use crate::tools::ToolFormat;

/// What is served, and how.
#[derive(Debug, Args)]
#[non_exhaustive]
#[command(args_override_self = true)]
pub struct ServeArguments {
    /// The model, and the engine that runs it.
    #[command(flatten)]
    pub engine: EngineArguments,

    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,

    /// The port to listen on; 0 for any.
    #[arg(long, default_value_t = 30000)]
    pub port: u16,

    /// The name that clients ask for; repeat it for several. Default: as the model was named.
    #[arg(long, value_name = "NAME", action = clap::ArgAction::Append)]
    served_model_name: Vec<String>,

    /// A key that clients must send; repeat it for several.
    #[arg(long, value_name = "KEY", action = clap::ArgAction::Append, env = "UNDERSTORY_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,

    /// A file of keys, `KEY` or `KEY TENANT` a line, that is read again at SIGHUP.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// A PEM file of certificates: serve HTTPS.
    #[arg(long, value_name = "FILE", requires = "ssl_keyfile")]
    ssl_certfile: Option<PathBuf>,

    /// The PEM file of the certificate's key.
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    ssl_keyfile: Option<PathBuf>,

    /// An origin whose pages may ask, or `*`; repeat it for several. Default none.
    #[arg(long, value_name = "ORIGIN", action = clap::ArgAction::Append)]
    cors_allow_origin: Vec<String>,

    /// Connections at once.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().connections,
        value_parser = count().range(1..=MOST_CONNECTIONS))]
    max_connections: usize,

    /// Longest body of a request in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().body_bytes)]
    max_body_bytes: usize,

    /// Seconds for the head of a request, and before an idle connection is closed.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds().range(1..=YEAR))]
    timeout_keep_alive: u64,

    /// Seconds for the body of a request.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds().range(1..=YEAR))]
    timeout_body: u64,

    /// Seconds after which a client that reads nothing is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds().range(1..=YEAR))]
    timeout_write: u64,

    /// Seconds that requests may go on after SIGTERM. Default: until they end.
    #[arg(long, value_name = "SECONDS", value_parser = seconds().range(0..=YEAR))]
    timeout_drain: Option<u64>,

    /// Send a comment when a stream has been silent for so many seconds. Default never: some clients fail on comments.
    #[arg(long, value_name = "SECONDS", value_parser = seconds().range(1..=YEAR))]
    sse_keep_alive: Option<u64>,

    /// Events of `/generate` have what is new, rather than all.
    #[arg(long)]
    incremental_streaming_output: bool,

    /// How the model writes calls of tools: `hermes`, `qwen`, `llama3`, `mistral`, `pythonic`, `gpt-oss`. Default: as
    /// its chat template teaches it.
    #[arg(long, value_name = "FORMAT", value_parser = tool_format)]
    tool_call_parser: Option<ToolFormat>,

    /// How the model marks its thoughts: `qwen3`, `deepseek-r1`. Default: thoughts are content.
    #[arg(long, value_name = "FORMAT", value_parser = reasoning_format)]
    reasoning_parser: Option<ReasoningFormat>,

    /// Publish changes of the cache over ZMQ, for routers: `{"publisher": "zmq", "endpoint": "tcp://*:5557",
    /// "replay_endpoint": "tcp://*:5558", "topic": ""}`.
    #[arg(long, value_name = "JSON", value_parser = kv_events)]
    kv_events_config: Option<KvEventsConfig>,

    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: tracing_subscriber::filter::LevelFilter,
}

/// Which model runs, on what, and within which limits.
#[derive(Debug, Args)]
#[non_exhaustive]
pub struct EngineArguments {
    /// The model: a path to a Hugging Face directory or a GGUF file, `hf:owner/name`, or `default`, which is
    /// SmolLM2-135M-Instruct (98 MB).
    #[arg(value_name = "MODEL")]
    model: Option<String>,

    /// The same, as SGLang names it.
    #[arg(long, value_name = "MODEL", visible_alias = "model", conflicts_with = "model")]
    model_path: Option<String>,

    /// Fetch nothing: take only what is on this machine.
    #[arg(long)]
    offline: bool,

    /// What computes: `cpu`, `cpu:THREADS`, or, where the feature of that name is built in, `xla`, `cuda`, `cuda:DEVICE` or
    /// `cuda:emulate`.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,

    /// The PJRT plugin of the xla device.
    #[arg(long, value_name = "SOURCE")]
    plugin: Option<PluginSource>,

    /// Devices that share the model (xla only).
    #[arg(
        long,
        visible_alias = "tensor-parallel-size",
        value_name = "DEVICES",
        default_value_t = 1
    )]
    tp_size: usize,

    /// In what precision products with weights are computed: `exact`, `bf16`, `int8`, or `auto`, which follows the
    /// format of the weights (cpu only).
    #[arg(long, value_name = "PRECISION", default_value_t = Compute::Auto)]
    compute: Compute,

    /// How KV is stored: `f32`, `f16`, `bf16` or `int8`. Default: `bf16` where less than f32 is computed with,
    /// otherwise what the device prefers.
    #[arg(long, value_name = "FORMAT")]
    kv_format: Option<KvFormat>,

    /// Share of the memory that weights leave, for KV: above 0, at most 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, conflicts_with = "max_total_tokens")]
    mem_fraction_static: f64,

    /// Memory for KV, in tokens.
    #[arg(long, value_name = "TOKENS")]
    max_total_tokens: Option<usize>,

    /// Most prompt tokens computed in a step.
    #[arg(long, value_name = "TOKENS")]
    chunked_prefill_size: Option<usize>,

    /// Most answers that are generated at once. Default: what the KV memory holds, at most 256.
    #[arg(long, value_name = "COUNT")]
    max_running_requests: Option<u32>,

    /// Most answers that wait; then clients get 429.
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = count().range(1..))]
    max_queued_requests: usize,

    /// Tokens in a page of KV, a power of two. Default 16.
    #[arg(long, value_name = "TOKENS")]
    page_size: Option<usize>,

    /// Longest conversation in tokens, prompt and answer together. Default: what the model was made for.
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<usize>,

    /// Keep no computed prefixes for later requests.
    #[arg(long)]
    disable_radix_cache: bool,

    /// Wait for each step before planning the next one.
    #[arg(long)]
    disable_overlap_schedule: bool,

    /// Who goes first: `fcfs`, or `lpm`, the longest cached prefix.
    #[arg(long, value_name = "POLICY", default_value = "fcfs")]
    schedule_policy: SchedulePolicy,

    /// What leaves the cache first.
    #[arg(long, value_name = "POLICY", default_value = "lru")]
    radix_eviction_policy: EvictionPolicy,

    /// Gigabytes of host memory for KV that has to leave the device. Default none.
    #[arg(long, value_name = "GB")]
    hicache_size: Option<f64>,

    /// When KV is copied there.
    #[arg(long, value_name = "POLICY", default_value = "write_through", requires = "hicache_size")]
    hicache_write_policy: HostWritePolicy,

    /// Propose tokens where a text repeats itself and verify several in a step. Changes no token.
    #[arg(long, value_name = "HOW")]
    speculative_algorithm: Option<Proposals>,

    /// Ask for results that don't depend on the batch.
    #[arg(long)]
    enable_deterministic_inference: bool,

    /// Prepare for `/v1/embeddings`, on devices where that takes longer.
    #[arg(long)]
    enable_embeddings: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchedulePolicy {
    Fcfs,
    Lpm,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EvictionPolicy {
    Lru,
    Lfu,
    Fifo,
    Mru,
    Priority,
    Slru,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HostWritePolicy {
    #[value(name = "write_through")]
    Through,
    #[value(name = "write_through_selective")]
    Selective,
    #[value(name = "write_back")]
    Back,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Proposals {
    #[value(name = "NGRAM", alias = "ngram")]
    Ngram,
}

/// What a semaphore can count on every machine.
const MOST_CONNECTIONS: u64 = u32::MAX as u64 >> 3;

/// Clocks can be asked for a time so far ahead.
const YEAR: u64 = 366 * 24 * 60 * 60;

fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new()
}

fn seconds() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new()
}

fn kv_events(text: &str) -> Result<KvEventsConfig, String> {
    KvEventsConfig::from_json(text).map_err(|error| error.to_string())
}

fn tool_format(name: &str) -> Result<ToolFormat, String> {
    let names = || ToolFormat::NAMES.map(|(name, _)| name).join(", ");
    ToolFormat::from_name(name).ok_or_else(|| format!("one of {}", names()))
}

fn reasoning_format(name: &str) -> Result<ReasoningFormat, String> {
    let names = || ReasoningFormat::NAMES.map(|(name, _)| name).join(", ");
    ReasoningFormat::from_name(name).ok_or_else(|| format!("one of {}", names()))
}

impl ServeArguments {
    /// How the server answers.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn options(&self) -> Result<ServerOptions, KeysError> {
        let origins = &self.cors_allow_origin;
        let cors = if origins.iter().any(|origin| origin == "*") {
            Some(Origins::Any)
        } else {
            (!origins.is_empty()).then(|| Origins::Listed(origins.clone()))
        };
        let seconds = Duration::from_secs;
        let served_model_name = match &self.served_model_name[..] {
            [] => vec![self.engine.source().to_owned()],
            names => names.to_vec(),
        };
        Ok(ServerOptions {
            served_model_name,
            keys: Keys::new(&self.api_key, self.api_key_file.clone())?,
            limits: Limits {
                body_bytes: self.max_body_bytes,
                connections: self.max_connections,
                prompts: self.engine.max_queued_requests,
                head_patience: seconds(self.timeout_keep_alive),
                body_patience: seconds(self.timeout_body),
                write_patience: seconds(self.timeout_write),
                drain: self.timeout_drain.map(seconds),
                ..Limits::default()
            },
            cors,
            sse_keep_alive: self.sse_keep_alive.map(seconds),
            incremental_streaming_output: self.incremental_streaming_output,
            kv_events: self.kv_events_config.clone().filter(KvEventsConfig::is_on),
            tool_call_parser: self.tool_call_parser,
            reasoning_parser: self.reasoning_parser,
            tp_size: self.engine.tp_size,
        })
    }

    /// How the engine is set up: it keeps changes of its cache where they are to be published.
    pub fn engine_options(&self) -> EngineOptions {
        /// More than a follower lets wait.
        const EVENTS: usize = 1 << 16;
        let publishes = self.kv_events_config.as_ref().is_some_and(KvEventsConfig::is_on);
        self.engine.options().cache_events(if publishes { EVENTS } else { 0 })
    }

    /// The certificate, if HTTPS is to be served.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn tls(&self) -> Result<Option<Tls>, TlsError> {
        match (&self.ssl_certfile, &self.ssl_keyfile) {
            (Some(certificates), Some(key)) => Tls::from_files(certificates, key).map(Some),
            _ => Ok(None),
        }
    }
}

impl EngineArguments {
    /// The model as it was named.
    pub fn source(&self) -> &str {
        self.model.as_deref().or(self.model_path.as_deref()).unwrap_or("default")
    }

    /// Where the model is fetched.
    pub fn fetch(&self) -> FetchOptions {
        FetchOptions::default().offline(self.offline)
    }

    /// Which device runs the model.
    ///
    /// # Errors
    ///
    /// What is wrong with the flags.
    pub fn backend(&self) -> Result<BackendChoice, understory::BackendChoiceError> {
        match (&*self.device, self.plugin.clone()) {
            ("xla", plugin) => Ok(match plugin {
                Some(plugin) => BackendChoice::Xla { plugin, devices: self.tp_size },
                None => {
                    BackendChoice::Xla { plugin: PluginSource::default(), devices: self.tp_size }
                }
            }),
            (device, _) => device.parse(),
        }
    }

    /// How the engine is set up.
    pub fn options(&self) -> EngineOptions {
        let memory = match self.max_total_tokens {
            Some(tokens) => KvMemory::Tokens(tokens),
            None => KvMemory::Fraction(self.mem_fraction_static),
        };
        // What is no size of memory at all is the engine's to refuse: as much as there can be.
        let bytes = |gigabytes: f64| KvMemory::Bytes((gigabytes * 1e9) as u64);
        let mut options = EngineOptions::default()
            .compute(self.compute)
            .kv_format(self.kv_format)
            .page_size(self.page_size)
            .max_running_requests(self.max_running_requests)
            .kv_memory(memory)
            .context_length(self.context_length)
            .cache(!self.disable_radix_cache)
            .overlap(!self.disable_overlap_schedule)
            .queue_policy(match self.schedule_policy {
                SchedulePolicy::Fcfs => QueuePolicy::FirstCome,
                SchedulePolicy::Lpm => QueuePolicy::LongestPrefix,
            })
            .eviction_policy(match self.radix_eviction_policy {
                EvictionPolicy::Lru => Policy::Lru,
                EvictionPolicy::Lfu => Policy::Lfu,
                EvictionPolicy::Fifo => Policy::Fifo,
                EvictionPolicy::Mru => Policy::Mru,
                EvictionPolicy::Priority => Policy::Priority,
                EvictionPolicy::Slru => Policy::SegmentedLru,
            })
            .host_kv_memory(self.hicache_size.map_or(KvMemory::NONE, bytes))
            .host_write_policy(match self.hicache_write_policy {
                HostWritePolicy::Through => WritePolicy::Through,
                HostWritePolicy::Selective => WritePolicy::ThroughAfterHits(1),
                HostWritePolicy::Back => WritePolicy::Back,
            })
            .max_queued_requests(self.max_queued_requests)
            .deterministic(self.enable_deterministic_inference)
            .embeddings(self.enable_embeddings)
            .speculation(self.speculative_algorithm.map(|Proposals::Ngram| Speculation::default()));
        options.chunked_prefill_size = self.chunked_prefill_size;
        options
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        serve: ServeArguments,
    }

    #[test]
    fn precision_and_kv_format_reach_the_engine() {
        let options = |arguments: &[&str]| {
            let program =
                Program::try_parse_from([&["understory"], arguments].concat()).expect("flags");
            program.serve.engine_options()
        };
        let given = options(&["--compute", "exact", "--kv-format", "int8"]);
        assert_eq!((given.compute, given.kv_format), (Compute::Exact, Some(KvFormat::Int8)));
        let silent = options(&[]);
        assert_eq!((silent.compute, silent.kv_format), (Compute::Auto, None));
        assert!(Program::try_parse_from(["understory", "--compute", "f64"]).is_err());
    }

    #[test]
    fn numbers_out_of_range_are_errors_of_their_flag() {
        for (flag, number) in [
            ("--max-connections", "0"),
            ("--max-connections", "18446744073709551615"),
            ("--max-queued-requests", "0"),
            ("--timeout-keep-alive", "0"),
            ("--timeout-body", "18446744073709551615"),
            ("--timeout-write", "0"),
            ("--timeout-drain", "18446744073709551615"),
            ("--sse-keep-alive", "0"),
        ] {
            let parsed = Program::try_parse_from(["understory", flag, number]);
            let error = parsed.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(flag), "{flag} {number}: {error}");
        }
        for flag in ["--max-connections=1", "--timeout-drain=0", "--max-queued-requests=1"] {
            assert!(Program::try_parse_from(["understory", flag]).is_ok(), "{flag}");
        }
    }
}
