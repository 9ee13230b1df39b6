//! What runs next: a pure state machine.
//!
//! The [`Scheduler`] has no clock, no thread, no channel, no device and no randomness. It is told
//! what happens, as an [`Input`], and says what to launch and to copy between the tiers, as a
//! [`Plan`]. The same inputs and plans in the same order give the same answers, so a log of them
//! replays every decision.
//!
//! # Owners
//!
//! Each file owns a part of the state behind a few verbs and imports only those above it:
//!
//! ```text
//! arrival      what a sequence is to those who submit it
//! sequence     one sequence: tokens, and its phase (waiting, loading, running)
//! proposer     which tokens are proposed
//! pages        slots, page tables, the pool of each kind of group
//! sequences    which sequences there are, and which run
//! queue        who is next          transfers   copies between the tiers
//! flights      launched steps       assembly    the batch that is put together
//! state        the owners side by side: settle, protect, put back, finish
//! rows, loading, retraction, admission, forks     rules over the state
//! planner      plan                 committer   what follows the end of steps and copies
//! scheduler    the state machine as its user sees it
//! log          inputs and decisions in a file, and their replay
//! ```
//!
//! # A sequence's numbers
//!
//! ```text
//! tokens   |=========cached========|====computed====|..launched..|
//! pages    |  owned by the tree    |  owned by the sequence       |
//!          0                   protected         computed     launched
//! ```
//!
//! `known` counts tokens on the host. Only pages below `floor_page(min(known, computed))` may
//! enter the tree: the last sampled token is known before its KV exists.
//!
//! # The order of a step
//!
//! 1. Decode rows of all running sequences; when their next pages can't be had, retract first,
//!    with nothing in flight. Then rows that verify proposed tokens.
//! 2. Chunks of running sequences whose prompt isn't computed yet, in the order of admission.
//! 3. New sequences, while slots, the chunk budget and the page budget last.

mod admission;
mod arrival;
mod assembly;
mod committer;
mod config;
mod digest;
mod error;
mod flights;
mod forks;
mod input;
mod loading;
mod log;
mod logged;
mod news;
mod pages;
mod planner;
mod proposer;
mod queue;
mod report;
mod reserve;
mod retraction;
mod rows;
mod scheduler;
mod sequence;
mod sequences;
mod sharing;
mod state;
mod transfers;

pub use arrival::{Arrival, FinishReason, PromptWant, RequestId, SequenceId};
pub use config::{HostTierConfig, QueuePolicy, SchedulerConfig, Speculation, WindowedConfig};
pub use error::{InputError, Refusal, ScheduleError};
pub use input::Input;
pub use log::{InputLog, LOG_VERSION, ReplayError, Replayed, replay};
pub use report::{Deferred, Event, Plan, SchedulerStats, Step};
pub use scheduler::Scheduler;
