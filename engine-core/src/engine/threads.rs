//! The engine's two threads: how they start and how they end.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::command::{Command, TextMessage};
use super::core::Core;
use super::loops;
use super::shared::Shared;
use super::text;
use crate::error::{EngineDead, EngineError};
use crate::schedule::FinishReason;

/// The running threads.
#[derive(Debug)]
pub(super) struct Threads {
    scheduler: JoinHandle<()>,
    text: JoinHandle<()>,
}

impl Threads {
    pub(super) fn start(
        core: Core,
        shared: &Arc<Shared>,
        overlap: bool,
    ) -> Result<Self, EngineError> {
        let of_text = Arc::clone(shared);
        let text = spawn("understory-text", move || text_thread(&of_text))?;
        let of_scheduler = Arc::clone(shared);
        let scheduler = spawn("understory-sched", move || {
            scheduler_thread(core, &of_scheduler, overlap);
        });
        match scheduler {
            Ok(scheduler) => Ok(Self { scheduler, text }),
            Err(error) => {
                shared.texts.close();
                Err(error)
            }
        }
    }

    /// Waits until both have ended. If the engine died, the device may never let its executor go:
    /// that is not waited for.
    pub(super) fn join(self, shared: &Shared) {
        shared.wait_until_ended();
        let here = thread::current().id();
        // A reader's waker may drop the last handle on the text thread.
        if self.text.thread().id() != here {
            // A panic there was caught and told before.
            let _ = self.text.join();
        }
        if shared.dead.get().is_none() && self.scheduler.thread().id() != here {
            let _ = self.scheduler.join();
        }
    }
}

fn spawn(
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, EngineError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source| EngineError::Thread { name, source })
}

fn scheduler_thread(mut core: Core, shared: &Shared, overlap: bool) {
    let run = || if overlap { loops::overlapped(&mut core) } else { loops::plain(&mut core) };
    let death = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => None,
        Ok(Err(dead)) => Some(dead),
        Err(panic) => Some(EngineDead::new(message(panic.as_ref()))),
    };
    if let Some(dead) = death {
        tracing::error!(reason = dead.reason(), "the engine has died");
        shared.die(dead);
    }
    // Whoever submits from here on is told at once. What came between the last look into the
    // mailbox and now is given up, or hears of the death.
    for command in shared.commands.close() {
        give_up(command, shared);
    }
    // If the text thread is gone, so are its streams.
    let _ = shared.texts.post(TextMessage::Close);
    shared.set_ended();
    // `core` goes last: a lost device may keep its executor for ever.
}

fn give_up(command: Command, shared: &Shared) {
    let (Command::Submit(samples) | Command::Fork { branches: samples, .. }) = command else {
        return;
    };
    for sample in samples {
        let id = sample.arrival.id;
        let mut messages = vec![TextMessage::Open(id, Box::new(sample.stream))];
        if shared.dead.get().is_none() {
            let at = Instant::now();
            messages.push(TextMessage::Finished { id, reason: FinishReason::Abort, at });
        }
        shared.texts.post_all(&mut messages);
    }
}

fn text_thread(shared: &Shared) {
    let run = || text::run(&shared.texts, &shared.commands, &shared.dead);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        // Its streams were dropped on the way, which told their readers.
        let dead = EngineDead::new(message(panic.as_ref()));
        tracing::error!(reason = dead.reason(), "the engine has died");
        shared.die(dead);
        drop(shared.texts.close());
        // Wakes the scheduler thread.
        let _ = shared.commands.post(Command::AbortAll);
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_else(|| "without a message".to_owned()))
}
