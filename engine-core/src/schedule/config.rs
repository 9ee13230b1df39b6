//! What a scheduler is built with, and what it refuses at the door.

use radix_cache::{Policy, WritePolicy};
use serde::{Deserialize, Serialize};

use super::arrival::{Arrival, PromptWant};
use super::error::{Refusal, ScheduleError};
use crate::kv::GroupKind;

/// What a scheduler is built with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SchedulerConfig {
    /// Tokens in a page.
    pub page_size: usize,
    /// The kinds of the executor's page groups, in their order. Groups of one kind share page
    /// numbers and tables, so each of them has as many pages. Default: one full group.
    pub groups: Vec<GroupKind>,
    /// KV capacity of each full group in pages. Where every group is windowed, the number of
    /// pages that the prefix cache may count; nothing stores them.
    pub pages: u32,
    /// What windowed groups have; needed if and only if there are any.
    pub windowed: Option<WindowedConfig>,
    /// Most sequences that run at once; also the number of slots.
    pub max_running: u32,
    /// Most prompt tokens in a step. Rounded down to pages, at least one page.
    pub chunked_prefill_size: usize,
    /// Most tokens of prompts in a step after which something is wanted (scores, means of vectors).
    /// Whole pages, at least one. Default 64.
    pub prompt_outputs: usize,
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
    /// Propose tokens and verify several in a step. Default: no.
    pub speculation: Option<Speculation>,
}

/// The pages of windowed groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowedConfig {
    /// How many positions a token attends to, its own included. Where windows differ, the widest.
    pub window: usize,
    /// KV capacity of each windowed group in pages.
    pub pages: u32,
}

/// How tokens are proposed: the run that followed the last occurrence of the latest tokens, in
/// prompt or answer, is expected again (prompt look-up; Saxena, 2023; n-gram speculation in vLLM).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Speculation {
    /// Most tokens proposed for one sequence in a step. Default 8.
    pub max_draft: u8,
    /// So many of the latest tokens must have occurred before. Default 3.
    pub min_match: u8,
    /// The last occurrence is looked for among so many of the latest tokens. Default 4096.
    pub lookback: u32,
    /// Rows that decode and the tokens proposed for them are at most so many in a step: up to there a
    /// device is taken to be busy reading weights, so that more tokens cost little. From so many
    /// rows on nothing is proposed. Default 32.
    pub step_tokens: u32,
}

backend_api::setters!(Speculation {
    max_draft: u8,
    min_match: u8,
    lookback: u32,
    step_tokens: u32
});

impl Default for Speculation {
    fn default() -> Self {
        Self { max_draft: 8, min_match: 3, lookback: 4096, step_tokens: 32 }
    }
}

/// KV in the memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
            groups: vec![GroupKind::Full],
            pages,
            windowed: None,
            max_running,
            chunked_prefill_size: 512,
            prompt_outputs: 64,
            context_length,
            max_waiting: 4096,
            cache: true,
            cache_events: 0,
            queue_policy: QueuePolicy::FirstCome,
            eviction_policy: Policy::default(),
            host_tier: None,
            retract_every: None,
            speculation: None,
        }
    }

    /// Most prompt tokens in a step: whole pages, at least one.
    pub fn chunk(&self) -> usize {
        (self.chunked_prefill_size / self.page_size).max(1) * self.page_size
    }

    /// Most new tokens in a step: a decode row for each slot, proposed tokens, and a chunk.
    pub fn step_tokens(&self) -> usize {
        self.step_outputs() - self.prompt_outputs() + self.chunk()
    }

    /// Most tokens of a step after which something is wanted: one for each slot, proposed ones, and
    /// `prompt_outputs`.
    pub fn step_outputs(&self) -> usize {
        let proposed = self.speculation.map_or(0, |s| s.step_tokens as usize);
        self.max_running as usize + proposed + self.prompt_outputs()
    }

    /// Most tokens of prompts in a step after which something is wanted, in whole pages.
    pub(super) fn prompt_outputs(&self) -> usize {
        (self.prompt_outputs / self.page_size).max(1) * self.page_size
    }

    /// Most tokens that are proposed for one sequence in a step.
    pub(super) fn most_drafted(&self) -> usize {
        self.speculation.map_or(0, |s| usize::from(s.max_draft).min(s.step_tokens as usize))
    }

    /// Finds what can never run. Pure, so that a handle can call it before it sends.
    ///
    /// # Errors
    ///
    /// An empty prompt, nothing to do, a prompt without room for a token in the context (with a limit of 0: for
    /// itself), or a prompt and limit that can never be in the pool together.
    pub fn check(
        &self,
        prompt_len: usize,
        max_tokens: usize,
        want: PromptWant,
    ) -> Result<(), Refusal> {
        if prompt_len == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if max_tokens == 0 && want.positions(prompt_len).is_empty() {
            return Err(Refusal::NothingToGenerate);
        }
        let context_length = self.context_length;
        if prompt_len.saturating_add(max_tokens.min(1)) > context_length {
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

    /// Whether a scheduler can be built so.
    pub(super) fn validate(&self) -> Result<(), ScheduleError> {
        let refuse = |reason: String| Err(ScheduleError::Config(reason));
        if self.max_running == 0
            || self.pages == 0
            || self.page_size == 0
            || self.context_length < 2
        {
            return refuse(format!(
                "{} slots, {} pages of {} tokens and a context of {} tokens can't serve a request",
                self.max_running, self.pages, self.page_size, self.context_length
            ));
        }
        if self.groups.is_empty() || self.groups.len() >= usize::from(u8::MAX) {
            return refuse(format!("{} page groups", self.groups.len()));
        }
        if self.groups.contains(&GroupKind::Windowed) != self.windowed.is_some() {
            return refuse("windowed groups need a window and pages, others none".to_owned());
        }
        if self.host_tier.is_some() && !self.cache {
            let reason = "a host tier keeps what the cache does, and that is switched off";
            return refuse(reason.to_owned());
        }
        let Some(WindowedConfig { window, pages }) = self.windowed else { return Ok(()) };
        if self.host_tier.is_some() {
            let reason = "a prefix comes back from the host without the pages of its window, so \
                          windowed groups and a host tier can't be used together";
            return refuse(reason.to_owned());
        }
        // What one sequence needs to decode, however long it is, or all of it.
        let reach = window.saturating_sub(1).div_ceil(self.page_size);
        let drafts = self.most_drafted().div_ceil(self.page_size);
        let longest = self.context_length.div_ceil(self.page_size);
        let needed = longest.min(reach + 2 + drafts);
        if (pages as usize) < needed {
            return refuse(format!(
                "a window of {window} tokens takes {needed} pages, but windowed groups have {pages}"
            ));
        }
        Ok(())
    }

    pub(super) fn check_arrival(&self, arrival: &Arrival) -> Result<(), Refusal> {
        self.check(arrival.prompt.len(), arrival.max_tokens as usize, arrival.want)
    }
}
