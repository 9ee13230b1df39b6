//! One answer from one of the engine's threads to whoever asked, on a thread or in a task.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Condvar, Mutex};

use crate::fence::fence;

/// The end that answers. Dropped without an answer, it answers `None`.
#[derive(Debug)]
pub(super) struct Answer<T>(Arc<Shared<T>>);

/// The end that waits.
#[derive(Debug)]
pub(super) struct Question<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    answer: Option<T>,
    is_answered: bool,
    waker: Option<Waker>,
}

pub(super) fn oneshot<T>() -> (Answer<T>, Question<T>) {
    let state = State { answer: None, is_answered: false, waker: None };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Answer(Arc::clone(&shared)), Question(shared))
}

impl<T> Answer<T> {
    pub(super) fn give(self, answer: T) {
        self.0.state.lock().answer = Some(answer);
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.is_answered = true;
        let waker = state.waker.take();
        drop(state);
        self.0.changed.notify_one();
        if let Some(waker) = waker
            && let Err(reason) = fence(|| waker.wake())
        {
            tracing::warn!(reason, "a waker panicked");
        }
    }
}

impl<T> Question<T> {
    /// Blocks until there is an answer, or there will be none.
    pub(super) fn wait(&self) -> Option<T> {
        let mut state = self.0.state.lock();
        while !state.is_answered {
            self.0.changed.wait(&mut state);
        }
        state.answer.take()
    }
}

impl<T> Future for Question<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        // Code of the caller's executor: not under the lock.
        let waker = context.waker().clone();
        let mut state = self.0.state.lock();
        if state.is_answered {
            return Poll::Ready(state.answer.take());
        }
        let old = state.waker.replace(waker);
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl<T> Drop for Question<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        let rest = (state.waker.take(), state.answer.take());
        drop(state);
        drop(rest);
    }
}
