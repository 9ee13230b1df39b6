//! Mbarriers: barriers in shared memory that count arrivals and bytes of copies.
//!
//! A phase ends when no arrivals are pending and the transaction count is zero. Copies that will
//! signal an mbarrier wait beside it, and arrive when somebody waits for it and nothing but bytes
//! is missing: the latest moment that is legal.

use crate::check::{Clock, Problem};

use super::bulk::{Flight, Signal};

/// The most arrivals of a phase.
const COUNT_LIMIT: u32 = (1 << 20) - 1;

/// An mbarrier.
#[derive(Debug)]
pub(crate) struct Mbarrier {
    offset: u64,
    expected: u32,
    pending: u32,
    transactions: i64,
    phase: u64,
    /// What those who arrived in this phase have seen, and those of the last one.
    arriving: Clock,
    ended: Clock,
    /// Copies on their way.
    pub(crate) flights: Vec<Flight>,
    /// The actor that stands for these copies.
    pub(crate) actor: u16,
    /// The warp of the cluster that initialized it, and when.
    pub(crate) owner: (usize, u32),
    /// Whether copies can see the initialization.
    pub(crate) fenced: bool,
}

/// Which phase is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// That of a state, as `mbarrier.arrive` gives it.
    Number(u64),
    /// The current one or the one before, by its lowest bit.
    Parity(u32),
}

impl Mbarrier {
    pub(crate) fn new(
        offset: u64,
        count: u32,
        actor: u16,
        owner: (usize, u32),
    ) -> Result<Self, Problem> {
        let limit = i64::from(COUNT_LIMIT);
        in_range(offset, "a count", i64::from(count), 1, limit)?;
        Ok(Self {
            offset,
            expected: count,
            pending: count,
            transactions: 0,
            phase: 0,
            arriving: Clock::default(),
            ended: Clock::default(),
            flights: Vec::new(),
            actor,
            owner,
            fenced: false,
        })
    }

    /// The phase and the arrivals that it lacks, as 64 bits.
    pub(crate) fn state(&self) -> u64 {
        self.phase << 20 | u64::from(self.pending)
    }

    /// The phase of a state.
    pub(crate) fn phase_of(state: u64) -> Phase {
        Phase::Number(state >> 20)
    }

    /// The pending arrivals of a state.
    pub(crate) fn pending_of(state: u64) -> u32 {
        (state & u64::from(COUNT_LIMIT)) as u32
    }

    /// Where arrivals leave what they have seen.
    pub(crate) fn arriving(&mut self) -> &mut Clock {
        &mut self.arriving
    }

    /// What those who wait get to see.
    pub(crate) fn ended(&self) -> &Clock {
        &self.ended
    }

    /// Arrives `count` times; tells whether a phase has ended.
    pub(crate) fn arrive(&mut self, count: u32) -> Result<bool, Problem> {
        let (offset, pending) = (self.offset, self.pending);
        in_range(offset, "arrivals", i64::from(count), 1, i64::from(COUNT_LIMIT))?;
        self.pending = pending.checked_sub(count).ok_or(Problem::MbarrierOverrun {
            offset,
            count,
            pending,
        })?;
        Ok(self.settle())
    }

    /// Arrives, and does not count from the next phase on.
    pub(crate) fn drop_arrivals(&mut self, count: u32) -> Result<bool, Problem> {
        self.expected = self.expected.saturating_sub(count);
        self.arrive(count)
    }

    /// Expects bytes in this phase.
    pub(crate) fn expect(&mut self, bytes: u32) -> Result<(), Problem> {
        let sum = self.transactions + i64::from(bytes);
        let limit = i64::from(COUNT_LIMIT);
        in_range(self.offset, "a transaction count", sum, -limit, limit)?;
        self.transactions = sum;
        Ok(())
    }

    /// Bytes have come; tells whether a phase has ended.
    pub(crate) fn complete(&mut self, bytes: u64) -> bool {
        self.transactions = self.transactions.saturating_sub_unsigned(bytes);
        self.settle()
    }

    fn settle(&mut self) -> bool {
        let over = self.pending == 0 && self.transactions == 0;
        if over {
            self.phase += 1;
            self.pending = self.expected;
            self.ended = std::mem::take(&mut self.arriving);
        }
        over
    }

    /// Whether a phase has ended.
    pub(crate) fn is_over(&self, phase: Phase) -> bool {
        match phase {
            Phase::Number(number) => self.phase > number,
            Phase::Parity(parity) => self.phase & 1 != u64::from(parity & 1),
        }
    }

    /// Expects an arrival more in this phase.
    pub(crate) fn expect_arrival(&mut self) {
        self.pending = self.pending.saturating_add(1);
    }

    /// Whether copies that are on their way could end the phase.
    pub(crate) fn lacks_only_copies(&self) -> bool {
        let arrivals = self.flights.iter().filter(|flight| flight.signal == Signal::Arrival);
        !self.flights.is_empty() && self.pending as usize <= arrivals.count()
    }

    /// What to say when the phase that is waited for does not end.
    pub(crate) fn deadlock(&self, waiting: usize) -> Problem {
        Problem::MbarrierDeadlock {
            offset: self.offset,
            phase: self.phase,
            arrivals: self.pending,
            bytes: self.transactions,
            waiting,
        }
    }
}

fn in_range(
    offset: u64,
    what: &'static str,
    value: i64,
    least: i64,
    most: i64,
) -> Result<(), Problem> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Problem::MbarrierCount { offset, what, value, least, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mbarrier(count: u32) -> Mbarrier {
        Mbarrier::new(64, count, 0, (0, 1)).unwrap()
    }

    #[test]
    fn a_phase_ends_with_its_last_arrival_and_byte() {
        let mut barrier = mbarrier(2);
        barrier.expect(96).unwrap();
        assert_eq!(barrier.arrive(1), Ok(false));
        assert!(!barrier.complete(64));
        assert_eq!(barrier.arrive(1), Ok(false));
        assert!(!barrier.is_over(Phase::Parity(0)) && barrier.is_over(Phase::Parity(1)));
        assert!(barrier.complete(32));
        assert!(barrier.is_over(Phase::Parity(0)) && !barrier.is_over(Phase::Parity(1)));
        assert!(barrier.is_over(Phase::Number(0)) && !barrier.is_over(Phase::Number(1)));
    }

    #[test]
    fn copies_that_nobody_expects_keep_a_phase_from_ending() {
        let mut barrier = mbarrier(1);
        assert!(!barrier.complete(16));
        assert_eq!(barrier.arrive(1), Ok(false));
        assert!(matches!(barrier.deadlock(1), Problem::MbarrierDeadlock { bytes: -16, .. }));
    }

    #[test]
    fn arrivals_beyond_the_count_are_refused() {
        let mut barrier = mbarrier(3);
        assert_eq!(barrier.arrive(2), Ok(false));
        let overrun = Problem::MbarrierOverrun { offset: 64, count: 2, pending: 1 };
        assert_eq!(barrier.arrive(2), Err(overrun));
        assert!(Mbarrier::new(0, 0, 0, (0, 1)).is_err());
        assert!(Mbarrier::new(0, 1 << 20, 0, (0, 1)).is_err());
        assert!(barrier.expect(1 << 20).is_err());
    }

    #[test]
    fn dropped_arrivals_are_not_expected_again() {
        let mut barrier = mbarrier(2);
        assert_eq!(barrier.drop_arrivals(1), Ok(false));
        assert_eq!(barrier.arrive(1), Ok(true));
        assert_eq!(Mbarrier::pending_of(barrier.state()), 1);
        assert_eq!(barrier.arrive(1), Ok(true));
    }
}
