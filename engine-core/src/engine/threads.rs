//! The engine's threads: how they start and how they end.

use std::cell::Cell;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::command::{Command, TextMessage};
use super::driver::Driver;
use super::loops;
use super::shared::Shared;
use super::text;
use super::workers::Workers;
use crate::error::{EngineDead, EngineError};
use crate::fence::fence;
use crate::schedule::FinishReason;

thread_local! {
    static IS_ENGINE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is a thread of some engine. Code of callers runs on those too (constraints, wakers),
/// and must not wait there for an engine to end.
pub(super) fn is_engine_thread() -> bool {
    IS_ENGINE.get()
}

/// The running threads.
#[derive(Debug)]
pub(super) struct Threads {
    scheduler: JoinHandle<()>,
    text: JoinHandle<()>,
    workers: [Workers; 2],
}

impl Threads {
    pub(super) fn start(
        driver: Driver,
        shared: &Arc<Shared>,
        workers: [Workers; 2],
        overlap: bool,
    ) -> Result<Self, EngineError> {
        let of_text = Arc::clone(shared);
        let text = spawn("understory-text", move || text_thread(&of_text))?;
        let of_scheduler = Arc::clone(shared);
        let scheduler = spawn("understory-sched", move || {
            scheduler_thread(driver, &of_scheduler, overlap);
        });
        match scheduler {
            Ok(scheduler) => Ok(Self { scheduler, text, workers }),
            Err(error) => {
                shared.texts.close();
                Err(error)
            }
        }
    }

    /// Waits until all have ended. If the engine died, the device may never let its executor go:
    /// that is not waited for. Not to be called on a thread of an engine.
    pub(super) fn join(self, shared: &Shared) {
        shared.wait_until_ended();
        self.workers.iter().for_each(Workers::close);
        // A panic there was caught and told before.
        let _ = self.text.join();
        if shared.dead.get().is_none() {
            let _ = self.scheduler.join();
        }
        self.workers.iter().for_each(Workers::join);
    }

    /// Lets all threads end by themselves.
    pub(super) fn detach(self) {
        self.workers.iter().for_each(Workers::close);
    }
}

/// Starts a thread of an engine.
pub(super) fn spawn(
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, EngineError> {
    let run = move || {
        IS_ENGINE.set(true);
        run();
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source| EngineError::Thread { name, source })
}

fn scheduler_thread(mut driver: Driver, shared: &Shared, overlap: bool) {
    let run = || if overlap { loops::overlapped(&mut driver) } else { loops::plain(&mut driver) };
    let death = match fence(run) {
        Ok(Ok(())) => None,
        Ok(Err(dead)) => Some(dead),
        Err(panic) => Some(EngineDead::new(format!("panic: {panic}"))),
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
    // `driver` goes last: a lost device may keep its executor for ever.
}

fn give_up(command: Command, shared: &Shared) {
    let (Command::Submit(samples) | Command::Fork { branches: samples, .. }) = command else {
        return;
    };
    for sample in samples {
        let id = sample.arrival.id;
        let mut messages = vec![TextMessage::Open(id, Box::new(sample.text))];
        if shared.dead.get().is_none() {
            let at = Instant::now();
            messages.push(TextMessage::Finished { id, reason: FinishReason::Abort, at });
        }
        shared.texts.post_all(&mut messages);
    }
}

fn text_thread(shared: &Shared) {
    if let Err(panic) = fence(|| text::run(shared)) {
        // Its streams were dropped on the way, which told their readers.
        let dead = EngineDead::new(format!("panic: {panic}"));
        tracing::error!(reason = dead.reason(), "the engine has died");
        shared.die(dead);
        drop(shared.texts.close());
        // Wakes the scheduler thread.
        let _ = shared.commands.post(Command::AbortAll);
    }
}
