//! One step's work: a ragged, flat batch.

use radix_cache::{PageId, Token};

use crate::{SlotId, Slots};

/// A run of entries in one of the batch's flat arrays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// Index of the first entry.
    pub start: u32,
    /// Number of entries.
    pub len: u32,
}

impl Span {
    /// The span as a range of indices.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..(self.start as usize + self.len as usize)
    }
}

/// Which of an executor's compiled programs: the target, then drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProgramId(pub u8);

impl ProgramId {
    /// The program as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Index of a page group. Page ids, capacity and page tables are per group. An executor's groups
/// are those of its programs, one program after another: a program's own [`GroupId`]s count from
/// the number of groups before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u8);

impl GroupId {
    /// The group as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A new token of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputToken {
    /// A token that the host knows.
    Known(Token),
    /// The token that an earlier step of the same program samples for the slot: the host plans with
    /// a token that it doesn't know yet. Always the row's own slot, and the row's first token.
    Produced(SlotId),
}

/// One sequence's share of a step. Rows are never empty.
///
/// ```text
///            |<-------- position -------->|<-- tokens.len -->|
///   KV       | in pages, written earlier  | written by this  |
///            |<----------------- kv_len() ------------------>|
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// The sequence's slot.
    pub slot: SlotId,
    /// Its new tokens, in [`Batch::tokens`]. At least one.
    pub tokens: Span,
    /// Absolute position of the first new token.
    pub position: u32,
    /// What is wanted of it, in [`Batch::outputs`]. May be empty: a prefill chunk that isn't the
    /// last.
    pub outputs: Span,
}

impl Row {
    /// Positions whose KV exists once the step has run.
    pub fn kv_len(&self) -> u32 {
        self.position + self.tokens.len
    }
}

/// One result wanted of a run of a row's new tokens.
///
/// Each token of the run is an *output row*: a row of
/// [`SelectOutputs`](crate::program::Op::SelectOutputs), of the hidden states and of the logits.
/// Output rows follow each other in the order of [`Batch::outputs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutputRequest {
    /// The row, as an index into [`Batch::rows`].
    pub row: u32,
    /// The tokens after which something is wanted, in [`Batch::tokens`]: at least one, all of the
    /// row.
    pub tokens: Span,
    /// What is wanted.
    pub want: Want,
    /// The tokens wait for masks: [`Executor::sample`](crate::Executor::sample) samples them, and
    /// the launch samples the others. Only for [`Want::Sample`] and [`Want::Verify`].
    pub deferred: bool,
}

impl OutputRequest {
    /// A token sampled after the token at index `token` of [`Batch::tokens`], at once.
    pub fn sample(row: u32, token: u32) -> Self {
        let tokens = Span { start: token, len: 1 };
        Self { row, tokens, want: Want::Sample, deferred: false }
    }
}

/// What is wanted of a run of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    /// Sample the next token as the slot's [`SlotSampling`](crate::SlotSampling) says, and make it
    /// the slot's next token. The run is the row's last token. Answer: one token.
    Sample,
    /// Check proposed tokens against the ones that would have been sampled. The run reaches to the
    /// row's end. Answer: one token at least, and at most as many as the run has; the last one
    /// becomes the slot's next token.
    Verify(Draft),
    /// The log probability of each token of [`Batch::targets`] in `targets` (as many as the run
    /// has) as the token that follows, and of the `top` likeliest: prompt log probabilities.
    /// Changes no slot. Answer: one token for each of the run.
    Score {
        /// The tokens whose probability is wanted, in [`Batch::targets`].
        targets: Span,
        /// How many of the likeliest tokens to report with each.
        top: u8,
    },
    /// The hidden state of each token of the run: the input of the program's logits. Answer: one
    /// vector for each, one after another.
    Hidden,
    /// One vector that stands for the run. Answer: one vector.
    Pool(Pooling),
}

/// How the run of a [`Want::Verify`] proposes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Draft {
    /// A chain: each token of the run but the first is a proposal for what follows the token before
    /// it. Each position is sampled with the noise that belongs to it; the answer ends with the
    /// first token that differs from its proposal, or with the token after the last proposal. So
    /// the answer is what plain steps would have sampled.
    ///
    /// ```text
    /// run       t0   d1   d2   d3        d: proposals
    /// sampled      d1   d2   x           x differs from d3
    /// answer       d1   d2   x           KV of d3 is void
    /// ```
    Chain,
}

/// How one vector is made of the hidden states of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pooling {
    /// Which states count.
    pub kind: PoolKind,
    /// Divide the vector by its Euclidean length, unless that is 0.
    pub normalize: bool,
}

