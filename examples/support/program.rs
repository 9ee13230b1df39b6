//! How all examples run: where the library's warnings go, and how an error ends a program.

use std::error::Error;
use std::process::ExitCode;

use tracing_subscriber::filter::LevelFilter;
use understory::one_line;

/// What a program has made, or why it ends.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// Runs a program: warnings of the library go to the terminal, and an error, with all its causes
/// on one line, ends it with code 1.
pub(crate) fn run(program: impl FnOnce() -> Outcome<()>) -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match program() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
