//! Known bugs, planted on purpose: the test suite must catch each of them.
//!
//! Without the feature `seeded-bugs` the switch is gone from the build.

/// A bug that a test build can plant in the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SeededBug {
    /// After an insert that found duplicates, the page table still names the freed ones.
    NoRepointAfterDuplicate,
    /// A sequence's last page is freed while it runs.
    EarlyFree,
    /// The page of the last sampled token is cached before its KV exists.
    LastSampledTokenCached,
    /// A page that is only partly computed is cached.
    PartialPageCached,
    /// A row that ended in the step before is not dropped.
    StaleRowKept,
    /// Sequences are retracted while a step is in flight.
    RetractionUnderPendingStep,
    /// A fork gets a page for the partial tail, but not its content.
    ForkWithoutPartialPage,
    /// All namespaces are one.
    NamespaceIgnored,
    /// A decode row names another slot's next token.
    WrongSlotForNextToken,
    /// An abort gives the pages back twice.
    AbortFreesTwice,
    /// The whole prompt is matched, so that nothing is left to compute.
    WholePromptMatched,
    /// The page budget is not read again after locking.
    NoRecheckAfterLock,
    /// A retracted sequence forgets what it generated.
    ResumeForgetsOutput,
    /// A retracted sequence keeps its lock.
    RetractionKeepsLock,
    /// New pages are not announced to the device.
    PagesNotAnnounced,
    /// Matched pages are not announced to the device.
    MatchNotAnnounced,
    /// The tree survives the loss of the KV memory.
    TreeKeptAfterKvLoss,
    /// A chunk starts one token late.
    ChunkOffByOne,
    /// A finished sequence's slot is not closed before it is opened again.
    SlotNotClosed,
    /// The length limit counts only tokens that are known.
    LimitIgnoresLaunched,
    /// A fork writes into the page that its parent fills.
    ForkSharesPartialPage,
    /// A sequence that turns out not to fit, once its prefix is locked, keeps the lock.
    RefusedAdmissionKeepsLock,
    /// A resumed sequence's penalties see its prompt only.
    HistoryNotRenewed,
    /// After the loss of the KV memory, tokens of lost steps are still waited for.
    LossKeepsPending,
    /// After the loss of the KV memory, steps are planned while lost ones are in flight.
    LossNotDrained,
    /// A chunk ends in the middle of a page.
    ChunkNotWholePages,
    /// Pages are free as soon as their copy to the host is ordered.
    DemotedPagesFreedTooEarly,
    /// What is to be loaded from the host counts as cached before it was copied.
    LoadConfirmedTooEarly,
    /// A copy that failed counts as executed.
    FailedCopyTrusted,
    /// A sequence waits on for what was being loaded when the KV memory was lost.
    LoadOutlivesKvLoss,
    /// A sequence that is being loaded for is forgotten when it is given up, its load with it.
    AbortForgetsLoad,
}

impl SeededBug {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::NoRepointAfterDuplicate,
        Self::EarlyFree,
        Self::LastSampledTokenCached,
        Self::PartialPageCached,
        Self::StaleRowKept,
        Self::RetractionUnderPendingStep,
        Self::ForkWithoutPartialPage,
        Self::NamespaceIgnored,
        Self::WrongSlotForNextToken,
        Self::AbortFreesTwice,
        Self::WholePromptMatched,
        Self::NoRecheckAfterLock,
        Self::ResumeForgetsOutput,
        Self::RetractionKeepsLock,
        Self::PagesNotAnnounced,
        Self::MatchNotAnnounced,
        Self::TreeKeptAfterKvLoss,
        Self::ChunkOffByOne,
        Self::SlotNotClosed,
        Self::LimitIgnoresLaunched,
        Self::ForkSharesPartialPage,
        Self::RefusedAdmissionKeepsLock,
        Self::HistoryNotRenewed,
        Self::LossKeepsPending,
        Self::LossNotDrained,
        Self::ChunkNotWholePages,
        Self::DemotedPagesFreedTooEarly,
        Self::LoadConfirmedTooEarly,
        Self::FailedCopyTrusted,
        Self::LoadOutlivesKvLoss,
        Self::AbortForgetsLoad,
    ];
}
