//! Replays what an engine's scheduler was told, and says whether it decides the same again.
//!
//! ```text
//! cargo run --release --example replay_log -- scheduler.log
//! ```
//!
//! [`EngineOptions::record_inputs`](understory::engine::EngineOptions::record_inputs) writes such a
//! log. A replay needs neither a model nor a device, so it can be run in a debugger, or with a
//! scheduler that prints more.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use understory::one_line;
use understory::schedule::{ReplayError, Replayed, replay};

/// Replays a log of a scheduler's inputs.
#[derive(Parser)]
struct Args {
    /// The log.
    log: PathBuf,
}

fn main() -> ExitCode {
    let Args { log } = Args::parse();
    let start = Instant::now();
    match open(&log) {
        Ok(Replayed { inputs, refused, plans, stats, .. }) => {
            println!(
                "the same decisions: {inputs} inputs ({refused} refused), {plans} plans, {} steps, \
                 {} tokens generated, {} retractions, in {:.1?}",
                stats.steps,
                stats.generated_tokens,
                stats.retractions,
                start.elapsed()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {}", log.display(), one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn open(log: &PathBuf) -> Result<Replayed, ReplayError> {
    replay(BufReader::new(File::open(log)?))
}
