//! Replays what an engine's scheduler was told, and says whether it decides the same again.
//!
//! ```text
//! cargo run --release --example offline_batch -- --record-inputs scheduler.log
//! cargo run --release --example replay_log -- scheduler.log
//! ```
//!
//! [`EngineOptions::record_inputs`](understory::engine::EngineOptions::record_inputs) writes such a
//! log. A replay needs neither a model nor a device, so it can be run in a debugger, or with a
//! scheduler that prints more.

#[path = "support/program.rs"]
mod program;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use program::Outcome;
use understory::schedule::{Replayed, replay};

/// Replays a log of a scheduler's inputs.
#[derive(Parser)]
struct Args {
    /// The log.
    log: PathBuf,
}

fn main() -> ExitCode {
    let Args { log } = Args::parse();
    program::run(|| run(&log))
}

fn run(log: &Path) -> Outcome<()> {
    let start = Instant::now();
    let file =
        File::open(log).map_err(|error| format!("cannot open {}: {error}", log.display()))?;
    let Replayed { inputs, refused, plans, stats, .. } = replay(BufReader::new(file))?;
    println!(
        "the same decisions: {inputs} inputs ({refused} refused), {plans} plans, {} steps, {} tokens \
         generated, {} retractions, in {:.1?}",
        stats.steps,
        stats.generated_tokens,
        stats.retractions,
        start.elapsed()
    );
    Ok(())
}
