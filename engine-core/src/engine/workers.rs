//! A few named threads for work that would hold others up: tokenizing, masks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::threads::{is_engine_thread, spawn};
use crate::fence::fence;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Threads that start with the first job that finds none idle, and sleep between jobs.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    name: &'static str,
    most: usize,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    is_closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("jobs", &self.jobs.len()).finish_non_exhaustive()
    }
}

impl Workers {
    /// At most so many threads of that name.
    pub(super) fn new(name: &'static str, most: usize) -> Self {
        Self { name, most, shared: Arc::default() }
    }

    /// How many threads there may be.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Runs a job soon; drops it once [`close`](Self::close) was called. A job that panics harms
    /// nobody.
    pub(super) fn post(&self, job: Job) {
        let mut state = self.shared.state.lock();
        if state.is_closed {
            drop(state);
            return drop(job);
        }
        state.jobs.push_back(job);
        if state.jobs.len() > state.idle && state.threads.len() < self.most {
            let shared = Arc::clone(&self.shared);
            match spawn(self.name, move || shared.work()) {
                Ok(thread) => state.threads.push(thread),
                Err(_) if !state.threads.is_empty() => {}
                Err(error) => {
                    tracing::warn!(%error, "work is done on the caller's thread");
                    let job = state.jobs.pop_back();
                    drop(state);
                    if let Some(job) = job {
                        run(job);
                    }
                    return;
                }
            }
        }
        drop(state);
        self.shared.arrived.notify_one();
    }

    /// Drops jobs that nobody has begun with, and lets the threads end.
    pub(super) fn close(&self) {
        let mut state = self.shared.state.lock();
        state.is_closed = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        self.shared.arrived.notify_all();
        jobs.into_iter().for_each(|job| run(Box::new(move || drop(job))));
    }

    /// Waits for the threads, which [`close`](Self::close) lets end, unless that would be waiting
    /// for oneself.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut self.shared.state.lock().threads);
        if !is_engine_thread() {
            // A panic in a job was caught before.
            threads.into_iter().for_each(|thread| drop(thread.join()));
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                run(job);
                state = self.state.lock();
            } else if state.is_closed {
                return;
            } else {
                state.idle += 1;
                self.arrived.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

fn run(job: Job) {
    if let Err(reason) = fence(job) {
        tracing::error!(reason, "a job panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn jobs_run_side_by_side_and_a_panic_in_one_harms_no_other() {
        let workers = Workers::new("understory-test", 2);
        let barrier = Arc::new(Barrier::new(3));
        workers.post(Box::new(|| panic!("on purpose")));
        for _ in 0..2 {
            let barrier = Arc::clone(&barrier);
            workers.post(Box::new(move || {
                barrier.wait();
            }));
        }
        barrier.wait();
        workers.close();
        workers.join();
    }

    #[test]
    fn jobs_that_come_too_late_are_dropped() {
        let workers = Workers::new("understory-test", 1);
        workers.close();
        let count = Arc::new(AtomicUsize::new(0));
        let inside = Arc::clone(&count);
        workers.post(Box::new(move || {
            inside.fetch_add(1, Ordering::Relaxed);
        }));
        workers.join();
        assert_eq!((count.load(Ordering::Relaxed), Arc::strong_count(&count)), (0, 1));
    }
}
