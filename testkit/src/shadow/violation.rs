//! What an engine can get wrong, as a backend sees it.

use engine_core::PageId;
use engine_core::backend::{BatchError, GroupId, SlotId, Tier};

/// A breach of the backend contract. Each is a bug in the engine, never in a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A batch breaks a rule that can be seen in the batch alone.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Steps are not numbered one after the other.
    #[error("step {found} was launched after step {before}")]
    StepNumber {
        /// The step launched before.
        before: u64,
        /// The step's number.
        found: u64,
    },
    /// A slot number beyond the limits.
    #[error("{slot:?} does not exist")]
    UnknownSlot {
        /// The slot.
        slot: SlotId,
    },
    /// An open slot was opened.
    #[error("{slot:?} was opened, but a sequence is in it")]
    OpenTwice {
        /// The slot.
        slot: SlotId,
    },
    /// A slot was used or closed that no sequence is in.
    #[error("{slot:?} is closed")]
    Closed {
        /// The slot.
        slot: SlotId,
    },
    /// An event names entries that the lent page table doesn't have, or leaves a gap.
    #[error("an event names entries {start}..{end} of {slot:?}, whose table has {len}")]
    Entries {
        /// The slot.
        slot: SlotId,
        /// First entry.
        start: usize,
        /// One past the last.
        end: usize,
        /// Entries of the table.
        len: usize,
    },
    /// A page number beyond the limits.
    #[error("{page} of group {} does not exist", .group.0)]
    UnknownPage {
        /// The group.
        group: GroupId,
        /// The page.
        page: PageId,
    },
    /// The resident page table differs from the lent one: a change was not announced.
    #[error("{slot:?}: events say that entry {entry} is {resident:?}, but the table says {lent:?}")]
    Table {
        /// The slot.
        slot: SlotId,
        /// First entry that differs.
        entry: usize,
        /// What the events made of it.
        resident: Option<PageId>,
        /// What the engine's table says.
        lent: Option<PageId>,
    },
    /// A slot's sampling state changed while it was open.
    #[error("the sampling state of {slot:?} changed while a sequence is in it")]
    Sampling {
        /// The slot.
        slot: SlotId,
    },
    /// A row doesn't begin where the slot's row before ended.
    #[error("{slot:?} continues at position {found}, but {expected} is next")]
    Position {
        /// The slot.
        slot: SlotId,
        /// Where it should.
        expected: u32,
        /// Where it does.
        found: u32,
    },
    /// The page table is too short for the row.
    #[error("{slot:?} needs {needed} pages, but its table has {len}")]
    TableTooShort {
        /// The slot.
        slot: SlotId,
        /// Pages needed.
        needed: usize,
        /// Pages in the table.
        len: usize,
    },
    /// A row computes more than its sequence may ever need.
    #[error("{slot:?} computes {found} positions, but its sequence needs {longest}")]
    TooLong {
        /// The slot.
        slot: SlotId,
        /// Positions once the row has run.
        found: u32,
        /// Most that make sense.
        longest: u32,
    },
    /// A row names a next token, but the step before samples none for its slot, or it isn't the
    /// row's only new token.
    #[error("a row of {slot:?} names a next token that the step before doesn't produce")]
    NoNextToken {
        /// The slot.
        slot: SlotId,
    },
    /// A position was read that no step wrote.
    #[error("{slot:?} reads position {position} in {page}, which nobody wrote")]
    Unwritten {
        /// The slot.
        slot: SlotId,
        /// The position.
        position: u32,
        /// The page.
        page: PageId,
    },
    /// A position was read in a page that is free.
    #[error("{slot:?} reads position {position} in {page}, which is free")]
    Freed {
        /// The slot.
        slot: SlotId,
        /// The position.
        position: u32,
        /// The page.
        page: PageId,
    },
    /// A position was read whose KV was computed under another prefix.
    #[error("{slot:?} reads position {position} in {page}, which holds another prefix's KV")]
    Foreign {
        /// The slot.
        slot: SlotId,
        /// The position.
        position: u32,
        /// The page.
        page: PageId,
    },
    /// A position was read that another namespace wrote.
    #[error("{slot:?} of namespace {reader} reads KV of namespace {writer}")]
    Namespace {
        /// The slot.
        slot: SlotId,
        /// The namespace that reads.
        reader: u64,
        /// The namespace that wrote.
        writer: u64,
    },
    /// A position was sampled twice for one sequence: its token was lost the first time.
    #[error("the sequence with seed {seed} samples after position {position} a second time")]
    SampledTwice {
        /// The sequence's seed.
        seed: u64,
        /// The position.
        position: u32,
    },
    /// The penalties' token counts don't match what the sequence reads.
    #[error("{slot:?}: its history doesn't match the {known} tokens that it reads")]
    History {
        /// The slot.
        slot: SlotId,
        /// Tokens that it reads.
        known: usize,
    },
    /// A ticket was waited for out of order, twice, or is not this executor's.
    #[error("ticket {found} was waited for, but {expected:?} is next")]
    TicketOrder {
        /// The ticket that is next, if there is one.
        expected: Option<u64>,
        /// The ticket.
        found: u64,
    },
    /// A step was sampled that wasn't deferred, or was sampled before.
    #[error("step {step} is not waiting to be sampled")]
    NotDeferred {
        /// The step.
        step: u64,
    },
    /// A page was used while a transfer that has not been waited for reads or fills it.
    #[error("{page} of the {tier} is used by {what} while a transfer reads or fills it")]
    UnderWay {
        /// Where it is.
        tier: Tier,
        /// The page.
        page: PageId,
        /// What uses it.
        what: &'static str,
    },
    /// A page became free while a transfer that has not been waited for reads or fills it.
    #[error("{page} became free while a transfer reads or fills it")]
    FreedUnderWay {
        /// The page.
        page: PageId,
    },
    /// A transfer copies a page that nobody has written to its end.
    #[error("a transfer copies {page} of the {tier}, whose position {position} nobody wrote")]
    NothingToCopy {
        /// Where it is.
        tier: Tier,
        /// The page.
        page: PageId,
        /// Place in the page.
        position: usize,
    },
    /// A deferred step was waited for, or continued, before it was sampled.
    #[error("step {step} was deferred and never sampled")]
    NeverSampled {
        /// The step.
        step: u64,
    },
    /// A mask names an output that doesn't exist, or two masks name one, or it allows nothing.
    #[error("the mask of output {output} makes no sense")]
    Mask {
        /// The output.
        output: u32,
    },
}
