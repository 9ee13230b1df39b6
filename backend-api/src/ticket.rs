//! Work that was started: tickets, deadlines, copies between tiers.

use std::fmt;
use std::time::{Duration, Instant};

use radix_cache::PageId;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The page group; ids are per group.
    pub group: GroupId,
    /// Tier and page to read.
    pub from: (Tier, PageId),
    /// Tier and page to write.
    pub to: (Tier, PageId),
}

/// Where a page's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Where steps can read it.
    Device,
    /// The host's memory; it is loaded back before a step reads it.
    Host,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Device => "device",
            Tier::Host => "host",
        })
    }
}
