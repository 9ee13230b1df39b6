//! Writing down what the scheduler is told, for [`replay`](crate::schedule::replay).
//!
//! Lines are made on the scheduler's thread, since they borrow, and written by a thread of their
//! own. Without a log nothing of this happens.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::mailbox::Mailbox;
use crate::schedule::{Input, InputError, InputLog, Plan, ScheduleError, Scheduler};

/// A scheduler whose inputs and plans may be recorded.
#[derive(Debug)]
pub(super) struct Recorded {
    scheduler: Scheduler,
    recorder: Option<Recorder>,
}

/// Lines on their way to a file; an empty one ends it.
#[derive(Debug)]
struct Recorder {
    log: InputLog<Vec<u8>>,
    lines: Arc<Mailbox<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
}

impl Recorded {
    /// Records to a new file at `path`, if one is given and can be created.
    pub(super) fn new(scheduler: Scheduler, path: Option<&Path>) -> io::Result<Self> {
        let recorder = path.map(|path| Recorder::new(path, &scheduler)).transpose()?;
        Ok(Self { scheduler, recorder })
    }

    /// See [`Scheduler::apply`].
    pub(super) fn apply(&mut self, input: Input<'_>) -> Result<(), InputError> {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(|log| log.input(&input));
        }
        self.scheduler.apply(input)
    }

    /// See [`Scheduler::plan`].
    pub(super) fn plan(&mut self) -> Result<Plan<'_>, ScheduleError> {
        let plan = self.scheduler.plan()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.record(|log| log.plan(&plan));
        }
        Ok(plan)
    }

    /// See [`Scheduler::clear_events`].
    pub(super) fn clear_events(&mut self) {
        self.scheduler.clear_events();
    }

    /// See [`Scheduler::drain_cache_events`].
    pub(super) fn drain_cache_events(&mut self) -> impl Iterator<Item = radix_cache::Event> + '_ {
        self.scheduler.drain_cache_events()
    }
}

impl Deref for Recorded {
    type Target = Scheduler;

    fn deref(&self) -> &Scheduler {
        &self.scheduler
    }
}

impl Recorder {
    fn new(path: &Path, scheduler: &Scheduler) -> io::Result<Self> {
        let file = File::create(path)?;
        let lines = Arc::new(Mailbox::with_capacity(0));
        let written = Arc::clone(&lines);
        let builder = thread::Builder::new().name("understory-record".to_owned());
        let writer = builder.spawn(move || write(&written, file))?;
        let log = InputLog::new(Vec::new(), scheduler.config())?;
        let mut recorder = Self { log, lines, writer: Some(writer) };
        recorder.send();
        Ok(recorder)
    }

    fn record(&mut self, line: impl FnOnce(&mut InputLog<Vec<u8>>) -> io::Result<()>) {
        if let Err(error) = line(&mut self.log) {
            tracing::warn!(%error, "an input of the scheduler can't be recorded");
        }
        self.send();
    }

    fn send(&mut self) {
        let line = std::mem::take(self.log.get_mut());
        // Nobody takes lines any more once writing has failed, which was told then.
        let _ = self.lines.post(line);
    }
}

impl Drop for Recorder {
    /// Waits until all is written.
    fn drop(&mut self) {
        let _ = self.lines.post(Vec::new());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Writes lines until an empty one comes; whenever none waits, what was written reaches the file.
fn write(lines: &Mailbox<Vec<u8>>, file: File) {
    let mut out = BufWriter::new(file);
    let mut arrived = Vec::new();
    let mut has_ended = false;
    while !has_ended {
        lines.wait(&mut arrived);
        has_ended = arrived.last().is_some_and(Vec::is_empty);
        let written = arrived.drain(..).try_for_each(|line| out.write_all(&line));
        if let Err(error) = written.and_then(|()| out.flush()) {
            tracing::warn!(%error, "the scheduler's inputs are recorded no further");
            drop(lines.close());
            return;
        }
    }
}
