//! The buffer between the text thread and the reader of a request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::output::GenerationEvent;
use crate::error::{EngineDead, GenerationError};
use crate::fence::fence;

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
    /// The reader's waker panicked: nothing more is told.
    is_broken: bool,
    waker: Option<Waker>,
}

/// A buffer with a feed for each sample.
pub(crate) fn stream(samples: u32) -> (Vec<Feed>, Reader) {
    let state = State {
        items: VecDeque::new(),
        open: samples,
        reader_is_gone: false,
        is_dead: false,
        is_broken: false,
        waker: None,
    };
    let buffer = Arc::new(Buffer { state: Mutex::new(state), changed: Condvar::new() });
    let feed = |_| Feed { buffer: Arc::clone(&buffer), has_ended: false };
    ((0..samples).map(feed).collect(), Reader { buffer })
}

impl Feed {
    /// Tells the reader. False if the reader's waker has panicked, now or before, and the request
    /// is to be given up.
    pub(crate) fn push(&self, event: GenerationEvent) -> bool {
        self.buffer.change(|state| state.push(Ok(event)))
    }

    /// The sample has ended, with a last event or an error.
    pub(crate) fn end(mut self, last: Item) {
        self.has_ended = true;
        self.buffer.change(|state| {
            state.open = state.open.saturating_sub(1);
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
    /// The next item, or `None` when all samples have ended; pending if there is neither when
    /// `deadline` has passed. Without a deadline it blocks for as long as it takes.
    pub(crate) fn recv(&self, deadline: Option<Instant>) -> Poll<Option<Item>> {
        let mut state = self.buffer.state.lock();
        loop {
            if let Some(ready) = state.next() {
                return Poll::Ready(ready);
            }
            match deadline {
                None => self.buffer.changed.wait(&mut state),
                Some(deadline) => {
                    if self.buffer.changed.wait_until(&mut state, deadline).timed_out() {
                        return state.next().map_or(Poll::Pending, Poll::Ready);
                    }
                }
            }
        }
    }

    /// The next item, if it is there.
    pub(crate) fn try_recv(&self) -> Poll<Option<Item>> {
        self.buffer.state.lock().next().map_or(Poll::Pending, Poll::Ready)
    }

    /// As [`recv`](Self::recv), for an async task.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Option<Item>> {
        let mut state = self.buffer.state.lock();
        let knows_waker = |waker: &Waker| waker.will_wake(context.waker());
        match state.next() {
            Some(ready) => return Poll::Ready(ready),
            None if state.waker.as_ref().is_some_and(knows_waker) => return Poll::Pending,
            None => drop(state),
        }
        // Cloning and dropping wakers runs code of the reader's executor: not under the lock.
        let waker = context.waker().clone();
        let mut state = self.buffer.state.lock();
        let ready = state.next();
        let old = if ready.is_none() { state.waker.replace(waker) } else { state.waker.take() };
        drop(state);
        drop(old);
        ready.map_or(Poll::Pending, Poll::Ready)
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
        let unread = (state.waker.take(), std::mem::take(&mut state.items));
        drop(state);
        drop(unread);
    }
}

impl Buffer {
    /// False if the reader's waker has panicked.
    fn change(&self, change: impl FnOnce(&mut State)) -> bool {
        let mut state = self.state.lock();
        change(&mut state);
        let is_broken = state.is_broken;
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_one();
        // Runs code of the reader's executor: not under the lock.
        match waker.map_or(Ok(()), |waker| fence(|| waker.wake())) {
            Ok(()) => !is_broken,
            Err(reason) => {
                let problem = format!("panicked: {reason}");
                let error = GenerationError::Waker { problem };
                let mut state = self.state.lock();
                state.push(Err(error));
                (state.open, state.is_broken) = (0, true);
                drop(state);
                self.changed.notify_one();
                false
            }
        }
    }

    fn die(&self, dead: EngineDead) {
        self.change(|state| {
            state.open = state.open.saturating_sub(1);
            if !std::mem::replace(&mut state.is_dead, true) {
                state.push(Err(dead.into()));
            }
        });
    }
}

impl State {
    fn push(&mut self, item: Item) {
        if !self.reader_is_gone && !self.is_broken {
            self.items.push_back(item);
        }
    }

    /// What a reader gets now; the inner `None` is the end.
    fn next(&mut self) -> Option<Option<Item>> {
        match self.items.pop_front() {
            Some(item) => Some(Some(item)),
            None => (self.open == 0).then_some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    fn text(text: &str) -> GenerationEvent {
        GenerationEvent::Text { sample: 0, text: text.into(), tokens: 0..1 }
    }

    #[test]
    fn a_reader_gets_everything_and_then_the_end() {
        let (mut feeds, reader) = stream(1);
        let feed = feeds.remove(0);
        assert_eq!(reader.try_recv(), Poll::Pending);
        assert_eq!(reader.recv(Some(Instant::now() + Duration::from_millis(1))), Poll::Pending);
        assert!(feed.push(text("a")));
        assert!(!reader.has_ended());
        feed.end(Ok(text("b")));
        assert_eq!(reader.recv(None), Poll::Ready(Some(Ok(text("a")))));
        assert_eq!(reader.try_recv(), Poll::Ready(Some(Ok(text("b")))));
        assert_eq!(reader.recv(None), Poll::Ready(None));
    }

    #[test]
    fn feeds_that_vanish_are_reported_once() {
        let (feeds, reader) = stream(3);
        drop(feeds);
        assert!(matches!(reader.recv(None), Poll::Ready(Some(Err(GenerationError::Dead(_))))));
        assert_eq!(reader.recv(None), Poll::Ready(None));
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

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("on purpose");
        }
    }

    #[test]
    fn a_waker_that_panics_ends_its_stream_with_an_error() {
        let (mut feeds, reader) = stream(2);
        let waker = Waker::from(Arc::new(Panics));
        assert_eq!(reader.poll(&Context::from_waker(&waker)), Poll::Pending);
        assert!(!feeds[0].push(text("a")), "the request is to be given up");
        assert!(!feeds[1].push(text("b")));
        assert_eq!(reader.try_recv(), Poll::Ready(Some(Ok(text("a")))));
        let error = reader.try_recv();
        assert!(matches!(error, Poll::Ready(Some(Err(GenerationError::Waker { .. })))));
        assert_eq!(reader.try_recv(), Poll::Ready(None));
        feeds.drain(..).for_each(|feed| feed.end(Ok(text("c"))));
        assert_eq!(reader.try_recv(), Poll::Ready(None));
    }
}
