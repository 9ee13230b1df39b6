//! The buffer between the text thread and the reader of a request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Condvar, Mutex};

use super::output::GenerationEvent;
use crate::error::{EngineDead, GenerationError};

/// What a reader gets.
pub(crate) type Item = Result<GenerationEvent, GenerationError>;

/// The writing end, for one sample. Dropped without [`end`](Feed::end) it tells the reader that
/// the engine has died: whatever goes wrong on the way, no reader waits for ever.
#[derive(Debug)]
pub(crate) struct Feed {
    buffer: Arc<Buffer>,
    has_ended: bool,
}

/// The reading end, for all samples of a request.
#[derive(Debug)]
pub(crate) struct Reader {
    buffer: Arc<Buffer>,
}

#[derive(Debug)]
struct Buffer {
    state: Mutex<State>,
    changed: Condvar,
}

/// Holds at most what the request may generate.
#[derive(Debug)]
struct State {
    items: VecDeque<Item>,
    /// Samples that have not ended.
    open: u32,
    reader_is_gone: bool,
    is_dead: bool,
    waker: Option<Waker>,
}

/// A buffer with a feed for each sample.
pub(crate) fn stream(samples: u32) -> (Vec<Feed>, Reader) {
    let state = State {
        items: VecDeque::new(),
        open: samples,
        reader_is_gone: false,
        is_dead: false,
        waker: None,
    };
    let buffer = Arc::new(Buffer { state: Mutex::new(state), changed: Condvar::new() });
    let feed = |_| Feed { buffer: Arc::clone(&buffer), has_ended: false };
    ((0..samples).map(feed).collect(), Reader { buffer })
}

impl Feed {
    pub(crate) fn push(&self, event: GenerationEvent) {
        self.buffer.change(|state| state.push(Ok(event)));
    }

    /// The sample has ended, with a last event or an error.
    pub(crate) fn end(mut self, last: Item) {
        self.has_ended = true;
        self.buffer.change(|state| {
            state.open -= 1;
            state.push(last);
        });
    }

    /// The engine died with this sample open. A request hears of it once.
    pub(crate) fn die(mut self, dead: EngineDead) {
        self.has_ended = true;
        self.buffer.die(dead);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if !self.has_ended {
            self.buffer.die(EngineDead::new("a thread of the engine stopped unexpectedly"));
        }
    }
}

impl Reader {
    /// The next item, or `None` when all samples have ended. Blocks.
    pub(crate) fn recv(&self) -> Option<Item> {
        let mut state = self.buffer.state.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                return Some(item);
            }
            if state.open == 0 {
                return None;
            }
            self.buffer.changed.wait(&mut state);
        }
    }

    /// As [`recv`](Self::recv), for an async task.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Option<Item>> {
        let mut state = self.buffer.state.lock();
        if let Some(item) = state.items.pop_front() {
            return Poll::Ready(Some(item));
        }
        if state.open == 0 {
            return Poll::Ready(None);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            waker => *waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether all samples have ended; there may still be items to read.
    pub(crate) fn has_ended(&self) -> bool {
        self.buffer.state.lock().open == 0
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.buffer.state.lock();
        state.reader_is_gone = true;
        state.waker = None;
        let items = std::mem::take(&mut state.items);
        drop(state);
        drop(items);
    }
}

impl Buffer {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_one();
        // Runs code of the reader's executor: not under the lock.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn die(&self, dead: EngineDead) {
        self.change(|state| {
            state.open -= 1;
            if !std::mem::replace(&mut state.is_dead, true) {
                state.push(Err(dead.into()));
            }
        });
    }
}

impl State {
    fn push(&mut self, item: Item) {
        if !self.reader_is_gone {
            self.items.push_back(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> GenerationEvent {
        GenerationEvent::Text { sample: 0, text: text.into() }
    }

    #[test]
    fn a_reader_gets_everything_and_then_the_end() {
        let (mut feeds, reader) = stream(1);
        let feed = feeds.remove(0);
        feed.push(text("a"));
        assert!(!reader.has_ended());
        feed.end(Ok(text("b")));
        assert_eq!(reader.recv(), Some(Ok(text("a"))));
        assert_eq!(reader.recv(), Some(Ok(text("b"))));
        assert_eq!(reader.recv(), None);
    }

    #[test]
    fn feeds_that_vanish_are_reported_once() {
        let (feeds, reader) = stream(3);
        drop(feeds);
        assert!(matches!(reader.recv(), Some(Err(GenerationError::Dead(_)))));
        assert_eq!(reader.recv(), None);
    }

    #[test]
    fn nothing_is_kept_for_a_reader_that_is_gone() {
        let (mut feeds, reader) = stream(1);
        let feed = feeds.remove(0);
        feed.push(text("a"));
        drop(reader);
        feed.push(text("b"));
        assert!(feed.buffer.state.lock().items.is_empty());
        feed.end(Ok(text("c")));
    }
}
