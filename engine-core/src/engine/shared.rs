//! What the handles and the engine's threads share.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metrics::{Counter, counter};
use parking_lot::{Condvar, Mutex};
use radix_cache::Event;

use super::clock::Clock;
use super::command::{Command, Queue, TextMessage};
use super::mailbox::Mailbox;
use super::meters::{Endings, EngineSnapshot};
use crate::error::EngineDead;

/// The text thread may be so many steps behind before the memory for messages to it grows.
const STEPS_BEHIND: usize = 16;

#[derive(Debug)]
pub(super) struct Shared {
    /// To the scheduler thread.
    pub(super) commands: Mailbox<Command>,
    /// To the text thread.
    pub(super) texts: Mailbox<TextMessage>,
    pub(super) queue: Queue,
    /// Set once, if the engine dies.
    pub(super) dead: OnceLock<EngineDead>,
    /// New requests are refused.
    pub(super) is_closing: AtomicBool,
    pub(super) snapshot: Mutex<EngineSnapshot>,
    pub(super) endings: EndingCounts,
    /// Changes of the cache that nobody has taken yet; bounded, the oldest give way.
    pub(super) cache_events: Mutex<VecDeque<Event>>,
    pub(super) cache_changed: Condvar,
    pub(super) clock: Clock,
    ended: Ended,
}

impl Shared {
    pub(super) fn new(queue: Queue, max_running: u32) -> Self {
        Self {
            commands: Mailbox::with_capacity(0),
            texts: Mailbox::with_capacity(max_running as usize * STEPS_BEHIND),
            queue,
            dead: OnceLock::new(),
            is_closing: AtomicBool::new(false),
            snapshot: Mutex::default(),
            endings: EndingCounts::new(),
            cache_events: Mutex::default(),
            cache_changed: Condvar::new(),
            clock: Clock::new(),
            ended: Ended::default(),
        }
    }

    /// The first reason stays.
    pub(super) fn die(&self, dead: EngineDead) {
        self.is_closing.store(true, Ordering::Release);
        let _ = self.dead.set(dead);
    }

    /// The scheduler thread will call nobody any more, except to let its executor go.
    pub(super) fn set_ended(&self) {
        *self.ended.has_ended.lock() = true;
        self.ended.changed.notify_all();
        // Under the lock, so that nobody misses it who has just looked.
        drop(self.cache_events.lock());
        self.cache_changed.notify_all();
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.ended.has_ended.lock()
    }

    pub(super) fn wait_until_ended(&self) {
        let mut has_ended = self.ended.has_ended.lock();
        while !*has_ended {
            self.ended.changed.wait(&mut has_ended);
        }
    }
}

#[derive(Debug, Default)]
struct Ended {
    has_ended: Mutex<bool>,
    changed: Condvar,
}

/// How a sample ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Stop,
    Length,
    Abort,
    Failed,
    Refused,
}

/// Samples that have ended, by reason.
#[derive(Debug)]
pub(super) struct EndingCounts {
    counts: [AtomicU64; 5],
    meters: [Counter; 5],
}

impl EndingCounts {
    fn new() -> Self {
        let names = ["stop", "length", "abort", "failed", "refused"];
        let meters = names.map(|name| counter!("understory_samples_ended_total", "reason" => name));
        Self { counts: Default::default(), meters }
    }

    pub(super) fn count(&self, ending: Ending) {
        self.counts[ending as usize].fetch_add(1, Ordering::Relaxed);
        self.meters[ending as usize].increment(1);
    }

    pub(super) fn get(&self) -> Endings {
        let count = |ending| self.counts[ending as usize].load(Ordering::Relaxed);
        Endings {
            stop: count(Ending::Stop),
            length: count(Ending::Length),
            abort: count(Ending::Abort),
            failed: count(Ending::Failed),
            refused: count(Ending::Refused),
        }
    }
}
