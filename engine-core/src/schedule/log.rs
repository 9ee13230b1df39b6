//! A log of all that a scheduler was told, to be written to a file and replayed.
//!
//! One JSON object a line. The first names the format's version and the scheduler's configuration;
//! the others are inputs, and for each plan a digest of all that it lent:
//!
//! ```text
//! {"understory_scheduler_log":2,"config":{"page_size":16, ..}}
//! {"input":{"Arrive":{"id":{"request":1,"index":0}, ..}}}
//! {"plan":11374846293847374}
//! ```

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::config::SchedulerConfig;
use super::digest::digest;
use super::error::{InputError, ScheduleError};
use super::input::Input;
use super::report::{Plan, SchedulerStats};
use super::scheduler::Scheduler;

/// The version of logs that are written and replayed. It changes whenever the same inputs may lead
/// to other decisions, or are written in another way.
pub const LOG_VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Header<Config> {
    understory_scheduler_log: u32,
    config: Config,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<Told> {
    Input(Told),
    Plan(u64),
}

/// Writes a log.
#[derive(Debug)]
pub struct InputLog<W> {
    out: W,
}

impl<W: Write> InputLog<W> {
    /// Begins a log of a scheduler that is built with `config`.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn new(out: W, config: &SchedulerConfig) -> io::Result<Self> {
        let mut log = Self { out };
        log.line(&Header { understory_scheduler_log: LOG_VERSION, config })?;
        Ok(log)
    }

    /// Writes an input, which the scheduler is told next.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn input(&mut self, input: &Input<'_>) -> io::Result<()> {
        self.line(&Line::Input(input))
    }

    /// Writes what the scheduler has planned.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn plan(&mut self, plan: &Plan<'_>) -> io::Result<()> {
        self.line(&Line::<()>::Plan(digest(plan)))
    }

    /// Where it is written.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }
}

/// What a log told, whose replay came to the same decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Inputs applied, refused ones included.
    pub inputs: u64,
    /// Inputs that were refused.
    pub refused: u64,
    /// Plans.
    pub plans: u64,
    /// What the scheduler counted.
    pub stats: SchedulerStats,
}

/// Why a log was not replayed to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It can't be read.
    #[error("the log can't be read")]
    Io(#[from] io::Error),
    /// It has another version.
    #[error("the log has version {found}, but only version {supported} can be replayed")]
    Version {
        /// The log's.
        found: u64,
        /// The one that can be replayed.
        supported: u32,
    },
    /// A line is not one of a log.
    #[error("line {line} is not one of a scheduler's log")]
    Malformed {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It begins with something else than a header.
    #[error("this is not a scheduler's log")]
    NoLog,
    /// The scheduler gave up.
    #[error("line {line}: the scheduler gave up")]
    Schedule {
        /// The line, from 1.
        line: u64,
        /// Why.
        source: ScheduleError,
    },
    /// The scheduler decided otherwise than when the log was written.
    #[error("line {line}: plan {plan} is another one than the log's")]
    Diverged {
        /// The line, from 1.
        line: u64,
        /// Which plan, from 1.
        plan: u64,
    },
}

/// Tells a new scheduler what a log says, and compares what it decides.
///
/// # Errors
///
/// [`ReplayError`]; a log of another version is refused before anything else of it is read.
pub fn replay(log: impl BufRead) -> Result<Replayed, ReplayError> {
    let mut lines = log.lines();
    let first = lines.next().ok_or(ReplayError::NoLog)??;
    let mut scheduler = Scheduler::new(config_of(&first)?)
        .map_err(|source| ReplayError::Schedule { line: 1, source })?;
    let (mut inputs, mut refused, mut plans) = (0, 0, 0);
    for (line, text) in (2..).zip(lines) {
        let told: Line<Input<'static>> = serde_json::from_str(&text?)
            .map_err(|source| ReplayError::Malformed { line, source })?;
        match told {
            Line::Input(input) => {
                inputs += 1;
                match scheduler.apply(input) {
                    Ok(()) => {}
                    Err(InputError::Refused(_)) => refused += 1,
                    Err(InputError::Schedule(source)) => {
                        return Err(ReplayError::Schedule { line, source });
                    }
                }
                scheduler.clear_events();
            }
            Line::Plan(logged) => {
                plans += 1;
                let plan = scheduler.plan();
                let plan = plan.map_err(|source| ReplayError::Schedule { line, source })?;
                if digest(&plan) != logged {
                    return Err(ReplayError::Diverged { line, plan: plans });
                }
            }
        }
    }
    Ok(Replayed { inputs, refused, plans, stats: scheduler.stats() })
}

fn config_of(header: &str) -> Result<SchedulerConfig, ReplayError> {
    let value: serde_json::Value = serde_json::from_str(header).map_err(|_| ReplayError::NoLog)?;
    let version = value.get("understory_scheduler_log").and_then(serde_json::Value::as_u64);
    match version {
        None => Err(ReplayError::NoLog),
        Some(found) if found != u64::from(LOG_VERSION) => {
            Err(ReplayError::Version { found, supported: LOG_VERSION })
        }
        Some(_) => match serde_json::from_value::<Header<SchedulerConfig>>(value) {
            Ok(header) => Ok(header.config),
            Err(source) => Err(ReplayError::Malformed { line: 1, source }),
        },
    }
}
