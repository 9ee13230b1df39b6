//! Tickets that are out, in the order in which they were given out.

use std::collections::VecDeque;

use crate::{StepError, Ticket};

/// What was started and not waited for. A ticket of another executor, or one that was waited for
/// already, is never found.
///
/// ```
/// use backend_api::kit::Tickets;
///
/// let mut tickets = Tickets::default();
/// let (first, second) = (tickets.issue("a step"), tickets.issue("another"));
/// *tickets.get_mut(&second).ok_or("it is out")? = "a sampled step";
/// assert_eq!(tickets.take(&first), Some("a step"));
/// assert_eq!(tickets.take(&first), None);
/// assert_eq!(tickets.take(&second), Some("a sampled step"));
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug)]
pub struct Tickets<T> {
    next: u64,
    out: VecDeque<(u64, T)>,
    dead: Option<String>,
}

impl<T> Default for Tickets<T> {
    fn default() -> Self {
        Self { next: 0, out: VecDeque::new(), dead: None }
    }
}

impl<T> Tickets<T> {
    /// Gives out the next ticket, which stands for `work`.
    pub fn issue(&mut self, work: T) -> Ticket {
        let number = self.next;
        self.next += 1;
        self.out.push_back((number, work));
        Ticket::new(number)
    }

    /// The work of a ticket that is out.
    pub fn get_mut(&mut self, ticket: &Ticket) -> Option<&mut T> {
        let place = self.place(ticket)?;
        self.out.get_mut(place).map(|(_, work)| work)
    }

    /// Takes a ticket back with its work.
    pub fn take(&mut self, ticket: &Ticket) -> Option<T> {
        let place = self.place(ticket)?;
        self.out.remove(place).map(|(_, work)| work)
    }

    /// Notes that the device is lost, and returns the error that says so.
    pub fn kill(&mut self, reason: impl Into<String>) -> StepError {
        let reason = reason.into();
        self.dead = Some(reason.clone());
        StepError::Dead { reason }
    }

    /// Whether the device can be used.
    ///
    /// # Errors
    ///
    /// [`StepError::Dead`] after [`kill`](Self::kill), with the same reason.
    pub fn check_alive(&self) -> Result<(), StepError> {
        match &self.dead {
            Some(reason) => Err(StepError::Dead { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn place(&self, ticket: &Ticket) -> Option<usize> {
        self.out.binary_search_by_key(&ticket.number(), |(number, _)| *number).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_come_back_in_any_order_and_once() {
        let mut tickets = Tickets::default();
        let all: Vec<Ticket> = (0..4).map(|work| tickets.issue(work)).collect();
        assert_eq!(tickets.take(&all[2]), Some(2));
        assert_eq!(tickets.take(&all[2]), None);
        assert_eq!(tickets.take(&Ticket::new(9)), None);
        for (ticket, work) in all.iter().zip([Some(0), Some(1), None, Some(3)]) {
            assert_eq!(tickets.take(ticket), work);
        }
    }

    #[test]
    fn a_dead_device_stays_dead() {
        let mut tickets = Tickets::<()>::default();
        assert_eq!(tickets.check_alive(), Ok(()));
        let error = tickets.kill("a deadline passed");
        assert_eq!(tickets.check_alive(), Err(error));
    }
}