/// Which hidden states a pooled vector is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PoolKind {
    /// The last one.
    Last,
    /// Their mean.
    Mean,
}

/// What changed in a slot since the previous launch. Applied in order, before the rows run.
///
/// The data itself is in [`Slots`], which shows the state after all events of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotEvent {
    /// A sequence moves in: forget what the slot held, read its sampling state.
    Open {
        /// The slot.
        slot: SlotId,
    },
    /// Entries of the slot's page table were appended or re-pointed. The lent table has them: a
    /// change to a table that is gone by the launch is not announced.
    Pages {
        /// The slot.
        slot: SlotId,
        /// The page group.
        group: GroupId,
        /// Which entries of the table.
        entries: Span,
    },
    /// Copy a page on the device, before any row of this batch runs: the partial last page of a
    /// fork.
    CopyPage {
        /// The page group.
        group: GroupId,
        /// Page to read.
        from: PageId,
        /// Page to write.
        to: PageId,
    },
    /// The sequence moves out; the slot may be opened again by a later event.
    Close {
        /// The slot.
        slot: SlotId,
    },
}

/// One step's work. Decode rows come first, then prefill rows.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Batch<'a> {
    /// Number of the step, rising by one with each launch.
    pub step: u64,
    /// Which of the compiled programs runs.
    pub program: ProgramId,
    /// New tokens of all rows, row after row.
    pub tokens: &'a [InputToken],
    /// The rows.
    pub rows: &'a [Row],
    /// How many of the rows, from the first, are decode rows: one new token, and one output of it.
    pub decode_rows: u32,
    /// Everything that is wanted, row after row.
    pub outputs: &'a [OutputRequest],
    /// Tokens that [`Want::Score`] speaks of.
    pub targets: &'a [Token],
    /// What changed in slots since the previous launch.
    pub events: &'a [SlotEvent],
    /// Runs of rows that begin with the same pages, for cascade attention: in order, no row in two. A
    /// hint.
    pub shared: &'a [SharedPrefix],
    /// State of all slots, after the events.
    pub slots: &'a Slots,
}

impl<'a> Batch<'a> {
    /// A batch of the first program, without targets and shared prefixes.
    pub fn new(
        step: u64,
        tokens: &'a [InputToken],
        rows: &'a [Row],
        decode_rows: u32,
        outputs: &'a [OutputRequest],
        events: &'a [SlotEvent],
        slots: &'a Slots,
    ) -> Self {
        Self {
            step,
            program: ProgramId::default(),
            tokens,
            rows,
            decode_rows,
            outputs,
            targets: &[],
            events,
            shared: &[],
            slots,
        }
    }

    /// Page table of a row's slot: page `i` holds positions `i * page_size ..`.
    pub fn pages(&self, row: &Row, group: GroupId) -> &'a [PageId] {
        self.slots.pages(row.slot, group)
    }

    /// Number of output rows: tokens in the runs of all outputs.
    pub fn output_rows(&self) -> usize {
        self.outputs.iter().map(|output| output.tokens.len as usize).sum()
    }

    /// Whether some output waits for masks, so that [`Executor::sample`](crate::Executor::sample)
    /// will be called.
    pub fn is_deferred(&self) -> bool {
        self.outputs.iter().any(|output| output.deferred)
    }
}

/// Consecutive rows whose page tables begin with the same pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedPrefix {
    /// The rows, as indices into [`Batch::rows`].
    pub rows: Span,
    /// How many pages they share, in every group. All of the rows' new tokens come after them.
    pub pages: u32,
}

/// Masks for a step's deferred outputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Masks<'a> {
    /// At most one an output row, in any order.
    pub entries: &'a [Mask<'a>],
}

impl<'a> Masks<'a> {
    /// The mask of a token of an output's run, if there is one.
    pub fn of(&self, output: u32, index: u32) -> Option<&Mask<'a>> {
        self.entries.iter().find(|mask| (mask.output, mask.index) == (output, index))
    }
}

/// Which tokens may be sampled at an output row.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The output, as an index into [`Batch::outputs`]. A deferred one.
    pub output: u32,
    /// Which token of the output's run.
    pub index: u32,
    /// Bit `t % 32` of word `t / 32` allows token `t`. Tokens beyond the last word are forbidden.
    pub allowed: &'a [u32],
}

impl Mask<'_> {
    /// Whether the token is allowed.
    pub fn allows(&self, token: Token) -> bool {
        self.allowed.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}
