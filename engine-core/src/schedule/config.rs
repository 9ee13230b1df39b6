//! What a scheduler is built with, and what it refuses at the door.

use radix_cache::{CacheConfig, Policy, WritePolicy};

use super::report::ScheduleError;
use super::seeded::SeededBug;
use super::sequence::{Arrival, SequenceId};
use crate::kv::KvPool;

/// What a scheduler is built with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SchedulerConfig {
    /// Tokens in a page.
    pub page_size: usize,
    /// KV capacity in pages.
    pub pages: u32,
    /// Most sequences that run at once; also the number of slots.
    pub max_running: u32,
    /// Most prompt tokens in a step. Rounded down to pages, at least one page.
    pub chunked_prefill_size: usize,
    /// The longest sequence, in tokens.
    pub context_length: usize,
    /// Most sequences that wait.
    pub max_waiting: usize,
    /// Keep computed prefixes after their sequences end, for other requests. Without, only the
    /// samples and forks of one request share, while they live.
    pub cache: bool,
    /// Changes of the cache that are kept until [`Scheduler::drain_cache_events`](super::Scheduler::drain_cache_events) takes them; 0
    /// tells none.
    pub cache_events: usize,
    /// Who goes first.
    pub queue_policy: QueuePolicy,
    /// What is evicted first, on the device and on the host.
    pub eviction_policy: Policy,
    /// A second tier in the memory of the host, for prefixes that have to leave the device. Needs
    /// the cache.
    pub host_tier: Option<HostTierConfig>,
    /// For tests: retract a sequence every so many steps. Without the cache, more than it takes to
    /// compute the longest sequence anew, else nobody gets further.
    pub retract_every: Option<u64>,
    /// For tests: plant a bug. Without the feature `seeded-bugs` it has no effect.
    pub seeded_bug: Option<SeededBug>,
}

/// KV in the memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostTierConfig {
    /// Pages that it holds.
    pub pages: u32,
    /// When pages are copied to it. Default: when their sequence ends.
    pub write: WritePolicy,
    /// Fewer tokens than this are computed again rather than loaded. A load costs a copy and, for
    /// its sequence, the wait for the step that it is started with. Default 64.
    pub min_load_tokens: usize,
}

impl HostTierConfig {
    /// Room for so many pages, otherwise as the defaults are.
    pub fn new(pages: u32) -> Self {
        Self { pages, write: WritePolicy::default(), min_load_tokens: 64 }
    }
}

/// Order of the waiting queue. Resumed sequences, then ones passed over 64 times, precede any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueuePolicy {
    /// In the order of arrival.
    #[default]
    FirstCome,
    /// Longest cached prefix first (Zheng et al., SGLang, 2024). First come above 128 waiting,
    /// since ordering costs a look-up each.
    LongestPrefix,
}

impl SchedulerConfig {
    /// The usual, for a pool of `pages` pages.
    pub fn new(page_size: usize, pages: u32, max_running: u32, context_length: usize) -> Self {
        Self {
            page_size,
            pages,
            max_running,
            chunked_prefill_size: 512,
            context_length,
            max_waiting: 4096,
            cache: true,
            cache_events: 0,
            queue_policy: QueuePolicy::FirstCome,
            eviction_policy: Policy::default(),
            host_tier: None,
            retract_every: None,
            seeded_bug: None,
        }
    }

    /// Most prompt tokens in a step: whole pages, at least one.
    pub fn chunk(&self) -> usize {
        (self.chunked_prefill_size / self.page_size).max(1) * self.page_size
    }

    /// Most new tokens in a step: a decode row for each slot, and a chunk.
    pub fn step_tokens(&self) -> usize {
        self.max_running as usize + self.chunk()
    }

    /// Finds what can never run. Pure, so that a handle can call it before it sends.
    ///
    /// # Errors
    ///
    /// An empty prompt, a limit of zero, a prompt without room for a token in the context, or a
    /// prompt and limit that can never be in the pool together.
    pub fn check(&self, prompt_len: usize, max_tokens: usize) -> Result<(), Refusal> {
        if prompt_len == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(Refusal::NothingToGenerate);
        }
        let context_length = self.context_length;
        if prompt_len >= context_length {
            return Err(Refusal::PromptTooLong { prompt_len, context_length });
        }
        let longest = prompt_len.saturating_add(max_tokens).min(context_length);
        let needed = longest.div_ceil(self.page_size);
        let capacity = self.pages as usize;
        if needed > capacity {
            return Err(Refusal::NeverFits { needed, capacity });
        }
        Ok(())
    }

    /// An empty pool with the tiers that it asks for.
    pub(super) fn pool(&self, cache: CacheConfig) -> Result<KvPool, ScheduleError> {
        let Some(HostTierConfig { pages, write, .. }) = self.host_tier else {
            return Ok(KvPool::new(self.pages, cache)?);
        };
        if !self.cache {
            let reason = "a host tier keeps what the cache does, and that is switched off";
            return Err(ScheduleError::Config(reason.to_owned()));
        }
        Ok(KvPool::with_host(self.pages, cache, pages, self.eviction_policy, write)?)
    }

    pub(super) fn has_bug(&self, bug: SeededBug) -> bool {
        cfg!(feature = "seeded-bugs") && self.seeded_bug == Some(bug)
    }

    pub(super) fn check_arrival(&self, arrival: &Arrival) -> Result<(), Refusal> {
        self.check(arrival.prompt.len(), arrival.max_tokens as usize)
    }
}

/// Why a sequence was refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The limit is zero tokens.
    #[error("max_tokens is 0, so there is nothing to generate")]
    NothingToGenerate,
    /// The prompt leaves no room for a token.
    #[error(
        "the prompt has {prompt_len} tokens, but the context holds {context_length}, the answer included"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt_len: usize,
        /// Tokens in the context.
        context_length: usize,
    },
    /// Prompt and limit need more pages than there are.
    #[error("prompt and max_tokens need {needed} pages of KV, but there are {capacity} in all")]
    NeverFits {
        /// Pages needed.
        needed: usize,
        /// Pages there are.
        capacity: usize,
    },
    /// Too many wait already.
    #[error("the queue is full: {waiting} sequences wait")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The id is in use.
    #[error("sequence {0:?} exists already")]
    Exists(SequenceId),
    /// The sequence to fork doesn't exist, or has ended.
    #[error("there is no sequence {0:?}")]
    Unknown(SequenceId),
}
