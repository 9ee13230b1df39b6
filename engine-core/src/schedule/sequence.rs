//! One stream of tokens being generated, and the phase that it is in.

use std::ops::Range;
use std::sync::Arc;

use radix_cache::{Namespace, Retention, Token};
use slotmap::new_key_type;

use super::arrival::{Arrival, FinishReason, PromptWant, SequenceId};
use super::error::ScheduleError;
use super::pages::Holding;
use super::proposer::Drafting;
use crate::backend::SlotSampling;

new_key_type! {
    /// A sequence in the scheduler. Generational: never names another sequence later.
    pub(super) struct SequenceKey;
}

/// A sequence: what stays the same while it lives, its known tokens, and its phase.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// The known tokens: prompt, then generated.
    pub(super) tokens: Vec<Token>,
    pub(super) prompt_len: usize,
    pub(super) max_tokens: usize,
    pub(super) stop_tokens: Arc<[Token]>,
    pub(super) sampling: Arc<SlotSampling>,
    pub(super) namespace: Namespace,
    pub(super) retention: Retention,
    pub(super) constrained: bool,
    pub(super) priority: i32,
    pub(super) want: PromptWant,
    /// The positions after which something is wanted and was not told yet.
    pub(super) unanswered: Range<usize>,
    /// `None` where nothing may be proposed for it.
    pub(super) drafting: Option<Drafting>,
    /// Order of arrival.
    pub(super) arrival: u64,
    pub(super) phase: Phase,
}

/// Where a sequence is, with what it has only there.
#[derive(Debug)]
pub(super) enum Phase {
    Waiting(Waiting),
    /// It waits for a part of its prefix that is on its way from the host.
    Loading(Waiting),
    Running(Running),
}

/// What is known of a sequence while it waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    /// It ran before and goes before any policy.
    pub(super) resumed: bool,
    /// How often a later one was admitted before it.
    pub(super) passed_over: u32,
    /// How often it waited for another one to compute their common prefix, or for room to load.
    pub(super) held: u32,
    /// Positions that were loaded for it since it began to wait.
    pub(super) loaded: Range<usize>,
    /// Something was loaded for it, or tried to be, since it began to wait.
    pub(super) has_loaded: bool,
}

/// What a running sequence holds, and how far it has come.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) holding: Holding,
    /// Positions whose KV some launched step writes.
    pub(super) launched: usize,
    /// Positions whose KV a retired step wrote.
    pub(super) computed: usize,
    /// Tokens that launched rows will produce, one each.
    pub(super) pending: usize,
    /// A launched row verifies proposals. How many tokens come of it is not known, so no row
    /// follows until it is committed.
    pub(super) is_verifying: bool,
    /// Counts the times that a sequence began to run: tells whose a launched row is.
    pub(super) run: u64,
}

impl Sequence {
    pub(super) fn new(arrival: Arrival, number: u64, drafting: Option<Drafting>) -> Self {
        let Arrival { id, prompt, sampling, max_tokens, stop_tokens, .. } = arrival;
        let Arrival { namespace, retention, constrained, priority, want, .. } = arrival;
        Self {
            id,
            prompt_len: prompt.len(),
            max_tokens: max_tokens as usize,
            stop_tokens,
            sampling,
            namespace,
            retention,
            constrained,
            priority,
            want,
            unanswered: want.positions(prompt.len()),
            drafting,
            tokens: prompt,
            arrival: number,
            phase: Phase::Waiting(Waiting::default()),
        }
    }

    /// Tokens on the host.
    pub(super) fn known(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Positions that its longest form takes. The KV of its last token is never needed, but where a
    /// vector is made of it.
    pub(super) fn longest(&self) -> usize {
        (self.prompt_len + self.max_tokens).saturating_sub(1).max(self.unanswered.end)
    }

    /// Known tokens that are to be computed: all, unless only something of the prompt is wanted.
    pub(super) fn to_compute(&self) -> usize {
        if self.max_tokens == 0 { self.unanswered.end } else { self.known() }
    }

    /// The tokens that may be taken from the cache: one must be computed, to have logits, and all
    /// after which something is wanted.
    pub(super) fn matchable(&self) -> &[Token] {
        let first = if self.unanswered.is_empty() { usize::MAX } else { self.unanswered.start };
        &self.tokens[..self.known().saturating_sub(1).min(first)]
    }

    /// Appends a known token. Returns the reason if it is the last one.
    pub(super) fn append(&mut self, token: Token) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.stop_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else if self.generated() >= self.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    pub(super) fn running(&self) -> Option<&Running> {
        match &self.phase {
            Phase::Running(running) => Some(running),
            Phase::Waiting(_) | Phase::Loading(_) => None,
        }
    }

    /// What a running sequence has; an error if it doesn't run, though whoever asks has reason to
    /// think so.
    pub(super) fn running_mut(&mut self) -> Result<&mut Running, ScheduleError> {
        match &mut self.phase {
            Phase::Running(running) => Ok(running),
            _ => Err(ScheduleError::NotRunning { id: self.id }),
        }
    }

    pub(super) fn waiting(&self) -> Option<&Waiting> {
        match &self.phase {
            Phase::Waiting(waiting) | Phase::Loading(waiting) => Some(waiting),
            Phase::Running(_) => None,
        }
    }

    pub(super) fn waiting_mut(&mut self) -> Option<&mut Waiting> {
        match &mut self.phase {
            Phase::Waiting(waiting) | Phase::Loading(waiting) => Some(waiting),
            Phase::Running(_) => None,
        }
    }

    pub(super) fn is_loading(&self) -> bool {
        matches!(self.phase, Phase::Loading(_))
    }

    /// Whether it runs, and a launched row of this run is its own.
    pub(super) fn runs_as(&self, run: u64) -> bool {
        self.running().is_some_and(|running| running.run == run)
    }

    /// Tokens that it may still generate beyond those known or launched.
    pub(super) fn tokens_left(&self) -> usize {
        let pending = self.running().map_or(0, |running| running.pending);
        self.max_tokens.saturating_sub(self.generated() + pending)
    }

    /// Whether its next row is a decode row that its limit allows: of the tokens known or to be
    /// produced by launched rows, only the last has no KV and no launched step that writes it.
    pub(super) fn can_decode(&self) -> bool {
        self.running().is_some_and(|running| {
            !running.is_verifying
                && self.known() + running.pending == running.launched + 1
                && self.generated() + running.pending < self.max_tokens
        })
    }

    /// Some of what was known when it was admitted is not retired yet.
    pub(super) fn is_prefilling(&self) -> bool {
        self.running().is_some_and(|running| running.computed + 1 < self.known())
    }
}
