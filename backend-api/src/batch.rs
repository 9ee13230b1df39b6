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

/// Index of a page group of the program. Page ids, capacity and page tables are per group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u8);

/// A new token of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputToken {
    /// A token that the host knows.
    Known(Token),
    /// The token that the step launched before this one samples for the slot: the host plans
    /// with it before it knows it. Always the row's own slot.
    Produced(SlotId),
}

/// One sequence's share of a step. Rows are never empty.
///
/// ```text
///            |<-------- position -------->|<-- tokens.len -->|
///   KV       | in pages, written earlier  | written by this  |
///            |<----------------- kv_len() ------------------>|
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// One result wanted of one token of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputRequest {
    /// The row, as an index into [`Batch::rows`].
    pub row: u32,
    /// The token after which it is wanted, as an index into [`Batch::tokens`].
    pub token: u32,
    /// What is wanted.
    pub want: Want,
}

/// What is wanted of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Sample the next token as the slot's [`SlotSampling`](crate::SlotSampling) says, and make it the slot's next token.
    Sample,
    /// The log probability of a given next token, and of the `top` likeliest: prompt logprobs.
    Score {
        /// The token whose probability is wanted.
        token: Token,
        /// How many of the likeliest tokens to report with it.
        top: u8,
    },
}

/// What changed in a slot since the previous launch. Applied in order, before the rows run.
///
/// The data itself is in [`Slots`], which shows the state after all events of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// New tokens of all rows, row after row.
    pub tokens: &'a [InputToken],
    /// The rows.
    pub rows: &'a [Row],
    /// How many of the rows, from the first, are decode rows (one new token and one output).
    pub decode_rows: u32,
    /// Everything that is wanted, row after row.
    pub outputs: &'a [OutputRequest],
    /// What changed in slots since the previous launch.
    pub events: &'a [SlotEvent],
    /// Runs of rows that begin with the same pages, for cascade attention. A hint.
    pub shared: &'a [SharedPrefix],
    /// State of all slots, after the events.
    pub slots: &'a Slots,
    /// Don't sample: [`Executor::sample`](crate::Executor::sample) will be called for it.
    pub defer_sampling: bool,
}

impl<'a> Batch<'a> {
    /// A batch without shared prefixes that samples at once.
    pub fn new(
        step: u64,
        tokens: &'a [InputToken],
        rows: &'a [Row],
        decode_rows: u32,
        outputs: &'a [OutputRequest],
        events: &'a [SlotEvent],
        slots: &'a Slots,
    ) -> Self {
        let shared = &[];
        Self {
            step,
            tokens,
            rows,
            decode_rows,
            outputs,
            events,
            shared,
            slots,
            defer_sampling: false,
        }
    }

    /// Page table of a row's slot: page `i` holds positions `i * page_size ..`.
    pub fn pages(&self, row: &Row, group: GroupId) -> &'a [PageId] {
        self.slots.pages(row.slot, group)
    }
}

/// Consecutive rows whose page tables begin with the same pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedPrefix {
    /// The rows, as indices into [`Batch::rows`].
    pub rows: Span,
    /// How many pages they share, in every group.
    pub pages: u32,
}

/// Masks for a step with deferred sampling.
#[derive(Clone, Copy, Debug, Default)]
pub struct Masks<'a> {
    /// At most one an output, in any order.
    pub entries: &'a [Mask<'a>],
}

/// Which tokens an output may be.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The output, as an index into [`Batch::outputs`].
    pub output: u32,
    /// Bit `t % 32` of word `t / 32` allows token `t`. Tokens beyond the last word are forbidden.
    pub allowed: &'a [u32],
}

impl Mask<'_> {
    /// Whether the token is allowed.
    pub fn allows(&self, token: Token) -> bool {
        self.allowed.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}
