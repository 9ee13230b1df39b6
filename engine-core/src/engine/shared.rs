//! What the handles and the engine's threads share.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use radix_cache::Event;

use super::clock::Clock;
use super::command::{Command, Queue, TextMessage};
use super::mailbox::Mailbox;
use super::meters::EngineSnapshot;
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
    pub(super) vocab_size: u32,
    /// Set once, if the engine dies.
    pub(super) dead: OnceLock<EngineDead>,
    /// New requests are refused.
    pub(super) is_closing: AtomicBool,
    pub(super) snapshot: Mutex<EngineSnapshot>,
    /// Changes of the cache that nobody has taken yet; bounded, the oldest give way.
    pub(super) cache_events: Mutex<VecDeque<Event>>,
    pub(super) clock: Clock,
    ended: Ended,
}

impl Shared {
    pub(super) fn new(queue: Queue, vocab_size: u32, max_running: u32) -> Self {
        Self {
            commands: Mailbox::with_capacity(0),
            texts: Mailbox::with_capacity(max_running as usize * STEPS_BEHIND),
            queue,
            vocab_size,
            dead: OnceLock::new(),
            is_closing: AtomicBool::new(false),
            snapshot: Mutex::default(),
            cache_events: Mutex::default(),
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
