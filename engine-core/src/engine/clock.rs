//! Ticks: the time as the scheduler hears it, which has no clock of its own.

use std::time::{Duration, Instant};

/// Milliseconds since the engine was built.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub(super) fn tick(&self) -> u64 {
        milliseconds(self.start.elapsed())
    }

    /// The tick so long from now; the last one where that is beyond counting.
    pub(super) fn tick_after(&self, duration: Duration) -> u64 {
        self.tick().saturating_add(milliseconds(duration))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
