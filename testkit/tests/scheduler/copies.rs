//! The driver's part in copies between the tiers.

use engine_core::backend::{Deadline, Executor, StepError, Ticket};

use crate::driver::{Driver, Launched, broken};
use crate::log::Entry;
use crate::rules::Failure;

impl Driver {
    /// Starts what the plan orders, after its launch if there was one.
    pub(crate) fn start_copies(&mut self, has_launched: bool) -> Result<(), Failure> {
        if self.scheduler.copies().is_empty() {
            return Ok(());
        }
        let launched = self.launched.back().filter(|_| has_launched);
        let ticket = match launched.and_then(|launched| launched.ticket.as_ref()) {
            // There is nothing left to copy.
            Some(Err(error @ StepError::KvLost { .. })) => Err(error.clone()),
            _ => self.executor.transfer(self.scheduler.copies()),
        };
        if !self.ledger.violations().is_empty() {
            return Err(self.first_violation());
        }
        match self.launched.back_mut().filter(|_| has_launched) {
            Some(launched) => launched.copies = Some(ticket),
            None => self.launched.push_back(Launched {
                ticket: None,
                copies: Some(ticket),
                seeds: Vec::new(),
                is_lost: false,
            }),
        }
        Ok(())
    }

    /// Waits for copies and commits them.
    pub(crate) fn commit_copies(
        &mut self,
        ticket: Result<Ticket, StepError>,
    ) -> Result<(), Failure> {
        let waited = ticket.and_then(|ticket| self.executor.wait_transfer(ticket, Deadline::NEVER));
        if !self.ledger.violations().is_empty() {
            return Err(self.first_violation());
        }
        let error = waited.err();
        if let Some(StepError::KvLost { .. }) = error {
            self.launched.iter_mut().for_each(|launched| launched.is_lost = true);
        }
        self.log.push(Entry::CommitCopies(error.clone()));
        self.scheduler.commit_copies(error.as_ref()).map_err(broken)?;
        self.after_change()
    }
}
