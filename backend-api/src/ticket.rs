//! Work that was started: tickets, deadlines, copies between tiers.

use std::time::{Duration, Instant};

use radix_cache::{PageId, Tier};

use crate::GroupId;

/// A step or transfer that was started and whose result has not been read.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a ticket is waited for, else the executor can't retire the step"]
pub struct Ticket(u64);

impl Ticket {
    /// A ticket with a number that its executor chose; equal numbers are the same launch.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// When waiting ends at the latest.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Wait as long as it takes.
    pub const NEVER: Self = Self(None);

    /// This long from now.
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now().checked_add(duration))
    }

    /// The instant, or `None` for [`Deadline::NEVER`].
    pub fn instant(&self) -> Option<Instant> {
        self.0
    }
}

/// A whole page of one group copied from one tier to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageCopy {
    /// The page group; ids are per group.
    pub group: GroupId,
    /// Tier and page to read.
    pub from: (Tier, PageId),
    /// Tier and page to write.
    pub to: (Tier, PageId),
}
