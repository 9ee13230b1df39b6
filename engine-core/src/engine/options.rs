//! How an engine is set up.

use std::path::PathBuf;
use std::time::Duration;

use radix_cache::{Policy, WritePolicy};

use crate::backend::{Compute, KvFormat};
use crate::schedule::{QueuePolicy, Speculation};

/// How an engine is set up. What is `None` is derived from model and machine when the engine is
/// built; [`Engine::limits`](super::Engine::limits) tells what came of it.
///
/// ```
/// use engine_core::engine::{EngineOptions, KvMemory};
///
/// let options = EngineOptions::default().page_size(32).kv_memory(KvMemory::Bytes(1 << 30));
/// assert_eq!(options.page_size, Some(32));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Tokens in a page of KV: a power of two up to 512 that the backend takes. Small pages share
    /// more, large ones cost less to look up. Default 16.
    pub page_size: Option<usize>,
    /// Most requests (more precisely samples) that run at once. Default: as many as the KV memory
    /// holds at [`TYPICAL_TOKENS`](Self::TYPICAL_TOKENS) tokens each, at most 256.
    pub max_running_requests: Option<u32>,
    /// Most prompt tokens computed in a step; longer prompts take several steps, between which
    /// running requests get their tokens. Default 512.
    pub chunked_prefill_size: Option<usize>,
    /// In what precision products with weights are computed. Default
    /// [`Compute::Auto`]: what suits the format of each weight, where that is faster. Answers of
    /// [`Compute::Exact`] are those of other implementations in f32, up to rounding.
    pub compute: Compute,
    /// How KV is stored. Default: bf16 where most of the weights that are multiplied are multiplied in
    /// less than f32 and the backend has bf16, otherwise what the backend prefers.
    pub kv_format: Option<KvFormat>,
    /// Memory for KV. Default half of what the weights leave.
    pub kv_memory: KvMemory,
    /// Longest sequence in tokens, prompt and answer together. Default: what the model was made
    /// for, or the KV memory holds, whichever is less.
    pub context_length: Option<usize>,
    /// Keep computed prefixes for later requests. Default yes.
    pub cache: bool,
    /// Changes of the cache that are kept until [`Engine::take_cache_events`](super::Engine::take_cache_events) takes them. Default 0:
    /// none are told, and nothing is hashed.
    pub cache_events: usize,
    /// Plan a step while the previous one runs. Default yes.
    pub overlap: bool,
    /// Who goes first when not all can. Default first come.
    pub queue_policy: QueuePolicy,
    /// What leaves the prefix cache first, on the device and on the host. Default least recently
    /// used.
    pub eviction_policy: Policy,
    /// Memory of the host for KV that has to leave the device, from where it is loaded back when
    /// a request needs it. A fraction is one of what the backend may use there. Default
    /// [`KvMemory::NONE`]: what leaves the device is forgotten.
    pub host_kv_memory: KvMemory,
    /// When KV is copied to the host. Default when its request ends.
    pub host_write_policy: WritePolicy,
    /// Prefixes on the host that are shorter than this are computed again, not loaded. Default 64
    /// tokens.
    pub host_min_load_tokens: usize,
    /// Most samples that wait; beyond them
    /// [`SubmitError::QueueFull`](crate::error::SubmitError::QueueFull). Default 4096.
    pub max_queued_requests: usize,
    /// A step that takes longer ends the engine: the device hangs. `None` waits for ever. Default
    /// two minutes.
    pub step_deadline: Option<Duration>,
    /// Ask the backend for results that don't depend on the batch, where it doesn't promise that
    /// anyway. Default no.
    pub deterministic: bool,
    /// Prepare for [`Engine::embed`](crate::engine::Engine::embed), which makes the start longer, on
    /// backends where vectors take preparation: XLA. Others embed in any case. Default no.
    pub embeddings: bool,
    /// Propose tokens and verify several in a step, where text repeats itself. Changes no token.
    /// Default no.
    pub speculation: Option<Speculation>,
    /// Record all that the scheduler is told, and what it decides, to a new file here, for
    /// [`replay`](crate::schedule::replay): to look into what happened, or to repeat it. Prompts
    /// and answers are in it, as tokens. Default no.
    pub record_inputs: Option<PathBuf>,
    /// For tests: put a request back every so many steps.
    #[doc(hidden)]
    pub retract_every: Option<u64>,
}

/// How much memory KV takes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum KvMemory {
    /// This many bytes.
    Bytes(u64),
    /// This fraction of what the weights leave of the device's memory. Above 0, at most 1.
    Fraction(f64),
    /// This many tokens, in whole pages.
    Tokens(usize),
}

impl KvMemory {
    /// No memory at all.
    pub const NONE: Self = Self::Bytes(0);
}

impl EngineOptions {
    /// Tokens that a request is assumed to hold on average, where the number of requests that run
    /// at once is derived.
    pub const TYPICAL_TOKENS: usize = 512;
}

backend_api::setters!(EngineOptions {
    page_size: impl Into<Option<usize>>,
    max_running_requests: impl Into<Option<u32>>,
    chunked_prefill_size: impl Into<Option<usize>>,
    compute: Compute,
    kv_format: impl Into<Option<KvFormat>>,
    kv_memory: KvMemory,
    context_length: impl Into<Option<usize>>,
    cache: bool,
    cache_events: usize,
    overlap: bool,
    queue_policy: QueuePolicy,
    eviction_policy: Policy,
    host_kv_memory: KvMemory,
    host_write_policy: WritePolicy,
    host_min_load_tokens: usize,
    max_queued_requests: usize,
    step_deadline: impl Into<Option<Duration>>,
    deterministic: bool,
    embeddings: bool,
    speculation: impl Into<Option<Speculation>>,
    record_inputs: impl Into<Option<PathBuf>>,
});

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            page_size: None,
            max_running_requests: None,
            chunked_prefill_size: None,
            compute: Compute::Auto,
            kv_format: None,
            kv_memory: KvMemory::Fraction(0.5),
            context_length: None,
            cache: true,
            cache_events: 0,
            overlap: true,
            queue_policy: QueuePolicy::default(),
            eviction_policy: Policy::default(),
            host_kv_memory: KvMemory::NONE,
            host_write_policy: WritePolicy::default(),
            host_min_load_tokens: 64,
            max_queued_requests: 4096,
            step_deadline: Some(Duration::from_secs(120)),
            deterministic: false,
            embeddings: false,
            speculation: None,
            record_inputs: None,
            retract_every: None,
        }
    }
}
