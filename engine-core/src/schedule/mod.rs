//! What runs next: a pure state machine.
//!
//! The [`Scheduler`] has no clock, no thread, no channel, no device and no randomness. It is told
//! what happens ([`arrive`](Scheduler::arrive), [`abort`](Scheduler::abort),
//! [`fork`](Scheduler::fork), [`commit`](Scheduler::commit)) and says what to launch
//! ([`plan`](Scheduler::plan)) and to copy between the tiers ([`copies`](Scheduler::copies)). The same calls in the same order give the same answers, so a log
//! of them replays every decision.
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
//!    with nothing in flight.
//! 2. Chunks of running sequences whose prompt isn't computed yet, in the order of admission.
//! 3. New sequences, while slots, the chunk budget and the page budget last.

mod admit;
mod check;
mod commit;
mod config;
mod fork;
mod holdings;
mod plan;
mod queue;
mod report;
mod reserve;
mod retract;
mod scheduler;
mod seeded;
mod sequence;
mod tier;

pub use config::{HostTierConfig, QueuePolicy, Refusal, SchedulerConfig};
pub use fork::ForkError;
pub use report::{Event, Plan, ScheduleError, SchedulerStats};
pub use scheduler::Scheduler;
pub use seeded::SeededBug;
pub use sequence::{Arrival, FinishReason, RequestId, SequenceId};
