//! How threads hand each other work.

use parking_lot::{Condvar, Mutex};

/// Items from many senders to one receiver, in order. Unbounded: what is in it is bounded by
/// what its senders were admitted with.
///
/// The receiver swaps its own emptied vector for the full one, so the memory goes back and forth
/// and in steady state nothing is allocated. A sleeping receiver costs no CPU.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    is_closed: bool,
}

impl<T> Mailbox<T> {
    /// A mailbox that takes that many items before it allocates.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let state = State { items: Vec::with_capacity(capacity), is_closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new(), capacity }
    }

    /// The receiver's vector: as large as the mailbox's own, which it changes places with.
    pub(super) fn buffer(&self) -> Vec<T> {
        Vec::with_capacity(self.capacity)
    }

    /// Adds an item, or gives it back if nobody will receive any more.
    pub(super) fn post(&self, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(item);
        }
        state.items.push(item);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Moves all items in. Drops them if nobody will receive any more.
    pub(super) fn post_all(&self, items: &mut Vec<T>) {
        if items.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if !state.is_closed {
            state.items.append(items);
        }
        drop(state);
        // Dropping an item may run its owner's code: not under the lock.
        items.clear();
        self.arrived.notify_one();
    }

    /// Fills `items`, which is empty, with what has arrived, if anything.
    pub(super) fn take(&self, items: &mut Vec<T>) {
        std::mem::swap(&mut self.state.lock().items, items);
    }

    /// As [`take`](Self::take), but sleeps until something arrives or the mailbox is closed.
    pub(super) fn wait(&self, items: &mut Vec<T>) {
        let mut state = self.state.lock();
        while state.items.is_empty() && !state.is_closed {
            self.arrived.wait(&mut state);
        }
        std::mem::swap(&mut state.items, items);
    }

    /// Refuses further items, and returns what nobody has received.
    pub(super) fn close(&self) -> Vec<T> {
        let mut state = self.state.lock();
        state.is_closed = true;
        let left = std::mem::take(&mut state.items);
        drop(state);
        self.arrived.notify_all();
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_one_sender_arrive_in_order() {
        let mailbox = Mailbox::with_capacity(0);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..1000).for_each(|item| mailbox.post(item).unwrap()));
            let (mut seen, mut items) = (Vec::new(), Vec::new());
            while seen.len() < 1000 {
                mailbox.wait(&mut items);
                seen.append(&mut items);
            }
            assert!(seen.iter().copied().eq(0..1000));
        });
    }

    #[test]
    fn closing_wakes_the_receiver_and_hands_back_what_comes_later() {
        let mailbox = Mailbox::with_capacity(0);
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut items: Vec<u32> = Vec::new();
                mailbox.wait(&mut items);
                items
            });
            mailbox.close();
            assert!(receiver.join().unwrap().is_empty());
        });
        assert_eq!(mailbox.post(7), Err(7));
    }
}
