//! The driver's part in copies between the tiers.

use std::borrow::Cow;

use engine_core::backend::{Deadline, Executor, PageCopy, StepError, Ticket};
use engine_core::schedule::Input;

use crate::driver::Driver;
use crate::rules::Failure;

impl Driver {
    /// Starts what the plan orders, after its launch if there was one.
    pub(crate) fn start_copies(
        &mut self,
        launched: Option<&Result<Ticket, StepError>>,
        copies: &[PageCopy],
    ) -> Result<Option<Result<Ticket, StepError>>, Failure> {
        if copies.is_empty() {
            return Ok(None);
        }
        let started = match launched {
            // There is nothing left to copy.
            Some(Err(error @ StepError::KvLost { .. })) => Err(error.clone()),
            _ => self.executor.transfer(copies),
        };
        if !self.ledger.violations().is_empty() {
            return Err(self.first_violation());
        }
        Ok(Some(started))
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
        self.tell(Input::CopiesDone { error: error.map(Cow::Owned) })
    }
}
