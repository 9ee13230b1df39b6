//! All that a scheduler is told.

use std::borrow::Cow;

use radix_cache::Token;
use serde::{Deserialize, Serialize};

use super::arrival::{Arrival, FinishReason, RequestId, SequenceId};
use crate::backend::{StepError, StepResult};

/// Something that happened. The same inputs in the same order, with plans between them, lead to
/// the same decisions.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Input<'a> {
    /// A sequence joins the queue.
    Arrive(Arrival),
    /// A sequence begins with the known tokens of a parent, followed by `branch.prompt`. Only
    /// known tokens are taken: what is in flight belongs to the parent.
    ///
    /// Whole pages are shared through the tree. The page that the parent fills at present is
    /// copied on the device, so the branch computes nothing that the parent has computed. Where
    /// no slot or page is free the branch waits like any arrival and then shares whole pages.
    Fork {
        /// Whose tokens come first.
        parent: SequenceId,
        /// What follows them. Its namespace is the parent's.
        branch: Arrival,
    },
    /// One sequence ends for a reason that the scheduler can't see, such as a stop string in its
    /// text. Nothing happens where it has ended already.
    End {
        /// Which.
        id: SequenceId,
        /// Why.
        reason: FinishReason,
    },
    /// A sequence continues with these tokens without a choice, in place of the token that the
    /// oldest of its rows in flight would produce. They are known from now on, as far as they don't
    /// end it. Nothing happens where that row verifies proposals, or there is none.
    Append {
        /// Which.
        id: SequenceId,
        /// The tokens, at least one.
        tokens: Cow<'a, [Token]>,
    },
    /// A request's sequences end wherever they are. Rows that are in flight will be dropped.
    Abort {
        /// The request.
        request: RequestId,
        /// Its samples.
        samples: u32,
    },
    /// Every sequence ends, waiting or running.
    EndAll {
        /// Why.
        reason: FinishReason,
    },
    /// The oldest step in flight has ended, with what
    /// [`Executor::wait`](crate::backend::Executor::wait) gave: the result, and the error if
    /// there was one. A launch that failed is committed too, with its error and an empty result,
    /// before anything else is planned. [`StepError::Dead`] is not committed: the engine ends
    /// instead.
    Commit {
        /// The result. A log keeps its tokens alone: nothing else enters a decision.
        #[serde(with = "super::logged::result")]
        result: Cow<'a, StepResult>,
        /// The error.
        #[serde(with = "super::logged::error")]
        error: Option<Cow<'a, StepError>>,
    },
    /// The oldest copies in flight have ended: all that one plan ordered. With the error, if
    /// [`Executor::transfer`](crate::backend::Executor::transfer) or
    /// [`Executor::wait_transfer`](crate::backend::Executor::wait_transfer) gave one. Then none of
    /// them counts, and what was to be loaded is computed instead.
    CopiesDone {
        /// The error.
        #[serde(with = "super::logged::error")]
        error: Option<Cow<'a, StepError>>,
    },
    /// Time has come to be `now`, in ticks of whatever clock the caller gave
    /// [`Arrival::retention`] in: prefixes are kept for a while.
    Tick {
        /// Ticks.
        now: u64,
    },
    /// Everything that is cached and that nobody reads is forgotten.
    ClearCache,
}
